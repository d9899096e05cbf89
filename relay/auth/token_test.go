package auth

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/relay"
)

func decode(t *testing.T, part string) object {
	t.Helper()
	text, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		t.Fatal(err)
	}
	var o object
	if err := json.Unmarshal(text, &o); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestATokenSaysWhatItIs(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	raw, token := d.issue(t)
	parts := strings.Split(raw, ".")
	wantHeader := object{"alg": "EdDSA", "typ": "JWT", "kid": d.private(t).ID}
	if got := decode(t, parts[0]); !maps.Equal(got, wantHeader) {
		t.Errorf("header %v, want %v", got, wantHeader)
	}
	now := float64(start.Unix())
	wantPayload := object{
		"iss": "postern", "aud": "postern-relay", "sub": "shop", "scope": "agent", "jti": string(token.ID),
		"iat": now, "nbf": now, "exp": now + 3600,
	}
	if got := decode(t, parts[1]); !maps.Equal(got, wantPayload) {
		t.Errorf("payload %v, want %v", got, wantPayload)
	}
	want := relay.Token{ID: token.ID, App: "shop", Scope: relay.ScopeAgent, IssuedAt: start, ExpiresAt: start.Add(time.Hour)}
	if token != want || !slices.Contains(d.store.tokens, want) {
		t.Errorf("record %+v, want %+v; stored %+v", token, want, d.store.tokens)
	}
}

func TestIssueChecksTheRequest(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		request IssueRequest
		life    time.Duration // 0: refused
	}{
		"the default life":      {IssueRequest{App: "shop", Scope: relay.ScopeAgent}, 720 * time.Hour},
		"the shortest life":     {IssueRequest{App: "shop", Scope: relay.ScopeDeveloper, TTL: MinTTL}, time.Second},
		"the longest life":      {IssueRequest{App: "shop", Scope: relay.ScopeAgent, TTL: MaxTTL}, MaxTTL},
		"a fraction is rounded": {IssueRequest{App: "shop", Scope: relay.ScopeAgent, TTL: 1500 * time.Millisecond}, 2 * time.Second},
		"an admin of all apps":  {IssueRequest{Scope: relay.ScopeAdmin}, 720 * time.Hour},
		"an admin of one app":   {IssueRequest{App: "shop", Scope: relay.ScopeAdmin}, 720 * time.Hour},
		"too short a life":      {IssueRequest{App: "shop", Scope: relay.ScopeAgent, TTL: time.Second - 1}, 0},
		"a negative life":       {IssueRequest{App: "shop", Scope: relay.ScopeAgent, TTL: -time.Hour}, 0},
		"too long a life":       {IssueRequest{App: "shop", Scope: relay.ScopeAgent, TTL: MaxTTL + 1}, 0},
		"an agent of no app":    {IssueRequest{Scope: relay.ScopeAgent}, 0},
		"a developer of no app": {IssueRequest{Scope: relay.ScopeDeveloper}, 0},
		"an app that cannot be": {IssueRequest{App: "Shop", Scope: relay.ScopeAdmin}, 0},
		"an unknown scope":      {IssueRequest{App: "shop", Scope: "root"}, 0},
		"no scope":              {IssueRequest{App: "shop"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			row.request.Now = start
			raw, token, err := d.issuer.Issue(t.Context(), row.request)
			if row.life == 0 {
				if relay.CodeOf(err) != relay.Invalid || raw != "" || len(d.store.tokens) != 0 {
					t.Fatalf("%v with %d stored, want invalid and none", err, len(d.store.tokens))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := token.ExpiresAt.Sub(start); got != row.life {
				t.Errorf("lives %v, want %v", got, row.life)
			}
			if _, err := d.verifier.Verify(t.Context(), raw); err != nil {
				t.Errorf("its own verifier refuses it: %v", err)
			}
		})
	}
}

func TestATokenThatCannotBeRecordedIsNotGiven(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	down := errors.New("disk full")
	d.store.fail(down)
	raw, _, err := d.issuer.Issue(t.Context(), IssueRequest{App: "shop", Scope: relay.ScopeAgent, Now: start})
	if !errors.Is(err, down) || raw != "" {
		t.Fatalf("error %v, token given: %v", err, raw != "")
	}
}
