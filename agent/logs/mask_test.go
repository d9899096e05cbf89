package logs

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/protocol"
)

// masked is what a Log keeps of text.
func masked(text string, secrets ...string) string {
	l := New(Config{Secrets: secrets})
	l.Add(Stdout, text)
	var all []string
	for _, line := range l.Tail(1000) {
		all = append(all, line.Text)
	}
	return strings.Join(all, "\n")
}

const jwt = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"

func TestSecretIsMaskedByItsLooks(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ in, want string }{
		{`password=hunter2 user=bob`, `password=[hidden] user=bob`},
		{`Password: hunter2`, `Password: [hidden]`},
		{`{"password":"hun\"ter2","user":"bob"}`, `{"password":"[hidden]","user":"bob"}`},
		{`{"msg":"{\"password\":\"hun\\\"ter\",\"user\":\"bob\"}"}`, `{"msg":"{\"password\":\"[hidden]\",\"user\":\"bob\"}"}`},
		{`Parameters: {"user"=>"bob", "password_confirmation"=>"hunter2"}`, `Parameters: {"user"=>"bob", "password_confirmation"=>"[hidden]"}`},
		{`{'secret_key': b'hunter2', 'a': 1}`, `{'secret_key': b'[hidden]', 'a': 1}`},
		{`map[token:hunter2 user:bob]`, `map[token:[hidden] user:bob]`},
		{`GET /?access_token=hunter2&page=2 200`, `GET /?access_token=[hidden]&page=2 200`},
		{`POST body=a%3D1&x=%7B%22password%22%3A%22hunter2%22%7D&y=1`, `POST body=a%3D1&x=%7B%22password%22%3A%22[hidden]&y=1`},
		{`mysqldump --password hunter2 --host db`, `mysqldump --password [hidden] --host db`},
		{`run --db-password=hunter2 --host db`, `run --db-password=[hidden] --host db`},
		{`<password>hunter2</password><user>bob</user>`, `<password>[hidden]</password><user>bob</user>`},
		{`SECRET_KEY_BASE=hunter2hunter2`, `SECRET_KEY_BASE=[hidden]`},
		{`DB_PASS=hunter2 API_KEY_2=abc x-api-key: abc`, `DB_PASS=[hidden] API_KEY_2=[hidden] x-api-key: [hidden]`},
		{`host=db user=app pwd=hunter2`, `host=db user=app pwd=[hidden]`},
		{`"Authorization": "Basic dXNlcjpwYXNz"`, `"Authorization": "[hidden]"`},
		{`> Authorization: Bearer abcdefgh`, `> Authorization: Bearer [hidden]`},
		{`authorization: AWS4-HMAC-SHA256 Credential=AKIA/x, Signature=12ab`, `authorization: AWS4-HMAC-SHA256[hidden]`},
		{`Authorization:[Bearer abcdefgh] Accept:[x]`, `Authorization:[Bearer [hidden] Accept:[x]`},
		{`sent Bearer abcdefghijkl to it`, `sent Bearer [hidden] to it`},
		{`Basic dXNlcjpwYXNzd29yZA== was sent`, `Basic [hidden] was sent`},
		{`Set-Cookie: sid=abcdef; Path=/`, `Set-Cookie: [hidden]`},
		{`{"cookie":"sid=abcdef; a=b","x":1}`, `{"cookie":"[hidden]","x":1}`},
		{`key sk_live_` + `4eC39HqLyjWDarjtT1zdp7dc ok`, `key [hidden] ok`},
		{`whsec_` + `MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw`, `[hidden]`},
		{`id AKIAIOSFODNN7EXAMPLE.`, `id [hidden]`},
		{`line\nAKIAIOSFODNN7EXAMPLE\n`, `line\n[hidden]\n`},
		{`ghp_` + `16C7e42F292c6912E7710c838347Ae178B4a`, `[hidden]`},
		{`SG.` + `ngeVfQFYQlKU0ufo8x5d1A.TwL2iGABf9DHoTf-09kqeF8tAmbihYzrnopKc-1s5cr`, `[hidden]`},
		{`jwt=` + jwt + `; path`, `jwt=[hidden]; path`},
		{`postgres://app:hun@ter2@db:5432/x?sslmode=on`, `postgres://app:[hidden]@db:5432/x?sslmode=on`},
		{`redis://:hunter2@cache:6379`, `redis://:[hidden]@cache:6379`},
		{`https://0123456789abcdef0123@github.com/a/b`, `https://[hidden]@github.com/a/b`},
		{`postgres://app:hun/ter2@db/x`, `postgres://app:[hidden]@db/x`},
		{"-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA1234\nQw==\n-----END RSA PRIVATE KEY----- after\nnext",
			"[hidden]\n[hidden]\n[hidden]\n[hidden] after\nnext"},
		{`{"private_key_text":1,"pem":"-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\n","x":1}`,
			`{"private_key_text":[hidden],"pem":"[hidden]\n","x":1}`},
		{"-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIIGLl0tz7/6R+\nthe\nkey\nwas\nbad", "[hidden]\n[hidden]\n[hidden]\n[hidden]\nwas\nbad"},
	} {
		if got := masked(test.in); got != test.want {
			t.Errorf("%s\n got %s\nwant %s", test.in, got, test.want)
		}
	}
}

