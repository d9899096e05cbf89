package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol/api"
)

// noon is what the clock of the tests says.
var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// desk is a console whose screen can be read.
type desk struct {
	*console
	stdout, stderr *screen
	interrupts     chan os.Signal
}

// screen collects what is written, and tells whoever waits for a text.
type screen struct {
	mu      sync.Mutex
	text    bytes.Buffer
	written chan struct{}
}

func newScreen() *screen { return &screen{written: make(chan struct{}, 1)} }

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text.Write(p)
	select {
	case s.written <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// wait is until want was written.
func (s *screen) wait(t *testing.T, want string) {
	t.Helper()
	late := time.After(10 * time.Second)
	for !strings.Contains(s.String(), want) {
		select {
		case <-s.written:
		case <-late:
			t.Fatalf("never said %q, but:\n%s", want, s)
		}
	}
}

// newDesk has no terminal, no colours, UTC, and a clock that stands.
func newDesk() *desk {
	d := &desk{stdout: newScreen(), stderr: newScreen(), interrupts: make(chan os.Signal, 4)}
	none := func() int { return 0 }
	d.console = &console{
		in: strings.NewReader(""), out: &output{w: d.stdout}, errs: &output{w: d.stderr},
		width: none, errWidth: none, now: func() time.Time { return noon }, pause: time.After, zone: time.UTC, interrupts: d.interrupts,
	}
	return d
}

// terminal makes d a terminal of width columns at which typed is typed.
func (d *desk) terminal(width int, typed string) *desk {
	d.in = strings.NewReader(typed)
	d.inTerminal, d.outTerminal, d.errTerminal = true, true, true
	d.width = func() int { return width }
	d.errWidth = d.width
	return d
}

// run runs one of the events commands as the program does.
func (d *desk) run(t *testing.T, args ...string) (code int, err error) {
	t.Helper()
	code, err = events(t.Context(), d.console, args)
	if errors.Is(err, errHelp) {
		return exitOK, nil
	}
	if errors.As(err, new(usageError)) {
		return exitUsage, err
	}
	if err != nil {
		return max(code, exitFailed), err
	}
	return code, nil
}

// relayAPI is a relay as far as these commands see it. Like the real one, it
// refuses a query parameter that it does not know.
type relayAPI struct {
	t   *testing.T
	url string

	mu       sync.Mutex
	requests []*http.Request
	bodies   []string
	handlers map[string]http.HandlerFunc // "GET /events"
}

var parameters = map[string]string{
	"GET /events":             "app endpoint type state refused since until text before limit",
	"GET /events/stream":      "app endpoint filter bodies resign url",
	"GET /events/{id}/export": "as target",
}

func newRelayAPI(t *testing.T) *relayAPI {
	r := &relayAPI{t: t, handlers: map[string]http.HandlerFunc{}}
	server := httptest.NewServer(r)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	r.url = server.URL
	t.Setenv("POSTERN_RELAY", server.URL)
	t.Setenv("POSTERN_TOKEN", token("developer", "shop"))
	for _, name := range []string{"POSTERN_APP", "POSTERN_JSON", "POSTERN_LOG_LEVEL", "POSTERN_LOG_FORMAT"} {
		t.Setenv(name, "")
	}
	return r
}

// token looks like one.
func token(scope, app string) string {
	claims, _ := json.Marshal(map[string]string{"scope": scope, "sub": app})
	return "e30." + base64.RawURLEncoding.EncodeToString(claims) + ".c2ln"
}

func (r *relayAPI) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, _ := io.ReadAll(req.Body)
	path := strings.TrimPrefix(req.URL.Path, "/api/v1")
	route := req.Method + " " + path
	if _, known := parameters[route]; !known {
		parts := strings.Split(path, "/")
		if len(parts) > 2 && parts[2] != "stream" {
			parts[2] = "{id}"
		}
		route = req.Method + " " + strings.Join(parts, "/")
	}
	r.mu.Lock()
	r.requests, r.bodies = append(r.requests, req), append(r.bodies, string(body))
	handle := r.handlers[route]
	r.mu.Unlock()
	for name := range req.URL.Query() {
		if !slices.Contains(strings.Fields(parameters[route]), name) {
			refuse(w, 400, "invalid", "the query parameter "+name+" is not known here")
			return
		}
	}
	switch {
	case req.Header.Get("Authorization") != "Bearer "+os.Getenv("POSTERN_TOKEN"):
		refuse(w, 401, "unauthenticated", "no token was sent")
	case handle == nil:
		refuse(w, 404, "not_found", "there is no "+path)
	default:
		handle(w, req)
	}
}

