package auth

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/posternhq/postern/relay"
)

func TestAFreshTokenSpeaksForItsApp(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	raw, token := d.issue(t)
	p, err := d.verifier.Verify(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	want := relay.Principal{Token: token.ID, App: "shop", Scope: relay.ScopeAgent, ExpiresAt: token.ExpiresAt}
	if p != want {
		t.Fatalf("principal %+v, want %+v", p, want)
	}
}

// Each row changes one thing of a token that is otherwise ours and correctly
// signed by our key.
func TestRefusesWhatWeWouldNeverIssue(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	now := start.Unix()
	for name, row := range map[string]struct {
		header, payload object
		want            Reason
	}{
		"expired this second":               {payload: object{"iat": now - 60, "exp": now}, want: TokenExpired},
		"expired, within the leeway":        {payload: object{"iat": now - 60, "exp": now - 1}, want: TokenExpired},
		"expired long ago":                  {payload: object{"iat": 1000, "exp": 2000}, want: TokenExpired},
		"no end":                            {payload: object{"exp": nil}, want: TokenMalformed},
		"an end that is text":               {payload: object{"exp": "2030-01-01"}, want: TokenMalformed},
		"an end that is digits in text":     {payload: object{"exp": "9999999999"}, want: TokenMalformed},
		"an end beyond all calendars":       {payload: object{"exp": 1e300}, want: TokenMalformed},
		"an end before 1970":                {payload: object{"exp": -5}, want: TokenMalformed},
		"an end of true":                    {payload: object{"exp": true}, want: TokenMalformed},
		"ends before it was made":           {payload: object{"exp": now + 5, "iat": now + 20}, want: TokenMalformed},
		"no time of making":                 {payload: object{"iat": nil}, want: TokenMalformed},
		"made in the future":                {payload: object{"iat": now + 31}, want: TokenNotYetValid},
		"begins in the future":              {payload: object{"nbf": now + 31}, want: TokenNotYetValid},
		"a beginning that is text":          {payload: object{"nbf": "now"}, want: TokenMalformed},
		"a beginning before 1970":           {payload: object{"nbf": -5}, want: TokenMalformed},
		"an end after the year 9999":        {payload: object{"exp": maxDate + 1}, want: TokenMalformed},
		"another issuer":                    {payload: object{"iss": "https://evil.example"}, want: TokenIssuer},
		"no issuer":                         {payload: object{"iss": nil}, want: TokenIssuer},
		"issuer in capitals":                {payload: object{"iss": "Postern"}, want: TokenIssuer},
		"an issuer that is a list":          {payload: object{"iss": []string{"postern"}}, want: TokenMalformed},
		"another audience":                  {payload: object{"aud": "other"}, want: TokenAudience},
		"other audiences":                   {payload: object{"aud": []string{"a", "b"}}, want: TokenAudience},
		"no audience":                       {payload: object{"aud": nil}, want: TokenAudience},
		"an empty list of audiences":        {payload: object{"aud": []string{}}, want: TokenAudience},
		"a number among the audiences":      {payload: object{"aud": []any{"postern-relay", 1}}, want: TokenMalformed},
		"no id":                             {payload: object{"jti": nil}, want: TokenMalformed},
		"an empty id":                       {payload: object{"jti": ""}, want: TokenMalformed},
		"an id with a line break":           {payload: object{"jti": "a\nb"}, want: TokenMalformed},
		"an endless id":                     {payload: object{"jti": strings.Repeat("a", 65)}, want: TokenMalformed},
		"no scope":                          {payload: object{"scope": nil}, want: TokenScope},
		"an unknown scope":                  {payload: object{"scope": "root"}, want: TokenScope},
		"two scopes in one":                 {payload: object{"scope": "agent admin"}, want: TokenScope},
		"a list of scopes":                  {payload: object{"scope": []string{"agent"}}, want: TokenMalformed},
		"no app for an agent":               {payload: object{"sub": nil}, want: TokenApp},
		"no app for a developer":            {payload: object{"sub": "", "scope": "developer"}, want: TokenApp},
		"an app that is a path":             {payload: object{"sub": "../shop"}, want: TokenApp},
		"an admin of an app that cannot be": {payload: object{"sub": "a.b", "scope": "admin"}, want: TokenApp},

		"no kid":                     {header: object{"kid": nil}, want: TokenMalformed},
		"an empty kid":               {header: object{"kid": ""}, want: TokenMalformed},
		"a kid that climbs":          {header: object{"kid": "../../etc/passwd"}, want: TokenMalformed},
		"a kid that climbs to a key": {header: object{"kid": "x/../" + d.private(t).ID}, want: TokenMalformed},
		"a kid with its suffix":      {header: object{"kid": d.private(t).ID + ".pem"}, want: TokenMalformed},
		"a kid with a zero byte":     {header: object{"kid": d.private(t).ID + "\x00"}, want: TokenMalformed},
		"a kid that is a number":     {header: object{"kid": 1}, want: TokenMalformed},
		"an unknown kid":             {header: object{"kid": "0123456789abcdef0123456789abcdef"}, want: TokenUnknownKey},
		"a kid in capitals":          {header: object{"kid": strings.ToUpper(d.private(t).ID)}, want: TokenMalformed},
		"no type":                    {header: object{"typ": nil}, want: TokenMalformed},
		"another type":               {header: object{"typ": "at+jwt"}, want: TokenMalformed},
		"critical extensions":        {header: object{"crit": []string{"b64"}, "b64": false}, want: TokenMalformed},
		"alg none":                   {header: object{"alg": "none"}, want: TokenAlgorithm},
		"alg in other letters":       {header: object{"alg": "eddsa"}, want: TokenAlgorithm},
		"no alg":                     {header: object{"alg": nil}, want: TokenAlgorithm},
		"alg as a list":              {header: object{"alg": []string{"EdDSA"}}, want: TokenAlgorithm},
		"alg of an unknown kind":     {header: object{"alg": "Ed25519"}, want: TokenAlgorithm},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			raw := d.ours(t, d.header(t, row.header), d.payload(t, row.payload))
			_, err := d.verifier.Verify(t.Context(), raw)
			wantReason(t, err, row.want)
			wantNoLeak(t, err, raw)
		})
	}
}

