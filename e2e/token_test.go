package e2e

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
	"github.com/posternhq/postern/protocol"
)

// forger makes tokens with the relay's own key, as nobody should be able to.
type forger struct {
	kid string
	key ed25519.PrivateKey
}

// newForger reads the key from the relay's data folder.
func newForger(t *testing.T, r *rig.Relay) forger {
	t.Helper()
	r.Token("shop") // which makes the first key
	files, err := filepath.Glob(filepath.Join(r.Data, "keys", "*.pem"))
	if err != nil || len(files) != 1 {
		t.Fatalf("key files %q, %v", files, err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("%s is not PEM", files[0])
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return forger{strings.TrimSuffix(filepath.Base(files[0]), ".pem"), key.(ed25519.PrivateKey)}
}

// claims are those of a good token for shop, with changes.
func claims(changes map[string]any) map[string]any {
	now := time.Now().Unix()
	c := map[string]any{
		"iss": "postern", "aud": "postern-relay", "sub": "shop", "scope": "agent", "jti": "tok_forged",
		"iat": now - 7200, "nbf": now - 7200, "exp": now + 3600,
	}
	maps.Copy(c, changes)
	return c
}

func part(v any) string {
	b, _ := json.Marshal(v)
	return base64.RawURLEncoding.EncodeToString(b)
}

// sign makes a token with alg, signed by how.
func (f forger) sign(alg string, claims map[string]any, how func(text string) []byte) string {
	text := part(map[string]any{"alg": alg, "typ": "JWT", "kid": f.kid}) + "." + part(claims)
	return text + "." + base64.RawURLEncoding.EncodeToString(how(text))
}

func (f forger) eddsa(text string) []byte { return ed25519.Sign(f.key, []byte(text)) }

// hs256 is HMAC with the public key as its secret: a verifier that lets the
// token choose the algorithm takes it.
func (f forger) hs256(secret []byte) func(string) []byte {
	return func(text string) []byte {
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(text))
		return mac.Sum(nil)
	}
}

// dialWith runs an agent's handshake and returns how it was refused, nil when it
// was not.
func dialWith(t *testing.T, r *rig.Relay, token string) *protocol.HandshakeError {
	t.Helper()
	s, err := protocol.Dial(t.Context(), protocol.DialConfig{
		URL: r.URL, Token: token, Hello: protocol.Hello{Instance: "web.1", BootID: "0123456789abcdef", Tunnels: 1},
	})
	if err == nil {
		s.Close(protocol.CodeShutdown, "test ends")
		return nil
	}
	var refused *protocol.HandshakeError
	if !errors.As(err, &refused) {
		t.Fatalf("not a refusal: %v", err)
	}
	return refused
}

// wantNoTrace checks that no telling part of a token is in a log.
func wantNoTrace(t *testing.T, token string, logs ...*rig.Log) {
	t.Helper()
	for _, log := range logs {
		for i, piece := range strings.Split(token, ".") {
			// The first part names the algorithm and the key, which is public.
			if i > 0 && len(piece) > 8 && strings.Contains(log.String(), piece) {
				t.Errorf("part %d of a token is in the log", i)
			}
		}
	}
}

func TestATokenThatIsNotGoodIsRefusedWithItsReason(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{Env: []string{"POSTERN_LOG_LEVEL=debug"}})
	f := newForger(t, r)
	public := f.key.Public().(ed25519.PublicKey)
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})
	_, stranger, _ := ed25519.GenerateKey(nil)
	hour := func(n int64) int64 { return time.Now().Unix() + n*3600 }
	good := f.sign("EdDSA", claims(nil), f.eddsa)
	revoked := r.Token("shop")
	r.Verb("token", "revoke", tokenID(t, revoked))
	rig.Eventually(t, cutsWithin, "the relay to read which tokens are revoked", func() error {
		if dialWith(t, r, revoked) == nil {
			return errors.New("the revoked token is still taken")
		}
		return nil
	})

	if refused := dialWith(t, r, good); refused != nil {
		t.Fatalf("the forger's own good token: %v", refused) // else nothing below means anything
	}
	for _, test := range []struct {
		name, token string
		status      int
		reason      string
		permanent   bool
	}{
		{"expired", f.sign("EdDSA", claims(map[string]any{"exp": hour(-1)}), f.eddsa), 401, "token_expired", false},
		{"expired a moment ago", f.sign("EdDSA", claims(map[string]any{"exp": time.Now().Unix() - 1}), f.eddsa), 401, "token_expired", false},
		{"not valid yet", f.sign("EdDSA", claims(map[string]any{"nbf": hour(1), "iat": hour(-1), "exp": hour(2)}), f.eddsa), 401, "token_not_yet_valid", false},
		{"another's audience", f.sign("EdDSA", claims(map[string]any{"aud": "another-relay"}), f.eddsa), 401, "token_audience", false},
		{"another issuer", f.sign("EdDSA", claims(map[string]any{"iss": "elsewhere"}), f.eddsa), 401, "token_issuer", false},
		{"alg none", f.sign("none", claims(nil), func(string) []byte { return nil }), 401, "token_algorithm", false},
		{"alg nOnE, with a signature", f.sign("nOnE", claims(nil), f.eddsa), 401, "token_algorithm", false},
		{"HS256 with the public key", f.sign("HS256", claims(nil), f.hs256(public)), 401, "token_algorithm", false},
		{"HS256 with the public key in PEM", f.sign("HS256", claims(nil), f.hs256(publicPEM)), 401, "token_algorithm", false},
		{"EdDSA that is an HMAC", f.sign("EdDSA", claims(nil), f.hs256(public)), 401, "token_signature", false},
		{"another key", f.sign("EdDSA", claims(nil), func(text string) []byte { return ed25519.Sign(stranger, []byte(text)) }), 401, "token_signature", false},
		{"an unknown key's name", forger{"another", f.key}.sign("EdDSA", claims(nil), f.eddsa), 401, "token_unknown_key", false},
		{"changed claims", swapClaims(good, claims(map[string]any{"sub": "other"})), 401, "token_signature", false},
		{"revoked", revoked, 401, "token_revoked", true},
		{"the scope admin", r.Token("shop", "--scope", "admin"), 403, "token_scope", false},
		{"an unknown scope", f.sign("EdDSA", claims(map[string]any{"scope": "god"}), f.eddsa), 403, "token_scope", false},
		{"no app", f.sign("EdDSA", claims(map[string]any{"sub": ""}), f.eddsa), 403, "token_app", false},
		{"no end", f.sign("EdDSA", claims(map[string]any{"exp": nil}), f.eddsa), 401, "token_malformed", true},
		{"cut off inside a character", good[:len(good)-41], 401, "token_malformed", true},
		{"two parts", good[:strings.LastIndexByte(good, '.')], 401, "token_malformed", true},
		{"no token at all", "certainly-not-a-token", 401, "token_malformed", true},
		{"far too long", good + strings.Repeat("A", 8<<10), 401, "token_malformed", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			refused := dialWith(t, r, test.token)
			if refused == nil {
				t.Fatal("the relay took it")
			}
			if refused.Status != test.status || refused.Reason != test.reason || refused.Message == "" {
				t.Errorf("refused with %d %s %q, expected %d %s", refused.Status, refused.Reason, refused.Message, test.status, test.reason)
			}
			if refused.Permanent() != test.permanent {
				t.Errorf("permanent: %v", refused.Permanent())
			}
			// The same for a client that is not ours, in the form of all refusals.
			req := newRequest(t, http.MethodGet, r.URL+protocol.TunnelPath, nil)
			req.Header.Set("Authorization", "Bearer "+test.token)
			resp, body := do(t, r.Client(), req)
			code := map[int]string{401: "unauthorized", 403: "forbidden"}[test.status]
			if got := wantRefusal(t, resp, body, test.status, code); got.Error.Reason != test.reason {
				t.Errorf("reason %q", got.Error.Reason)
			}
			r.Log.Wait(t, soon, 0, 1, "tunnel refused", test.reason)
			wantNoTrace(t, test.token, r.Log)
		})
	}
	wantNoTrace(t, good, r.Log)
}