// on answers a route with v.
func (r *relayAPI) on(route string, v any) {
	r.handle(route, func(w http.ResponseWriter, _ *http.Request) { answer(w, v) })
}

func (r *relayAPI) handle(route string, h http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.handlers[route] = h
}

// said are the requests so far, one line each: method, path and query.
func (r *relayAPI) said() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var lines []string
	for _, req := range r.requests {
		lines = append(lines, req.Method+" "+strings.TrimPrefix(req.URL.RequestURI(), "/api/v1"))
	}
	return lines
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	var e api.ErrorAnswer
	e.Error.Code, e.Error.Message, e.Error.RequestID = code, message, "req_1"
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(e)
}

// golden compares got with a file of testdata; UPDATE=1 writes it.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if os.Getenv("UPDATE") == "1" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; UPDATE=1 writes it anew. Got:\n%s", file, got)
	}
}

// wrongRelay is one thing that can be wrong, and what is to be said of it.
type wrongRelay struct {
	name    string
	handle  http.HandlerFunc
	env     []string // NAME=value
	args    string
	code    int
	want    []string
	wantNot string
}

var wrongRelays = []wrongRelay{
	{name: "no relay", env: []string{"POSTERN_RELAY="}, code: 2, want: []string{"POSTERN_RELAY is not set"}},
	{name: "no token", env: []string{"POSTERN_TOKEN="}, args: "--app shop", code: 2, want: []string{"token create --app shop --scope developer"}},
	{name: "a broken token", env: []string{"POSTERN_TOKEN=secret\nsecret"}, code: 2, want: []string{"line break"}, wantNot: "secret"},
	{name: "a relay that is no URL", env: []string{"POSTERN_RELAY=relay.example.com"}, code: 2, want: []string{"expected https://host"}},
	{name: "nobody there", env: []string{"POSTERN_RELAY=http://127.0.0.1:1"}, code: 1, want: []string{"http://127.0.0.1:1 cannot be reached", "connection refused"}, wantNot: "Get "},
	{
		name:   "a token that is refused",
		handle: func(w http.ResponseWriter, _ *http.Request) { refuse(w, 401, "unauthenticated", "it has expired") },
		code:   1, want: []string{"refuses the token: it has expired (request req_1)", "--app shop --scope developer", "POSTERN_TOKEN"},
	},
	{
		name:   "an agent's token",
		env:    []string{"POSTERN_TOKEN=" + token("agent", "shop")},
		handle: func(w http.ResponseWriter, _ *http.Request) { refuse(w, 403, "forbidden", "not with this token") },
		code:   1, want: []string{"The token is of scope agent; make one with: postern-relay token create --app shop --scope developer"},
	},
	{
		name:   "another app's token",
		args:   "--app till",
		handle: func(w http.ResponseWriter, _ *http.Request) { refuse(w, 403, "forbidden", "not with this token") },
		code:   1, want: []string{"The token is for the app shop", "--app till"},
	},
	{
		name:   "an error page",
		handle: func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>", http.StatusBadGateway) },
		code:   1, want: []string{"answered 502 Bad Gateway without saying why"}, wantNot: "<html>",
	},
	{
		name:   "no API",
		handle: http.NotFound,
		code:   1, want: []string{"has no events API", "relay's own URL"},
	},
	{
		name: "a page",
		handle: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			io.WriteString(w, "<html>")
		},
		code: 1, want: []string{"answered with text/html where JSON was expected"},
	},
	{
		name: "half an answer",
		handle: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, `{"events":[`)
		},
		code: 1, want: []string{"cannot be read"},
	},
	{
		name: "a redirect",
		handle: func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://other.example/x", http.StatusMovedPermanently)
		},
		code: 1, want: []string{"redirects to https://other.example;"},
	},
	{
		name:   "an answer that would steer the terminal",
		handle: func(w http.ResponseWriter, _ *http.Request) { refuse(w, 400, "invalid", "bad \x1b[2Jthing") },
		code:   1, want: []string{`bad \x1b[2Jthing`},
	},
	{
		name: "an answer without end",
		handle: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			for range maxAnswer/1024 + 2 {
				if _, err := w.Write(bytes.Repeat([]byte(" "), 1024)); err != nil {
					return
				}
			}
		},
		code: 1, want: []string{"has more than 33.6 MB"},
	},
}

