package deploy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/posternhq/postern/e2e/rig"
)

// wait bounds each step of a test on a busy machine.
const wait = 15 * time.Second

const frontManifest = `
version: 1
apps:
  shop:
    endpoints:
      plain:
        provider: none
`

// frontApp is the app behind relay and proxy.
type frontApp struct {
	hooks  chan arrival
	chunks chan string   // first bytes of an upload that is still going on
	goOn   chan struct{} // lets a stream go on
	left   chan struct{} // a stream's client has gone
}

type arrival struct {
	sum    [sha256.Size]byte
	header http.Header
}

func newFrontApp() *frontApp {
	return &frontApp{
		hooks: make(chan arrival, 8), chunks: make(chan string, 8),
		goOn: make(chan struct{}, 8), left: make(chan struct{}, 8),
	}
}

func (a *frontApp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/stream":
		a.stream(w, r)
	case "/upload":
		first := make([]byte, len("first"))
		io.ReadFull(r.Body, first)
		a.chunks <- string(first)
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%d more", n)
	case "/socket":
		a.echo(w, r)
	case "/headers":
		for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"} {
			fmt.Fprintf(w, "%s: %s\n", name, r.Header.Get(name))
		}
	default:
		sum := sha256.New()
		io.Copy(sum, r.Body)
		got := arrival{header: r.Header.Clone()}
		sum.Sum(got.sum[:0])
		a.hooks <- got
	}
}

// stream says one thing, is silent until the test lets it go on, and says
// another.
func (a *frontApp) stream(w http.ResponseWriter, r *http.Request) {
	if r.URL.RawQuery == "length" {
		w.Header().Set("Content-Length", "22")
	} else {
		w.Header().Set("Content-Type", "text/event-stream")
	}
	io.WriteString(w, "data: one\n\n")
	http.NewResponseController(w).Flush()
	select {
	case <-a.goOn:
		io.WriteString(w, "data: two\n\n")
	case <-r.Context().Done():
		a.left <- struct{}{}
	}
}

func (a *frontApp) echo(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return
	}
	defer c.CloseNow()
	c.SetReadLimit(1 << 20)
	for {
		kind, data, err := c.Read(r.Context())
		if err != nil {
			return
		}
		if string(data) == "bye" {
			c.Close(4321, "as asked")
			return
		}
		if c.Write(r.Context(), kind, data) != nil {
			return
		}
	}
}

// Everything goes through the proxies as they are configured by the sample
// files: the agents' tunnels, and what comes from outside.
func TestTheSamplesInFrontOfARelay(t *testing.T) {
	for _, p := range proxies {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			path := program(t, p.name, p.name)
			relay := rig.StartRelay(t, rig.RelayConfig{
				Manifest: frontManifest, Env: []string{"POSTERN_PUBLIC_URL=https://localhost", "POSTERN_TRUSTED_PROXIES=127.0.0.1,::1"},
			})
			f, app := p.start(t, path, relay), newFrontApp()
			relay.StartAgent(rig.Serve(t, app), rig.AgentConfig{URL: f.url, Env: []string{"SSL_CERT_FILE=" + f.ca}})

			checkWebhook(t, f, app)
			checkForwarded(t, f)
			for _, http2 := range []bool{false, true} {
				checkStream(t, f, app, http2, "/stream")
				checkStream(t, f, app, http2, "/stream?length") // which Caddy treats in another way
				checkUpload(t, f, app, http2)
				checkClientLeaves(t, f, app, http2)
			}
			checkWebSocket(t, f)
			if p.holds {
				checkRestart(t, f, relay)
			}
		})
	}
}

// checkWebhook sends a webhook that is longer than nginx allows by itself.
func checkWebhook(t *testing.T, f *front, app *frontApp) {
	t.Helper()
	body := bytes.Repeat([]byte("0123456789abcdef"), 3<<16)
	if status := postHook(t, f, body); status != http.StatusAccepted {
		t.Fatalf("webhook of %d bytes: %d", len(body), status)
	}
	got := rig.Receive(t, wait, "webhook", app.hooks)
	if got.sum != sha256.Sum256(body) {
		t.Error("the webhook's body changed on its way")
	}
	if proto := got.header.Get("X-Forwarded-Proto"); proto != "https" {
		t.Errorf("X-Forwarded-Proto of a webhook is %q, want https", proto)
	}
}

