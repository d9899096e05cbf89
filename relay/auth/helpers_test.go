package auth

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/posternhq/postern/relay"
)

// start is when every test begins.
var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// clock is a clock that only moves when told.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: start} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// memory is a relay.TokenStore in memory. Setting err makes every call fail.
type memory struct {
	mu     sync.Mutex
	err    error
	tokens []relay.Token
}

func (m *memory) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

func (m *memory) CreateToken(_ context.Context, t relay.Token) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.tokens = append([]relay.Token{t}, m.tokens...)
	}
	return m.err
}

func (m *memory) RevokeToken(_ context.Context, id relay.TokenID, now time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.tokens {
		if m.tokens[i].ID == id && m.err == nil {
			m.tokens[i].RevokedAt = now
			return nil
		}
	}
	if m.err != nil {
		return m.err
	}
	return relay.Errorf(relay.NotFound, "no token %s", id)
}

func (m *memory) Tokens(context.Context) ([]relay.Token, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]relay.Token(nil), m.tokens...), m.err
}

func (m *memory) RevokedTokens(_ context.Context, now time.Time) ([]relay.TokenID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ids []relay.TokenID
	for _, t := range m.tokens {
		if !t.RevokedAt.IsZero() && t.ExpiresAt.After(now) {
			ids = append(ids, t.ID)
		}
	}
	return ids, m.err
}

// desk is everything of this package around one folder of keys and one store.
type desk struct {
	clock       *clock
	store       *memory
	keys        *Keyring
	issuer      *Issuer
	revocations *Revocations
	verifier    *Verifier
}

func newDesk(t testing.TB) *desk {
	t.Helper()
	d := &desk{clock: newClock(), store: &memory{}}
	d.keys = openRing(t, t.TempDir()+"/keys", d.clock)
	d.issuer = NewIssuer(IssuerConfig{Keys: d.keys, Tokens: d.store})
	d.revocations = NewRevocations(RevocationsConfig{Tokens: d.store, Now: d.clock.Now})
	if err := d.revocations.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.verifier = NewVerifier(VerifierConfig{Keys: d.keys, Revocations: d.revocations, Now: d.clock.Now})
	return d
}

func openRing(t testing.TB, dir string, c *clock) *Keyring {
	t.Helper()
	ring, err := openKeyring(dir, c.Now)
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

// issue makes an agent's token for the app shop.
func (d *desk) issue(t testing.TB) (string, relay.Token) {
	t.Helper()
	raw, token, err := d.issuer.Issue(t.Context(), IssueRequest{App: "shop", Scope: relay.ScopeAgent, TTL: time.Hour, Now: d.clock.Now()})
	if err != nil {
		t.Fatal(err)
	}
	return raw, token
}

// private is the key that signs now.
func (d *desk) private(t testing.TB) key {
	t.Helper()
	k, err := d.keys.signing()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

type object = map[string]any

// header is what the Issuer writes, with changes; a nil value removes a member.
func (d *desk) header(t testing.TB, changes object) string {
	return edit(t, object{"alg": "EdDSA", "typ": "JWT", "kid": d.private(t).ID}, changes)
}

// payload is what the Issuer writes, with changes; a nil value removes a member.
func (d *desk) payload(t testing.TB, changes object) string {
	now := d.clock.Now().Unix()
	return edit(t, object{
		"iss": "postern", "aud": "postern-relay", "sub": "shop", "scope": "agent", "jti": "tok_1",
		"iat": now, "nbf": now, "exp": now + 3600,
	}, changes)
}

func edit(t testing.TB, o, changes object) string {
	t.Helper()
	maps.Copy(o, changes)
	maps.DeleteFunc(o, func(_ string, v any) bool { return v == nil })
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func b64(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }

// ours signs header and payload, whatever they are, with the relay's own key.
func (d *desk) ours(t testing.TB, header, payload string) string {
	t.Helper()
	return signed(t, header, payload, d.private(t).private)
}

func signed(t testing.TB, header, payload string, by ed25519.PrivateKey) string {
	t.Helper()
	text := b64(header) + "." + b64(payload)
	sig, err := by.Sign(nil, []byte(text), crypto.Hash(0))
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + b64(string(sig))
}

// wantReason checks that err is a proper refusal for want.
func wantReason(t testing.TB, err error, want Reason) {
	t.Helper()
	if got := ReasonOf(err); got != want {
		t.Fatalf("reason %q (%v), want %q", got, err, want)
	}
	wantCode := relay.Unauthorized
	if want == TokenScope || want == TokenApp {
		wantCode = relay.Forbidden
	}
	refusal, ok := err.(*relay.Error)
	if !ok || refusal.Code != wantCode {
		t.Fatalf("%#v is not a *relay.Error of code %s", err, wantCode)
	}
	if refusal.Message == "" {
		t.Fatal("the refusal has no message")
	}
}