func TestWhatIsWrongBetweenUsAndTheRelayIsSaidPlainly(t *testing.T) {
	for _, test := range wrongRelays {
		t.Run(test.name, func(t *testing.T) {
			r := newRelayAPI(t)
			if test.handle != nil {
				r.handle("GET /events", test.handle)
			}
			for _, v := range test.env {
				name, value, _ := strings.Cut(v, "=")
				t.Setenv(name, value)
			}
			code, err := newDesk().run(t, append([]string{"list"}, strings.Fields(test.args)...)...)
			if code != test.code || err == nil {
				t.Fatalf("code %d, %v", code, err)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("said %q, want %q", err, want)
				}
			}
			if test.wantNot != "" && strings.Contains(err.Error(), test.wantNot) {
				t.Errorf("said %q, which has %q", err, test.wantNot)
			}
		})
	}
}

// One interrupt ends a command that waits for the relay.
func TestInterruptEndsARequest(t *testing.T) {
	r := newRelayAPI(t)
	d := newDesk()
	r.handle("GET /events", func(w http.ResponseWriter, req *http.Request) {
		d.interrupts <- os.Interrupt
		<-req.Context().Done()
	})
	if code, err := d.run(t, "list"); code != exitFailed || err == nil || err.Error() != "interrupted" {
		t.Errorf("%d, %v", code, err)
	}
}

func TestCancelledContextEndsEveryVerb(t *testing.T) {
	newRelayAPI(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, args := range []string{"list", "show evt_1", "replay evt_1 --yes", "replay --watch rpl_1", "export evt_1 --as curl", "requeue dlv_1", "cancel evt_1"} {
		if code, err := events(ctx, newDesk().console, strings.Fields(args)); code != exitFailed || err == nil || err.Error() != "interrupted" {
			t.Errorf("%s: %d, %v", args, code, err)
		}
	}
	if code, err := events(ctx, newDesk().console, []string{"tail"}); code != exitOK || err != nil {
		t.Errorf("tail: %d, %v", code, err)
	}
}

func TestRequestsAreBoundToTheRelayAndCarryTheToken(t *testing.T) {
	r := newRelayAPI(t)
	r.on("GET /events", api.EventList{})
	t.Setenv("POSTERN_RELAY", r.url+"/")
	if code, err := newDesk().run(t, "list", "--app", "shop"); code != 0 {
		t.Fatal(code, err)
	}
	if got := r.said(); len(got) != 1 || got[0] != "GET /events?app=shop&limit=50" {
		t.Errorf("asked %q", got)
	}
	if ua := r.requests[0].UserAgent(); ua != "postern/dev" {
		t.Errorf("user agent %q", ua)
	}
}