func TestOrdinaryLinesStayAsTheyAre(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		`Listening on http://localhost:3000`, `GET http://localhost:3000/users/@me 200`,
		`listening on http://[::]:8080/ at 3`, `see https://example.com/a:b@c for more`,
		`tests pass; 12 passed, bypass=1`, `PWD=/app`, `passenger: bob`, `usage: {"prompt_tokens": 12, "max_tokens":4096}`,
		`SyntaxError: Unexpected token < in JSON at position 0`, `the token has expired`, `password: required`, `{"password":null}`,
		`password=[FILTERED]`, `password=***`, `WWW-Authenticate: Bearer realm="api"`, `Bearer token is missing`, `Basic authentication failed`,
		`key-value store`, `task-list sk-learn-model-evaluation-metrics`, `-----BEGIN CERTIFICATE-----`, `ASIAN and AKIA`, `eyJust a word.`,
		`primary_key=id cache_key=views/1`, `secretary: Bob`, `at /app/token.go:12`, `monkey patched`, ``,
	} {
		if got := masked(text); got != text {
			t.Errorf("%s\nbecame %s", text, got)
		}
	}
}

func TestSecretIsMaskedByItsValue(t *testing.T) {
	t.Parallel()
	const secret = `p@ss w/"rd<&>\ü7+x`
	quoted, _ := json.Marshal(secret)
	spellings := map[string]string{
		"plain":          secret,
		"query":          url.QueryEscape(secret),
		"path":           url.PathEscape(secret),
		"JSON":           string(quoted[1 : len(quoted)-1]),
		"Go":             strings.Trim(fmt.Sprintf("%q", secret), `"`),
		"base64":         base64.StdEncoding.EncodeToString([]byte(secret)),
		"base64, behind": base64.StdEncoding.EncodeToString([]byte("api:" + secret)),
		"base64 for URL": base64.URLEncoding.EncodeToString([]byte("ab" + secret + "c")),
	}
	for name, text := range spellings {
		for _, around := range []string{"%s", "x=%s", "<%s>", "aa%saa"} {
			in := fmt.Sprintf(around, text)
			got := masked(in, "something else", secret, "another one")
			if !strings.Contains(got, hidden) || strings.Contains(got, text[4:len(text)-4]) {
				t.Errorf("%s: %s became %s", name, in, got)
			}
		}
	}
	two := masked("abcdefghijkl", "abcdefgh", "efghijkl")
	if two != hidden {
		t.Errorf("of two secrets that overlap %q is left", two)
	}
	long := strings.Join(someSecrets(100), "")[:3000] // looked for in pieces
	if got := masked("a "+long+" b", long); got != "a [hidden] b" {
		t.Errorf("of a long secret %q is left", got)
	}
	key := "-----BEGIN X-----\nabcdefghijkl\nmnopqrst\n"
	if got := masked("a abcdefghijkl b\nc mnopqrst", key); got != "a [hidden] b\nc [hidden]" {
		t.Errorf("of a secret of several lines %q is left", got)
	}
}

