package main

import (
	"database/sql"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/stripe/stripe-go/v85/webhook"
)

// standInInbox is the least that the inbox's measures need of a relay: it keeps
// what comes in a database with a table "event", and posts it to the app.
type standInInbox struct {
	db  *sql.DB
	mu  sync.Mutex
	app string
	due chan struct{} // capacity 1: there may be something to deliver
}

func openStandInInbox(data string) (*standInInbox, error) {
	db, err := openSQLite(filepath.Join(data, "standin.db"), "journal_mode=WAL", "synchronous=OFF")
	if err != nil {
		return nil, err
	}
	_, err = db.Exec(`CREATE TABLE IF NOT EXISTS event (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE);
		CREATE TABLE IF NOT EXISTS delivery (seq INTEGER PRIMARY KEY, event_seq INTEGER NOT NULL REFERENCES event(seq), state INTEGER NOT NULL, next_at INTEGER NOT NULL);
		CREATE INDEX IF NOT EXISTS delivery_due ON delivery(next_at) WHERE state = 0`)
	i := &standInInbox{db: db, due: make(chan struct{}, 1)}
	go i.deliver()
	return i, err
}

func (i *standInInbox) close() { _ = i.db.Close() }

func (i *standInInbox) take(w http.ResponseWriter, r *http.Request) {
	var body strings.Builder
	if err := r.Write(&body); err != nil {
		return
	}
	_, payload, _ := strings.Cut(body.String(), "\r\n\r\n")
	if err := webhook.ValidatePayload([]byte(payload), r.Header.Get("Stripe-Signature"), hookSecret); err != nil {
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	id := fmt.Sprintf("%s%026d", hookIDPrefix, time.Now().UnixNano())
	if err := i.store(id); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	i.wake()
	w.WriteHeader(http.StatusAccepted)
	fmt.Fprintf(w, `{"id":%q}`, id)
}

func (i *standInInbox) store(id string) error {
	tx, err := i.db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.Exec("INSERT INTO event (id) VALUES (?)", id); err != nil {
		return err
	}
	if _, err := tx.Exec("INSERT INTO delivery (event_seq, state, next_at) VALUES (last_insert_rowid(), 0, ?)", time.Now().UnixMicro()); err != nil {
		return err
	}
	return tx.Commit()
}

// connect tells where the app is.
func (i *standInInbox) connect(app string) {
	i.mu.Lock()
	i.app = app
	i.mu.Unlock()
	i.wake()
}

func (i *standInInbox) wake() {
	select {
	case i.due <- struct{}{}:
	default:
	}
}

// deliver posts what is due, one after the other.
func (i *standInInbox) deliver() {
	for range i.due {
		for i.deliverOne() {
		}
	}
}

func (i *standInInbox) deliverOne() bool {
	i.mu.Lock()
	app := i.app
	i.mu.Unlock()
	var seq int64
	err := i.db.QueryRow("SELECT seq FROM delivery WHERE state = 0 AND next_at <= ? ORDER BY next_at, seq LIMIT 1", time.Now().UnixMicro()).Scan(&seq)
	if app == "" || err != nil {
		return false
	}
	request, err := http.NewRequest(http.MethodPost, "http://"+app+"/webhooks/stripe", strings.NewReader("{}"))
	if err != nil {
		return false
	}
	request.Header.Set("Postern-Attempt", "1")
	if answer, err := http.DefaultClient.Do(request); err != nil || answer.Body.Close() != nil {
		return false
	}
	_, err = i.db.Exec("UPDATE delivery SET state = 2 WHERE seq = ?", seq)
	return err == nil
}