// wantNoLeak checks that no part of the token is in the error.
func wantNoLeak(t *testing.T, err error, raw string) {
	t.Helper()
	for _, part := range strings.Split(raw, ".") {
		if len(part) > 8 && strings.Contains(err.Error(), part) {
			t.Fatalf("the error repeats a part of the token: %v", err)
		}
	}
}

func TestAcceptsTheEdgesOfWhatIsAllowed(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	now := start.Unix()
	for name, row := range map[string]struct{ header, payload object }{
		"one second left":                  {payload: object{"exp": now + 1}},
		"fractions of a second":            {payload: object{"exp": float64(now) + 1.5}},
		"made by a clock 30 s ahead":       {payload: object{"iat": now + 30, "nbf": now + 30}},
		"no beginning":                     {payload: object{"nbf": nil}},
		"our audience among others":        {payload: object{"aud": []string{"other", "postern-relay"}}},
		"an admin without an app":          {payload: object{"sub": nil, "scope": "admin"}},
		"claims that we do not know":       {payload: object{"groups": []string{"a"}, "EXP": 1, "x": object{"exp": 1}}},
		"type in small letters":            {header: object{"typ": "jwt"}},
		"header members we do not look at": {header: object{"jku": "https://evil.example", "x5c": []string{"x"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			raw := d.ours(t, d.header(t, row.header), d.payload(t, row.payload))
			if _, err := d.verifier.Verify(t.Context(), raw); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// RFC 7519 section 4 allows to refuse a repeated name or to take the last one.
// We refuse, because the two answers of two readers are two different tokens.
func TestRefusesRepeatedMembers(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	twice := func(object, more string) string { return strings.TrimSuffix(object, "}") + "," + more + "}" }
	for name, raw := range map[string]string{
		"sub twice":               d.ours(t, d.header(t, nil), twice(d.payload(t, nil), `"sub":"bank"`)),
		"the same sub twice":      d.ours(t, d.header(t, nil), twice(d.payload(t, nil), `"sub":"shop"`)),
		"exp twice, one escaped":  d.ours(t, d.header(t, nil), twice(d.payload(t, nil), `"\u0065xp":9999999999`)),
		"alg twice in the header": d.ours(t, twice(d.header(t, nil), `"alg":"EdDSA"`), d.payload(t, nil)),
		"kid twice in the header": d.ours(t, twice(d.header(t, nil), `"kid":"other"`), d.payload(t, nil)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := d.verifier.Verify(t.Context(), raw)
			wantReason(t, err, TokenMalformed)
		})
	}
}

// A name in other letters is another claim, which matters because Go's own JSON
// structs would take it.
func TestNamesAreComparedExactly(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	raw := d.ours(t, d.header(t, nil), d.payload(t, object{"exp": nil, "EXP": start.Unix() + 60}))
	_, err := d.verifier.Verify(t.Context(), raw)
	wantReason(t, err, TokenMalformed)
}

func TestATokenEndsOnTime(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	raw, _ := d.issue(t)
	d.clock.advance(time.Hour - time.Second)
	if _, err := d.verifier.Verify(t.Context(), raw); err != nil {
		t.Fatalf("in its last second: %v", err)
	}
	d.clock.advance(time.Second)
	_, err := d.verifier.Verify(t.Context(), raw)
	wantReason(t, err, TokenExpired)
	if want := "expired on 2026-03-01T13:00:00Z; make a new one with postern-relay token create"; !strings.Contains(err.Error(), want) {
		t.Fatalf("%q does not say %q", err, want)
	}
}

func TestAnotherAudienceIsConfigurable(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	issuer := NewIssuer(IssuerConfig{Keys: d.keys, Tokens: d.store, Audience: "staging"})
	raw, _, err := issuer.Issue(t.Context(), IssueRequest{App: "shop", Scope: relay.ScopeAgent, Now: start})
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.verifier.Verify(t.Context(), raw)
	wantReason(t, err, TokenAudience)
	staging := NewVerifier(VerifierConfig{Keys: d.keys, Revocations: d.revocations, Audience: "staging", Now: d.clock.Now})
	if _, err := staging.Verify(t.Context(), raw); err != nil {
		t.Fatal(err)
	}
}

func TestOnlyRevokedAndMalformedArePermanent(t *testing.T) {
	t.Parallel()
	for _, r := range []Reason{
		"", TokenMissing, TokenMalformed, TokenAlgorithm, TokenSignature, TokenUnknownKey, TokenExpired,
		TokenNotYetValid, TokenIssuer, TokenAudience, TokenRevoked, TokenScope, TokenApp,
	} {
		if got, want := Permanent(r), r == TokenRevoked || r == TokenMalformed; got != want {
			t.Errorf("Permanent(%q) is %v", r, got)
		}
	}
}

// Everything at once, for the race detector: no answer may be wrong meanwhile.
func TestWorksUnderConcurrentChange(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	raw, _ := d.issue(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				if _, err := d.verifier.Verify(t.Context(), raw); err != nil {
					t.Errorf("verify: %v", err)
				}
			}
		})
	}
	wg.Go(func() {
		for range 10 {
			if _, err := d.keys.Rotate(d.clock.Now()); err != nil {
				t.Errorf("rotate: %v", err)
			}
			d.clock.advance(time.Second)
		}
	})
	wg.Go(func() {
		for range 20 {
			fresh, token, err := d.issuer.Issue(t.Context(), IssueRequest{App: "shop", Scope: relay.ScopeAgent, Now: d.clock.Now()})
			if err != nil {
				t.Errorf("issue: %v", err)
				continue
			}
			if _, err := d.verifier.Verify(t.Context(), fresh); err != nil {
				t.Errorf("verify a fresh one: %v", err)
			}
			if err := d.store.RevokeToken(t.Context(), token.ID, d.clock.Now()); err != nil {
				t.Errorf("revoke: %v", err)
			}
			if err := d.revocations.Load(t.Context()); err != nil {
				t.Errorf("load: %v", err)
			}
			if _, err := d.verifier.Verify(t.Context(), fresh); ReasonOf(err) != TokenRevoked {
				t.Errorf("a revoked token: %v", err)
			}
		}
	})
	wg.Wait()
}
