package auth

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/relay"
)

func TestARevokedTokenIsRefused(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	raw, token := d.issue(t)
	other, _ := d.issue(t)
	if err := d.store.RevokeToken(t.Context(), token.ID, start); err != nil {
		t.Fatal(err)
	}
	if err := d.revocations.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := d.verifier.Verify(t.Context(), raw)
	wantReason(t, err, TokenRevoked)
	if _, err := d.verifier.Verify(t.Context(), other); err != nil {
		t.Fatalf("another token: %v", err)
	}
}

func TestNoTokenPassesBeforeTheFirstLoad(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	raw, _ := d.issue(t)
	unloaded := NewRevocations(RevocationsConfig{Tokens: d.store, Now: d.clock.Now})
	v := NewVerifier(VerifierConfig{Keys: d.keys, Revocations: unloaded, Now: d.clock.Now})
	unavailable := func() {
		t.Helper()
		if _, err := v.Verify(t.Context(), raw); relay.CodeOf(err) != relay.Unavailable || ReasonOf(err) != "" {
			t.Fatalf("error %v, want unavailable", err)
		}
	}
	unavailable()
	d.store.fail(errors.New("down"))
	if err := unloaded.Load(t.Context()); err == nil {
		t.Fatal("the load did not fail")
	}
	unavailable()
	d.store.fail(nil)
	if err := unloaded.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(t.Context(), raw); err != nil {
		t.Fatal(err)
	}
}

// live runs revocations in a synctest bubble until the test ends.
func live(t *testing.T, store relay.TokenStore, log *bytes.Buffer) *Revocations {
	t.Helper()
	r := NewRevocations(RevocationsConfig{Tokens: store, Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err := r.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return r
}

func record(t *testing.T, store *memory) relay.Token {
	t.Helper()
	token := relay.Token{ID: relay.NewTokenID(time.Now()), App: "shop", Scope: relay.ScopeAgent, ExpiresAt: time.Now().Add(time.Hour)}
	if err := store.CreateToken(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	return token
}

// `token revoke` in another process changes the store and nothing else.
func TestRunNoticesARevocationWithinASecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &memory{}
		token := record(t, store)
		r := live(t, store, &bytes.Buffer{})
		changed := r.Changed()
		if r.Revoked(token.ID) {
			t.Fatal("revoked too early")
		}
		began := time.Now()
		if err := store.RevokeToken(t.Context(), token.ID, began); err != nil {
			t.Fatal(err)
		}
		<-changed
		if !r.Revoked(token.ID) {
			t.Fatal("told of a change, but not revoked")
		}
		if took := time.Since(began); took > time.Second {
			t.Fatalf("noticed after %v", took)
		}
	})
}

func TestChangedTellsOfNewRevocationsOnly(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	_, token := d.issue(t)
	told := func(changed <-chan struct{}) bool {
		select {
		case <-changed:
			return true
		default:
			return false
		}
	}
	load := func() {
		t.Helper()
		if err := d.revocations.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	changed := d.revocations.Changed()
	load()
	if told(changed) {
		t.Fatal("told of nothing")
	}
	if err := d.store.RevokeToken(t.Context(), token.ID, start); err != nil {
		t.Fatal(err)
	}
	load()
	if !told(changed) {
		t.Fatal("not told of a revocation")
	}
	changed = d.revocations.Changed()
	load()
	d.clock.advance(2 * time.Hour) // the token expires and leaves the set
	load()
	if told(changed) {
		t.Fatal("told again")
	}
	if d.revocations.Revoked(token.ID) {
		t.Fatal("an expired token is still kept")
	}
}

func TestAFailingStoreLeavesTheKnownSetAndIsLoggedOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &memory{}
		token := record(t, store)
		if err := store.RevokeToken(t.Context(), token.ID, time.Now()); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		r := live(t, store, &log)
		store.fail(errors.New("disk gone"))
		<-time.After(5500 * time.Millisecond) // the bubble's time: five refreshes
		synctest.Wait()
		if !r.Revoked(token.ID) {
			t.Fatal("a failing store un-revoked a token")
		}
		if got := strings.Count(log.String(), "level=WARN"); got != 1 || !strings.Contains(log.String(), "disk gone") {
			t.Fatalf("%d warnings, want 1:\n%s", got, &log)
		}
		store.fail(nil)
		<-time.After(2 * time.Second)
		synctest.Wait()
		if got := strings.Count(log.String(), "level=INFO"); got != 1 {
			t.Fatalf("%d notes that it is back, want 1:\n%s", got, &log)
		}
	})
}

// slow is a store whose every answer is taken at the call and given when told.
type slow struct {
	memory
	asked chan chan struct{}
}

func (s *slow) RevokedTokens(ctx context.Context, now time.Time) ([]relay.TokenID, error) {
	ids, err := s.memory.RevokedTokens(ctx, now)
	answer := make(chan struct{})
	s.asked <- answer
	select {
	case <-answer:
		return ids, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Regression: a refresh that read the store before a revocation, and came back
// after the load that saw it, would have un-revoked the token for a second.
func TestAnOlderLoadDoesNotUndoANewerOne(t *testing.T) {
	t.Parallel()
	store := &slow{asked: make(chan chan struct{})}
	token := relay.Token{ID: "tok_1", ExpiresAt: start.Add(time.Hour)}
	if err := store.CreateToken(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	r := NewRevocations(RevocationsConfig{Tokens: store, Now: newClock().Now})
	older, newer := make(chan error, 1), make(chan error, 1)
	go func() { older <- r.Load(t.Context()) }()
	answerOlder := <-store.asked
	if err := store.RevokeToken(t.Context(), token.ID, start); err != nil {
		t.Fatal(err)
	}
	go func() { newer <- r.Load(t.Context()) }()
	close(<-store.asked)
	if err := <-newer; err != nil {
		t.Fatal(err)
	}
	close(answerOlder)
	if err := <-older; err != nil {
		t.Fatal(err)
	}
	if !r.Revoked(token.ID) {
		t.Fatal("the older load won")
	}
}

func TestAHangingStoreIsGivenUpAndAskedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &slow{asked: make(chan chan struct{})}
		var log bytes.Buffer
		r := NewRevocations(RevocationsConfig{Tokens: store, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		<-store.asked // never answered
		<-store.asked
		if !strings.Contains(log.String(), "deadline exceeded") {
			t.Errorf("log: %s", &log)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}