// swapClaims puts other claims under a token's signature.
func swapClaims(token string, other map[string]any) string {
	parts := strings.Split(token, ".")
	return parts[0] + "." + part(other) + "." + parts[2]
}

// tokenID is a token's jti.
func tokenID(t *testing.T, token string) string {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("token create printed %d parts", len(parts))
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	var c struct{ JTI string }
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	if err != nil || c.JTI == "" {
		t.Fatalf("the token has no id: %v", err)
	}
	return c.JTI
}

// cutsWithin is how long a revoked token's tunnels may live: the relay looks
// once a second.
const cutsWithin = 4 * time.Second

func TestRevokingATokenCutsItsTunnelAndEndsTheAgent(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{Env: []string{"POSTERN_LOG_LEVEL=debug", "POSTERN_PARK=200ms"}})
	app := rig.Serve(t, http.HandlerFunc(serveMirror))
	lost, kept := r.Token("shop"), r.Token("blog")
	agent := r.StartAgent(app, rig.AgentConfig{Token: lost, Env: []string{"POSTERN_LOG_LEVEL=debug"}})
	other := r.StartAgent(app, rig.AgentConfig{App: "blog", Token: kept})
	look(t, r.Client(), newRequest(t, http.MethodGet, r.AppURL("shop", "/"), nil))

	mark := r.Log.Len()
	r.Verb("token", "revoke", tokenID(t, lost))
	r.Log.Wait(t, cutsWithin, mark, agent.Tunnels, `msg="tunnel `, "instance="+agent.Instance+" ")
	if code := agent.ExitCode(soon); code != 1 {
		t.Errorf("the agent ended with %d, expected 1", code)
	}
	if agent.Log.Count(0, "token_revoked") == 0 {
		t.Error("the agent does not say why it gives up")
	}
	resp, body := do(t, r.Client(), newRequest(t, http.MethodGet, r.AppURL("shop", "/"), nil))
	wantRefusal(t, resp, body, http.StatusServiceUnavailable, "no_agent")
	// One try for each tunnel told it; nobody goes on knocking.
	if n := r.Log.Count(mark, "tunnel refused", "token_revoked"); n < 1 || n > agent.Tunnels {
		t.Errorf("%d attempts with the revoked token", n)
	}
	look(t, r.Client(), newRequest(t, http.MethodGet, r.AppURL("blog", "/"), nil))
	if !other.Running() {
		t.Error("the agent of another token has ended")
	}
	wantNoTrace(t, lost, r.Log, agent.Log)
}

