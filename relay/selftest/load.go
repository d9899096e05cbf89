package selftest

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/posternhq/postern/protocol"
)

// Target is an endpoint that a Load sends to.
type Target struct {
	URL string
	// Keys is how many order keys each sender has here; 0: the events have none.
	// A sender waits for an answer before it sends the next event.
	Keys int
	// Make makes an event: its body and its header, with a signature and with
	// NumberHeader. Required.
	Make func(r *rand.Rand, number int64, key string) ([]byte, http.Header)
	// Repeats says that the relay can tell an event that was sent before, so that
	// senders may send what was not acknowledged again.
	Repeats bool
}

// Load is a crowd of senders.
type Load struct {
	Ledger  *Ledger  // required
	Targets []Target // required; each event goes to one of them, by chance
	Senders int      // default 8
	Rate    float64  // events a second from all together; 0: as fast as they are answered
	Seed    uint64   // what is sent in which order by each sender follows from it

	numbers atomic.Int64
	client  *http.Client
}

// What senders do when an answer is not what they hoped for.
const (
	answersWithin = 30 * time.Second
	repeats       = 4 // sends of one event
	pauseAfter    = 25 * time.Millisecond
	maxAnswer     = 1 << 20
)

// Run sends until ctx ends, then lets what is under way finish.
func (l *Load) Run(ctx context.Context) {
	if l.Senders <= 0 {
		l.Senders = 8
	}
	tr := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: l.Senders}
	defer tr.CloseIdleConnections()
	l.client = &http.Client{
		Transport: tr, Timeout: answersWithin,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	var running sync.WaitGroup
	for n := range l.Senders {
		running.Go(func() { l.sender(ctx, n) })
	}
	running.Wait()
}

func (l *Load) sender(ctx context.Context, n int) {
	r := rand.New(rand.NewPCG(l.Seed, uint64(n)))
	for ctx.Err() == nil {
		began := time.Now()
		t := l.Targets[r.IntN(len(l.Targets))]
		e := Event{Number: l.numbers.Add(1)}
		if t.Keys > 0 {
			e.Key = fmt.Sprintf("%d-%d", n, r.IntN(t.Keys))
		}
		body, header := t.Make(r, e.Number, e.Key)
		if e.Key != "" {
			e.Key = t.URL + " " + e.Key // keys of two endpoints have nothing to do with each other
		}
		e.Body, e.Header = DigestBody(body), DigestHeader(header)
		l.send(ctx, r, t, e, body, header)
		if l.Rate > 0 {
			each := float64(l.Senders) / l.Rate * (0.5 + r.Float64()) * float64(time.Second)
			pause(ctx, time.Duration(each)-time.Since(began))
		}
	}
}

// send sends one event until it is acknowledged or its sender gives up.
func (l *Load) send(ctx context.Context, r *rand.Rand, t Target, e Event, body []byte, header http.Header) {
	for try := 0; try < repeats; {
		// Written down even if nothing leaves: an event too many is no violation.
		l.Ledger.Send(e)
		status, id, answer, err := l.post(ctx, t.URL, body, header)
		switch {
		case unsent(err):
			if pause(ctx, pauseAfter); ctx.Err() != nil {
				return
			}
			continue // nobody listens: that was no send
		case err != nil:
			l.Ledger.Unanswered(e.Number)
		default:
			l.Ledger.Answer(e.Number, status, id, answer)
		}
		if err == nil && status < 500 || !t.Repeats || r.IntN(4) == 0 {
			return // some senders never come again
		}
		try++
		pause(ctx, pauseAfter)
	}
}

// unsent reports whether an error proves that nothing reached the relay.
func unsent(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// post sends once. It does not end with ctx: an answer that is under way is to
// be heard.
func (l *Load) post(ctx context.Context, url string, body []byte, header http.Header) (status int, id string, answer http.Header, err error) {
	req, err := http.NewRequestWithContext(context.WithoutCancel(ctx), http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return 0, "", nil, err
	}
	req.Header = header.Clone()
	resp, err := l.client.Do(req)
	if err != nil {
		return 0, "", nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return 0, "", nil, err
	}
	return resp.StatusCode, idIn(resp, text), resp.Header, nil
}

// idIn is the event's id in an answer, "" when it is not there, or when header
// and body name two.
func idIn(resp *http.Response, body []byte) string {
	id := resp.Header.Get(protocol.HeaderEventID)
	if resp.StatusCode != http.StatusAccepted {
		return id // the app's own words
	}
	var accepted struct {
		ID string `json:"id"`
	}
	if json.Unmarshal(body, &accepted) != nil || accepted.ID != id {
		return ""
	}
	return id
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// Stripe makes events as Stripe signs them: JSON of about size bytes, with the
// order key at /account. The relay can tell that they are the same by their id.
func Stripe(secret string, size func(*rand.Rand) int) func(*rand.Rand, int64, string) ([]byte, http.Header) {
	return func(r *rand.Rand, number int64, key string) ([]byte, http.Header) {
		head := fmt.Sprintf(`{"id":"evt_%d","type":"selftest.made","account":%q,"filling":"`, number, key)
		body := []byte(head + strings.Repeat("=", max(0, size(r)-len(head)-2)) + `"}`)
		t := strconv.FormatInt(time.Now().Unix(), 10)
		mac := hmac.New(sha256.New, []byte(secret))
		fmt.Fprintf(mac, "%s.%s", t, body)
		return body, senderHeader(number, "Stripe-Signature", "t="+t+",v1="+hex.EncodeToString(mac.Sum(nil)))
	}
}

// GitHub makes events as GitHub signs them, of any bytes, size of them. The relay
// can tell that they are the same by their header.
func GitHub(secret string, size func(*rand.Rand) int) func(*rand.Rand, int64, string) ([]byte, http.Header) {
	return func(r *rand.Rand, number int64, _ string) ([]byte, http.Header) {
		body := make([]byte, size(r))
		for i := range body {
			body[i] = byte(r.Uint32())
		}
		mac := hmac.New(sha256.New, []byte(secret))
		mac.Write(body)
		header := senderHeader(number, "X-Hub-Signature-256", "sha256="+hex.EncodeToString(mac.Sum(nil)))
		header.Set("X-Github-Delivery", fmt.Sprintf("selftest-%d", number))
		header.Set("X-Github-Event", "push")
		return body, header
	}
}

// senderHeader is what a sender's header has besides, some of it only to be
// lost: two values in an order that is not the alphabet's.
func senderHeader(number int64, name, signature string) http.Header {
	return http.Header{
		"Content-Type": {"application/json; charset=utf-8"},
		"User-Agent":   {"Selftest/1"},
		"X-Note":       {"second", "first"},
		NumberHeader:   {strconv.FormatInt(number, 10)},
		name:           {signature},
	}
}