func TestSecretAcrossWritesOrTheCutIsMasked(t *testing.T) {
	t.Parallel()
	secrets := []string{"hunter2hunter2hunter2"}
	for _, secret := range []string{
		secrets[0], "password=correcthorse", "Bearer correcthorse", "postgres://u:correcthorse@db", jwt,
		"sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc", "-----BEGIN PRIVATE KEY-----correcthorse",
	} {
		for cut := range len(secret) {
			synctest.Test(t, func(t *testing.T) {
				l := New(Config{Secrets: secrets})
				out := l.Tee(Stdout, io.Discard)
				fmt.Fprint(out, "in two "+secret[:cut])
				fmt.Fprint(out, secret[cut:]+"\n")
				fmt.Fprint(out, "with silence "+secret[:cut])
				time.Sleep(2 * silence)
				synctest.Wait()
				fmt.Fprint(out, secret[cut:]+"\n")
				fmt.Fprint(out, "at the end of what is kept "+strings.Repeat("-", protocol.MaxLine-27-cut)+secret+"\n")
				fmt.Fprint(out, "at the end of what is seen "+strings.Repeat("-", maxRaw-27-cut)+secret+"\n")
				fmt.Fprint(out, "at the end of all "+secret[:cut])
				l.Close()
				seen := strings.Join(texts(l.Tail(100)), "")
				for _, hint := range []string{"hunter2hunter2", "correcthorse", "orsecorr", "recthorse", "eC39HqLyjWD", "iIxMjM0NTY3"} {
					if strings.Contains(seen, hint) {
						t.Errorf("cut at %d: %s", cut, seen)
					}
				}
			})
		}
	}
}

// Each of these words reads to the end of the line: without a limit, a line of 8 KiB
// would cost as much as thousands of others.
func TestLineMadeToCostTimeIsHiddenFromSomewhereOn(t *testing.T) {
	t.Parallel()
	m := newMasker(nil)
	var w workspace
	for _, text := range []string{"password=", "a://", "cookie:", "-----BEGIN PRIVATE KEY"} {
		line := []byte(strings.Repeat(text, maxRaw/len(text)))
		m.find(&w, line, true, &block{})
		if w.left >= 0 || w.left < -2*maxRaw {
			t.Errorf("%q: %d bytes were read", text, maxWork-w.left)
		}
		if last := w.spans[len(w.spans)-1]; last.to != len(line) {
			t.Errorf("%q: the end of the line is seen", text)
		}
	}
}