func TestAnAppRunsOnWhenItsTokenIsRevoked(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	token := r.Token("shop")
	run := r.StartRun(rig.AppCommand(t, rig.Serve(t, http.HandlerFunc(serveMirror))), rig.AgentConfig{Token: token})
	r.Verb("token", "revoke", tokenID(t, token))
	run.Log.Wait(t, soon, 0, 1, "level=ERROR", "app runs on without a tunnel")
	req := newRequest(t, http.MethodGet, "http://"+run.Target+"/still-here", nil)
	req.Close = true // the app ends only when its last connection has
	resp, body := do(t, http.DefaultClient, req)
	if got := reflected(t, resp, body); got.Target != "/still-here" {
		t.Errorf("the app got %s", got.Target)
	}
	if code := run.Stop(); code != 0 {
		t.Errorf("the app's exit code became %d", code)
	}
}

func TestAnAgentWhoseTokenMayHealGoesOnTrying(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{Env: []string{"POSTERN_LOG_LEVEL=debug"}})
	expired := newForger(t, r)
	token := expired.sign("EdDSA", claims(map[string]any{"exp": time.Now().Unix() - 60}), expired.eddsa)
	agent := r.StartAgent(rig.FreeAddr(t), rig.AgentConfig{
		Token: token, Tunnels: 1, NoWait: true, Env: []string{"POSTERN_LOG_LEVEL=debug"},
	})
	r.Log.Wait(t, soon, 0, 4, "tunnel refused", "token_expired")
	if !agent.Running() {
		t.Error("the agent gave up")
	}
	wantNoTrace(t, token, r.Log, agent.Log)
}

func TestAMalformedTokenEndsTheAgentAtOnce(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{Env: []string{"POSTERN_LOG_LEVEL=debug"}})
	const token = "eyJhbGciOiJFZERTQSJ9.this-is-not-a-payload"
	agent := r.StartAgent(rig.FreeAddr(t), rig.AgentConfig{
		Token: token, Tunnels: 1, NoWait: true, Env: []string{"POSTERN_LOG_LEVEL=debug"},
	})
	if code := agent.ExitCode(soon); code != 1 {
		t.Errorf("the agent ended with %d, expected 1", code)
	}
	if agent.Log.Count(0, "token_malformed") == 0 {
		t.Error("the agent does not say why")
	}
	if n := r.Log.Count(0, "tunnel refused"); n != 1 {
		t.Errorf("%d attempts", n)
	}
	wantNoTrace(t, token, r.Log, agent.Log)
}

func TestAnAgentServesItsTokensAppAndNoOther(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{Env: []string{"POSTERN_PARK=200ms"}})
	r.Token("other")
	var got []string
	r.StartAgent(rig.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		got = append(got, req.Host)
		io.WriteString(w, "shop's answer")
	})), rig.AgentConfig{App: "shop"})
	resp, body := do(t, r.Client(), newRequest(t, http.MethodGet, r.AppURL("other", "/"), nil))
	wantRefusal(t, resp, body, http.StatusServiceUnavailable, "no_agent")
	if _, body := do(t, r.Client(), newRequest(t, http.MethodGet, r.AppURL("shop", "/"), nil)); string(body) != "shop's answer" {
		t.Errorf("shop answers %q", body)
	}
	if want := fmt.Sprint([]string{r.AppHost("shop")}); fmt.Sprint(got) != want {
		t.Errorf("shop's agent was asked for %v", got)
	}
}

func TestATunnelNeedsATokenInItsHeader(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	token := r.Token("shop")
	for name, change := range map[string]func(*http.Request){
		"none":             func(*http.Request) {},
		"in the query":     func(req *http.Request) { req.URL.RawQuery = "token=" + token + "&access_token=" + token },
		"as a password":    func(req *http.Request) { req.SetBasicAuth("x", token) },
		"in a cookie":      func(req *http.Request) { req.Header.Set("Cookie", "token="+token) },
		"without a scheme": func(req *http.Request) { req.Header.Set("Authorization", token) },
		"an empty one":     func(req *http.Request) { req.Header.Set("Authorization", "Bearer ") },
	} {
		req := newRequest(t, http.MethodGet, r.URL+protocol.TunnelPath, nil)
		change(req)
		resp, body := do(t, r.Client(), req)
		t.Run(name, func(t *testing.T) {
			if got := wantRefusal(t, resp, body, http.StatusUnauthorized, "unauthorized"); got.Error.Reason != "token_missing" {
				t.Errorf("reason %q", got.Error.Reason)
			}
		})
	}
	wantNoTrace(t, token, r.Log)
}
