package sqlite_test

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/relay"
	"github.com/posternhq/postern/relay/sqlite"
)

// Variables that turn the test binary into another process at the same file.
const (
	childVerb = "SQLITE_TEST_CHILD" // "token", "events" or "crowd"
	childPath = "SQLITE_TEST_PATH"
	childName = "SQLITE_TEST_NAME"
)

func TestMain(m *testing.M) {
	verb := os.Getenv(childVerb)
	if verb == "" {
		os.Exit(m.Run())
	}
	if err := runChild(verb, os.Getenv(childPath), os.Getenv(childName)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func runChild(verb, path, name string) error {
	ctx := context.Background()
	s, err := sqlite.Open(ctx, sqlite.Config{Path: path})
	if err != nil {
		return err
	}
	if verb == "token" {
		if err := s.CreateToken(ctx, relay.Token{ID: relay.TokenID(name), IssuedAt: now()}); err != nil {
			return err
		}
		return s.Close()
	}
	if verb == "crowd" {
		return crowd(ctx, s, name)
	}
	for i := 0; ; i++ { // until it is killed
		id := fmt.Sprint(name, "_", i)
		if _, err := s.CreateEvents(ctx, []relay.NewEvent{newEvent(id)}); err != nil {
			return err
		}
		fmt.Println(id)
	}
}

// crowd stores events until it is killed, many at a time, and prints each when it
// is acknowledged. Every tenth has a large body.
func crowd(ctx context.Context, s *sqlite.Store, name string) error {
	acknowledged, failed := make(chan string, 32), make(chan error)
	for worker := range 32 {
		go func() {
			for i := 0; ; i++ {
				id := fmt.Sprint(name, "_", worker, "_", i)
				e := newEvent(id)
				e.Deliveries[0].OrderKey = fmt.Sprint(worker)
				if (worker+i)%10 == 0 {
					e.Event.Body = largeBody(id)
				}
				if _, err := s.CreateEvents(ctx, []relay.NewEvent{e}); err != nil {
					failed <- err
					return
				}
				acknowledged <- id
			}
		}()
	}
	for {
		select {
		case id := <-acknowledged:
			fmt.Println(id)
		case err := <-failed:
			return err
		}
	}
}

// largeBody is a body that gets a file of its own, and is another for each id.
func largeBody(id string) []byte { return bytes.Repeat([]byte(id+" "), 300<<10/(len(id)+1)+1) }

// killAfter starts a child, kills it when it has printed so many lines, and
// returns all that it printed.
func killAfter(t *testing.T, lines int, verb, path, name string) (printed []string) {
	t.Helper()
	cmd := child(t.Context(), verb, path, name)
	stderr := new(strings.Builder)
	cmd.Stderr = stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for in := bufio.NewScanner(out); in.Scan(); { // to the end of what it printed
		printed = append(printed, in.Text())
		if len(printed) == lines {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	cmd.Wait()
	if len(printed) < lines {
		t.Fatalf("the child stopped by itself after %d events: %s", len(printed), stderr)
	}
	return printed
}

func child(ctx context.Context, verb, path, name string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), childVerb+"="+verb, childPath+"="+path, childName+"="+name)
	return cmd
}

func TestEveryCommittedEventOutlivesAKilledProcess(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "postern.db")
	var printed []string
	for round, lines := range []int{1, 40, 150} {
		printed = append(printed, killAfter(t, lines, "events", path, fmt.Sprint("evt_", round))...)
	}
	s := open(t, path)
	for _, id := range printed {
		e, err := s.Event(t.Context(), relay.EventID(id))
		if err != nil {
			t.Fatal(err)
		}
		ds, err := s.Deliveries(t.Context(), e.ID)
		if err != nil || len(ds) != 1 || string(e.Body) != id {
			t.Fatalf("%s came back as %+v with deliveries %+v, %v", id, e, ds, err)
		}
	}
}

// Killed between the file of a large body, the commit and the answer, at a time
// when all of them are in progress for some caller.
func TestEveryAcknowledgedEventOfABatchOutlivesAKilledProcess(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "postern.db")
	var printed []string
	for round, lines := range []int{1, 33, 400, 777} {
		printed = append(printed, killAfter(t, lines, "crowd", path, fmt.Sprint("evt_", round))...)
	}
	s := open(t, path)
	large := 0
	for _, id := range printed {
		e, err := s.Event(t.Context(), relay.EventID(id))
		if err != nil {
			t.Fatalf("%s was acknowledged: %v", id, err)
		}
		if len(e.Body) > len(id) {
			large++
		}
		if string(e.Body) != id && !bytes.Equal(e.Body, largeBody(id)) {
			t.Fatalf("%s came back with %d other bytes", id, len(e.Body))
		}
		if ds, err := s.Deliveries(t.Context(), e.ID); err != nil || len(ds) != 1 {
			t.Fatalf("%s came back with deliveries %+v, %v", id, ds, err)
		}
	}
	if large == 0 {
		t.Error("none of them was large")
	}
	usage, err := s.Usage(t.Context())
	if err != nil || len(usage) != 1 {
		t.Fatalf("usage %+v, %v", usage, err)
	}
	n, err := s.CountEvents(t.Context(), relay.EventFilter{})
	if err != nil || usage[0].Events != n || usage[0].Waiting != n || n < len(printed) {
		t.Errorf("%d events are there, %d were acknowledged, the usage says %+v; %v", n, len(printed), usage, err)
	}
}