func FuzzSecretNeverComesOut(f *testing.F) {
	f.Add("hunter2hunter2", "a ", " b\n", 5, 3)
	f.Add("hunter2hunter2", strings.Repeat("x", protocol.MaxLine-5), "b", 8190, 0)
	f.Add("aaaaaaab", "aaaaaaa", "aaaaaaabaaaa\n", 3, 2)
	f.Add("password", "password=", "\npassword=password", 7, 1)
	f.Fuzz(func(t *testing.T, secret, before, after string, size, silent int) {
		secret = strings.TrimSpace(secret)
		if len(secret) < minSecret || len(secret) > 4000 || len(before)+len(after) > 32<<10 ||
			strings.ContainsAny(secret, "\r\n[]\uFFFD") || strings.Contains(hidden, secret) {
			t.Skip("too long, or no secret that could be told from its mask")
		}
		l := New(Config{Secrets: []string{secret}})
		framer := l.newFramer(0)
		n := 0
		for piece := range slices.Chunk([]byte(before+secret+after), min(max(size, 1), 1<<20)) {
			framer.write(piece)
			if n++; silent > 0 && n%silent == 0 && n/silent < 100 {
				framer.mu.Lock()
				framer.giveSure()
				framer.mu.Unlock()
			}
		}
		l.Close()
		var seen strings.Builder
		lines := l.Tail(1 << 20)
		for _, line := range lines {
			if len(line.Text) > protocol.MaxLine {
				t.Errorf("line of %d bytes", len(line.Text))
			}
			seen.WriteString(line.Text)
			if strings.Contains(line.Text, secret) {
				t.Errorf("%q came out in %q", secret, line.Text)
			}
		}
		if !strings.Contains(before+after, "\n") && strings.Contains(seen.String(), secret) {
			t.Errorf("%q came out in pieces in %q", secret, seen.String())
		}
	})
}

func FuzzShapedSecretNeverComesOut(f *testing.F) {
	shaped := []string{
		"password=%s", `{"api_key":"%s"}`, `{\"token\":\"%s\"}`, "--secret %s", "Bearer %s", "Authorization: Token %s", "Cookie: sid=%s",
		"https://u:%s@host/x", "sk_live_%s", "eyJhbGciOiJIUzI1NiJ9.%s.x", "-----BEGIN PRIVATE KEY-----%s", "-----BEGIN PRIVATE KEY-----\n%s",
	}
	for n := range shaped {
		f.Add(n, uint64(n*7919), "at ", "\nnext", 7, 1)
		f.Add(n, uint64(n*104729), strings.Repeat("-", protocol.MaxLine-n), " ", 4096, 0)
	}
	f.Fuzz(func(t *testing.T, shape int, seed uint64, before, after string, size, silent int) {
		if len(before)+len(after) > 32<<10 {
			t.Skip("too long")
		}
		secret := fmt.Sprintf("%016x%016x", seed*0x9E3779B97F4A7C15, ^seed*0xBF58476D1CE4E5B9)
		if strings.Contains(before+after, secret[:4]) {
			t.Skip("the text has part of the secret by itself")
		}
		text := before + " " + fmt.Sprintf(shaped[uint(shape)%uint(len(shaped))], secret) + after
		l := New(Config{})
		framer := l.newFramer(0)
		n := 0
		for piece := range slices.Chunk([]byte(text), min(max(size, 1), 1<<20)) {
			framer.write(piece)
			if n++; silent > 0 && n%silent == 0 && n/silent < 100 {
				framer.mu.Lock()
				framer.giveSure()
				framer.mu.Unlock()
			}
		}
		l.Close()
		seen := strings.Join(texts(l.Tail(1<<20)), "")
		for i := range len(secret) - 8 {
			if strings.Contains(seen, secret[i:i+8]) {
				t.Fatalf("%q of %q came out in %q", secret[i:i+8], text, seen)
			}
		}
	})
}

func FuzzMaskedLine(f *testing.F) {
	for _, seed := range []string{"password=x", `{"token":"a\"b"}`, "x://u:p@h", jwt, "-----BEGIN PRIVATE KEY-----", "--password x", "Basic a:b", `cookie%3D"\`} {
		f.Add(seed, true)
		f.Add(seed, false)
	}
	m := newMasker(someSecrets(3))
	f.Fuzz(func(t *testing.T, text string, open bool) {
		var w workspace
		m.find(&w, []byte(text), open, &block{})
		last := -1
		for _, s := range w.spans {
			if s.from <= last || s.to <= s.from || s.to > len(text) {
				t.Fatalf("spans %v of %d bytes", w.spans, len(text))
			}
			last = s.to
		}
		if n := w.sure(len(text)); n < 0 || n > len(text) {
			t.Fatalf("%d of %d bytes are sure", n, len(text))
		}
	})
}