func postHook(t *testing.T, f *front, body []byte) int {
	t.Helper()
	resp, err := f.client(t, true).Post(f.url+"/hooks/shop/plain", "application/octet-stream", bytes.NewReader(body))
	if err != nil {
		t.Fatalf("webhook: %v", err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// checkForwarded asks the app who the client is.
func checkForwarded(t *testing.T, f *front) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.app("/headers"), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Forwarded-Proto", "gopher") // what clients say is nothing
	resp, err := f.client(t, false).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	for _, want := range []string{"X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: https\n", "X-Forwarded-Host: shop.localhost:" + f.port + "\n"} {
		if !strings.Contains(string(body), want) {
			t.Errorf("the app sees %q, want %q in it", body, want)
		}
	}
}

// checkStream reads the first event of a stream that then waits for it to have
// been read: a proxy that keeps bytes back would wait for ever.
func checkStream(t *testing.T, f *front, app *frontApp, http2 bool, path string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	resp := openStream(t, ctx, f, http2, path)
	defer resp.Body.Close()
	if want := map[bool]int{false: 1, true: 2}[http2]; resp.ProtoMajor != want {
		t.Fatalf("HTTP/%d, want HTTP/%d", resp.ProtoMajor, want)
	}
	in := bufio.NewReader(resp.Body)
	if line, err := in.ReadString('\n'); err != nil || line != "data: one\n" {
		t.Fatalf("first event of a stream: %q, %v", line, err)
	}
	app.goOn <- struct{}{}
	if rest, err := io.ReadAll(in); err != nil || string(rest) != "\ndata: two\n\n" {
		t.Fatalf("rest of a stream: %q, %v", rest, err)
	}
}

func openStream(t *testing.T, ctx context.Context, f *front, http2 bool, path string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.app(path), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := f.client(t, http2).Do(req)
	if err != nil {
		t.Fatalf("stream: %v", err)
	}
	return resp
}

// checkUpload sends the second half of a body when the app has the first.
func checkUpload(t *testing.T, f *front, app *frontApp, http2 bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	in, out := io.Pipe()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.app("/upload"), in)
	if err != nil {
		t.Fatal(err)
	}
	answer := make(chan string, 1)
	client := f.client(t, http2)
	go func() {
		resp, err := client.Do(req)
		if err != nil {
			answer <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		answer <- fmt.Sprintf("%d %s %v", resp.StatusCode, body, err)
	}()
	io.WriteString(out, "first")
	if got := rig.Receive(t, wait, "start of an upload that goes on", app.chunks); got != "first" {
		t.Fatalf("the app got %q first", got)
	}
	io.WriteString(out, "second")
	out.Close()
	if got := rig.Receive(t, wait, "answer to an upload", answer); got != "200 6 more <nil>" {
		t.Fatalf("upload: %s", got)
	}
}

// checkClientLeaves hangs up in a stream; the app must get to know.
func checkClientLeaves(t *testing.T, f *front, app *frontApp, http2 bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	resp := openStream(t, ctx, f, http2, "/stream")
	if _, err := resp.Body.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	cancel()
	resp.Body.Close()
	rig.Receive(t, wait, "the end of a stream whose client left", app.left)
}

func checkWebSocket(t *testing.T, f *front) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	c, _, err := websocket.Dial(ctx, f.app("/socket"), &websocket.DialOptions{HTTPClient: f.client(t, false)})
	if err != nil {
		t.Fatalf("WebSocket of the app: %v", err)
	}
	defer c.CloseNow()
	c.SetReadLimit(1 << 20)
	for _, want := range []string{"hello", strings.Repeat("long ", 50_000)} {
		if err := c.Write(ctx, websocket.MessageText, []byte(want)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := c.Read(ctx); err != nil || string(got) != want {
			t.Fatalf("echo of %d bytes: %d bytes, %v", len(want), len(got), err)
		}
	}
	if err := c.Write(ctx, websocket.MessageText, []byte("bye")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Read(ctx); websocket.CloseStatus(err) != 4321 {
		t.Errorf("the app's close arrives as %v", err)
	}
}

// checkRestart sends a request while no relay runs; it waits in the proxy for the
// next relay, and there for the agent. It has no body: the Caddy of most
// distributions closes the body of a request that it tries again.
func checkRestart(t *testing.T, f *front, relay *rig.Relay) {
	t.Helper()
	if code := relay.Stop(); code != 0 {
		t.Errorf("the relay ends with code %d", code)
	}
	sent, answered := make(chan struct{}), make(chan string, 1)
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		WroteRequest: func(httptrace.WroteRequestInfo) { close(sent) },
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.app("/headers"), nil)
	if err != nil {
		t.Fatal(err)
	}
	client := f.client(t, false)
	go func() {
		resp, err := client.Do(req)
		if err != nil {
			answered <- err.Error()
			return
		}
		resp.Body.Close()
		answered <- resp.Status
	}()
	rig.Receive(t, wait, "a request on its way", sent)
	relay.Restart()
	if got := rig.Receive(t, wait, "answer to a request during a restart", answered); got != "200 OK" {
		t.Errorf("request during a restart: %s", got)
	}
}
