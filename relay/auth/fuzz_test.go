package auth

import (
	"strings"
	"testing"

	"github.com/posternhq/postern/relay"
)

// FuzzVerify: whatever the bytes, no panic, a proper refusal, and nothing is
// accepted that is not, byte for byte, a token that we issued.
func FuzzVerify(f *testing.F) {
	d := newDesk(f)
	raw, _ := d.issue(f)
	admin := d.ours(f, d.header(f, nil), d.payload(f, object{"scope": "admin"}))
	issued := map[string]bool{raw: true, admin: true}
	for _, seed := range []string{
		raw, admin, "", ".", "..", "...", raw + ".", raw + "\n", raw + "=", " " + raw, flip(raw), loosen(raw),
		strings.Replace(raw, ".", "..", 1), strings.Repeat("A", MaxTokenBytes), strings.Repeat(".", 100),
		b64(`{"alg":"none"}`) + "." + b64(`{}`) + ".",
		b64(`{"alg":"EdDSA","alg":"none"}`) + "." + b64(`{"exp":1e999}`) + ".AA",
		b64(d.header(f, object{"kid": "../x"})) + "." + b64(d.payload(f, nil)) + ".AA",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		_, err := d.verifier.Verify(t.Context(), raw)
		if err == nil && !issued[raw] {
			t.Fatalf("accepted a token that was never issued: %q", raw)
		}
		if err != nil && (ReasonOf(err) == "" || relay.CodeOf(err) == "") {
			t.Fatalf("refused without a reason: %v", err)
		}
	})
}

// FuzzSigned: our own key signs any header and payload, as a faulty issuer
// might. Whatever is accepted must still be a sane principal.
func FuzzSigned(f *testing.F) {
	d := newDesk(f)
	f.Add(d.header(f, nil), d.payload(f, nil))
	f.Add(d.header(f, object{"crit": []string{}}), d.payload(f, object{"exp": 1e300}))
	f.Add(d.header(f, nil), `{"exp":1e999,"iat":-0,"nbf":0.5,"aud":[[]],"sub":{},"jti":null}`)
	f.Add(`{"alg":"EdDSA","alg":"none"}`, `[]`)
	f.Fuzz(func(t *testing.T, header, payload string) {
		p, err := d.verifier.Verify(t.Context(), d.ours(t, header, payload))
		if err != nil {
			if ReasonOf(err) == "" {
				t.Fatalf("refused without a reason: %v", err)
			}
			return
		}
		if !p.Scope.Valid() || p.Token == "" || !p.ExpiresAt.After(start) {
			t.Fatalf("accepted %+v from %q", p, payload)
		}
		if (p.App != "" || p.Scope != relay.ScopeAdmin) && p.App.Validate() != nil {
			t.Fatalf("accepted the app %q", p.App)
		}
	})
}