func TestAnotherProcessCanCreateATokenWhileTheStoreIsBusy(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "postern.db")
	s := open(t, path)
	var out []byte
	ended := make(chan error, 1)
	go func() {
		var err error
		out, err = child(t.Context(), "token", path, "tok_child").CombinedOutput()
		ended <- err
	}()
	for i := 0; ; i++ {
		create(t, s, newEvent(fmt.Sprint("evt_", i)))
		select {
		case err := <-ended:
			if err != nil {
				t.Fatalf("child: %v: %s", err, out)
			}
			tokens, err := s.Tokens(t.Context())
			if err != nil || len(tokens) != 1 || tokens[0].ID != "tok_child" {
				t.Fatalf("tokens: %+v, %v", tokens, err)
			}
			create(t, s, newEvent("evt_last")) // the child's Close took nothing away
			return
		default:
		}
	}
}

func TestManyProcessesMayMakeTheFileAtOnce(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "postern.db")
	const processes = 6
	errs := make(chan error, processes)
	for i := range processes {
		go func() {
			out, err := child(t.Context(), "token", path, fmt.Sprint("tok_", i)).CombinedOutput()
			if err != nil {
				err = fmt.Errorf("child %d: %w: %s", i, err, out)
			}
			errs <- err
		}()
	}
	for range processes {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	tokens, err := open(t, path).Tokens(t.Context())
	if err != nil || len(tokens) != processes {
		t.Fatalf("%d tokens, %v", len(tokens), err)
	}
}

func TestManyStoresOfOneProcessMayMakeTheFileAtOnce(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "postern.db")
	const stores = 6
	errs := make(chan error, stores)
	for i := range stores {
		go func() { errs <- runChild("token", path, fmt.Sprint("tok_", i)) }()
	}
	for range stores {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	tokens, err := open(t, path).Tokens(t.Context())
	if err != nil || len(tokens) != stores {
		t.Fatalf("%d tokens, %v", len(tokens), err)
	}
}

func TestALockThatAnotherProcessKeepsIsAnErrorWithoutCode(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "postern.db")
	s := open(t, path)
	db, err := sql.Open("sqlite", path+"?_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	other, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := s.EnsureApp(ctx, "shop", now()); err == nil || relay.CodeOf(err) != "" {
		t.Fatalf("while locked: %v with code %q", err, relay.CodeOf(err))
	}
	if _, err := s.Apps(t.Context()); err != nil {
		t.Fatalf("reading waits for a writer: %v", err)
	}
	if err := other.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := s.EnsureApp(t.Context(), "shop", now()); err != nil {
		t.Fatalf("after the lock: %v", err)
	}
}
