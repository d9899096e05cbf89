package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/posternhq/postern/e2e/rig"
)

// soon bounds what should happen at once. Machines that test are busy.
const soon = 15 * time.Second

// startApp starts a relay and an agent for the app "shop" behind handler.
func startApp(t *testing.T, handler http.Handler, env ...string) *rig.Relay {
	t.Helper()
	r := rig.StartRelay(t, rig.RelayConfig{Env: env})
	r.StartAgent(rig.Serve(t, handler), rig.AgentConfig{})
	return r
}

// startRawApp is startApp for an app below HTTP.
func startRawApp(t *testing.T, serve func(net.Conn), env ...string) *rig.Relay {
	t.Helper()
	r := rig.StartRelay(t, rig.RelayConfig{Env: env})
	r.StartAgent(rig.ServeRaw(t, serve), rig.AgentConfig{})
	return r
}

func newRequest(t *testing.T, method, url string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func TestAWebSocketCarriesMessagesPingsAndCloseCodes(t *testing.T) {
	t.Parallel()
	closed := make(chan websocket.CloseError, 1)
	r := startApp(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		ws, err := websocket.Accept(w, req, &websocket.AcceptOptions{Subprotocols: []string{"echo"}, CompressionMode: websocket.CompressionContextTakeover})
		if err != nil {
			return
		}
		defer ws.CloseNow()
		ws.SetReadLimit(-1)
		for {
			kind, message, err := ws.Read(req.Context())
			var end websocket.CloseError
			if errors.As(err, &end) {
				closed <- end
			}
			if err != nil {
				return
			}
			if string(message) == "close, please" {
				ws.Close(4002, "as you wish")
				return
			}
			if err := ws.Write(req.Context(), kind, message); err != nil {
				return
			}
		}
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	dial := func() *websocket.Conn {
		ws, resp, err := websocket.Dial(ctx, "ws://"+r.AppHost("shop")+"/socket?room=1", &websocket.DialOptions{
			HTTPClient: r.Client(), Subprotocols: []string{"echo"}, CompressionMode: websocket.CompressionContextTakeover,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ws.CloseNow() })
		if ws.Subprotocol() != "echo" || !strings.Contains(resp.Header.Get("Sec-WebSocket-Extensions"), "permessage-deflate") {
			t.Errorf("negotiated %q, %q", ws.Subprotocol(), resp.Header.Get("Sec-WebSocket-Extensions"))
		}
		ws.SetReadLimit(-1)
		return ws
	}

	ws := dial()
	random := make([]byte, 1<<20) // does not compress
	rand.NewChaCha8([32]byte{1}).Read(random)
	for _, message := range [][]byte{[]byte("hello"), {}, random, bytes.Repeat([]byte("a"), 1<<20), random[:65536], random[:1]} {
		if err := ws.Write(ctx, websocket.MessageBinary, message); err != nil {
			t.Fatal(err)
		}
		kind, echo, err := ws.Read(ctx)
		if err != nil || kind != websocket.MessageBinary || !bytes.Equal(echo, message) {
			t.Fatalf("%d bytes came back as %d (%v, %v)", len(message), len(echo), kind, err)
		}
	}
	reading := ws.CloseRead(ctx) // answers the pong's wait
	if err := ws.Ping(ctx); err != nil {
		t.Errorf("ping: %v", err)
	}
	_ = reading
	if err := ws.Close(4001, "client's word"); err != nil {
		t.Errorf("close: %v", err)
	}
	if end := rig.Receive(t, soon, "the app's view of the close", closed); end.Code != 4001 || end.Reason != "client's word" {
		t.Errorf("the app saw the close as %v", end)
	}

	ws = dial()
	if err := ws.Write(ctx, websocket.MessageText, []byte("close, please")); err != nil {
		t.Fatal(err)
	}
	_, _, err := ws.Read(ctx)
	var end websocket.CloseError
	if !errors.As(err, &end) || end.Code != 4002 || end.Reason != "as you wish" {
		t.Errorf("the client saw the close as %v", err)
	}
}

func TestEventsArriveOneByOneAsTheyAreSent(t *testing.T) {
	t.Parallel()
	// An answer that is not called an event stream may be one all the same.
	for kind, length := range map[string]string{"text/event-stream": "", "text/plain": "60"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			arrived := make(chan struct{})
			r := startApp(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				w.Header().Set("Content-Type", kind)
				if length != "" {
					w.Header().Set("Content-Length", length)
				}
				for i := range 6 {
					fmt.Fprintf(w, "data: %d\n\n", i)
					http.NewResponseController(w).Flush()
					// The next one is not even made before this one has arrived.
					select {
					case <-arrived:
					case <-req.Context().Done():
						return
					}
				}
			}))
			ctx, cancel := context.WithTimeout(t.Context(), soon)
			defer cancel()
			resp, err := r.Client().Do(newRequest(t, http.MethodGet, r.AppURL("shop", "/events"), nil).WithContext(ctx))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			lines := bufio.NewReader(resp.Body)
			for i := range 6 {
				line, err := lines.ReadString('\n')
				if err != nil || line != fmt.Sprintf("data: %d\n", i) {
					t.Fatalf("event %d arrived as %q: %v", i, line, err)
				}
				lines.ReadString('\n')
				select {
				case arrived <- struct{}{}:
				case <-ctx.Done():
					t.Fatal("the app has gone")
				}
			}
		})
	}
}

func TestChunksOfAnUploadArriveAsTheyAreSent(t *testing.T) {
	t.Parallel()
	arrived := make(chan string)
	r := startApp(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		buf := make([]byte, 100)
		for {
			n, err := req.Body.Read(buf)
			if n > 0 {
				arrived <- string(buf[:n])
			}
			if err != nil {
				return
			}
		}
	}))
	body, w := io.Pipe()
	t.Cleanup(func() { body.CloseWithError(io.ErrClosedPipe) })
	answered := make(chan error, 1)
	go func() {
		resp, err := r.Client().Do(newRequest(t, http.MethodPost, r.AppURL("shop", "/"), io.NopCloser(body)))
		if err == nil {
			resp.Body.Close()
		}
		answered <- err
	}()
	for i := range 5 {
		chunk := fmt.Sprintf("chunk %d", i)
		io.WriteString(w, chunk)
		if got := rig.Receive(t, soon, chunk, arrived); got != chunk {
			t.Fatalf("chunk %d arrived as %q", i, got)
		}
	}
	w.Close()
	if err := rig.Receive(t, soon, "answer", answered); err != nil {
		t.Error(err)
	}
}

func TestBothDirectionsOfARequestCanFlowAtOnce(t *testing.T) {
	t.Parallel()
	r := startApp(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		control := http.NewResponseController(w)
		control.EnableFullDuplex()
		w.WriteHeader(http.StatusOK)
		control.Flush()
		buf := make([]byte, 100)
		for {
			n, err := req.Body.Read(buf)
			if n > 0 {
				w.Write(bytes.ToUpper(buf[:n]))
				control.Flush()
			}
			if err != nil {
				return
			}
		}
	}))
	conn := r.Dial(t, soon)
	fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n", r.AppHost("shop"))
	answer := bufio.NewReader(conn)
	resp, err := http.ReadResponse(answer, nil)
	if err != nil {
		t.Fatalf("no answer while the upload goes on: %v", err)
	}
	for _, word := range []string{"one", "two", "three"} {
		fmt.Fprintf(conn, "%x\r\n%s\r\n", len(word), word)
		echo := make([]byte, len(word))
		if _, err := io.ReadFull(resp.Body, echo); err != nil || string(echo) != strings.ToUpper(word) {
			t.Fatalf("%s came back as %q: %v", word, echo, err)
		}
	}
	io.WriteString(conn, "0\r\n\r\n")
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
		t.Errorf("the end came as %q, %v", rest, err)
	}
}

// generated is a stream of bytes that nobody holds in memory and that are
// different everywhere.
func generated(seed byte, length int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), length)
}

func TestAGigabyteEachWayArrivesWholeInFlatMemory(t *testing.T) {
	t.Parallel()
	size, limit := int64(1<<30), int64(100<<20)
	if testing.Short() || rig.Race() {
		size = 64 << 20
	}
	want := map[byte]string{}
	for seed := range byte(2) {
		sum := sha256.New()
		io.Copy(sum, generated(seed, size))
		want[seed] = hex.EncodeToString(sum.Sum(nil))
	}
	r := rig.StartRelay(t, rig.RelayConfig{})
	agent := r.StartAgent(rig.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodGet {
			w.Header().Set("Content-Length", fmt.Sprint(size))
			io.Copy(w, generated(0, size))
			return
		}
		sum := sha256.New()
		n, err := io.Copy(sum, req.Body)
		fmt.Fprintf(w, "%d %v %x", n, err, sum.Sum(nil))
	})), rig.AgentConfig{})

	var peakRelay, peakAgent int64
	watch := func(done <-chan struct{}) {
		again := time.NewTicker(25 * time.Millisecond)
		defer again.Stop()
		for {
			peakRelay, peakAgent = max(peakRelay, r.RSS()), max(peakAgent, agent.RSS())
			select {
			case <-again.C:
			case <-done:
				return
			}
		}
	}
	done := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() { watch(done) })

	resp, err := r.Client().Get(r.AppURL("shop", "/down"))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	n, err := io.Copy(sum, resp.Body)
	resp.Body.Close()
	if got := hex.EncodeToString(sum.Sum(nil)); err != nil || n != size || got != want[0] {
		t.Errorf("download of %d bytes: %v, %s, expected %s", n, err, got, want[0])
	}
	req := newRequest(t, http.MethodPost, r.AppURL("shop", "/up"), generated(1, size))
	req.ContentLength = size
	_, body := do(t, r.Client(), req)
	if expected := fmt.Sprintf("%d <nil> %s", size, want[1]); string(body) != expected {
		t.Errorf("the upload arrived as %s, expected %s", body, expected)
	}
	close(done)
	watching.Wait()
	t.Logf("most memory: relay %d MiB, agent %d MiB", peakRelay>>20, peakAgent>>20)
	if !rig.Race() && (peakRelay > limit || peakAgent > limit) {
		t.Errorf("relay %d MiB, agent %d MiB, expected at most %d", peakRelay>>20, peakAgent>>20, limit>>20)
	}
}

func TestTrailersPassBothWays(t *testing.T) {
	t.Parallel()
	got := make(chan http.Header, 1)
	r := startApp(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		io.Copy(io.Discard, req.Body)
		got <- req.Trailer
		w.Header().Set("Trailer", "X-Sum")
		io.WriteString(w, "body")
		w.Header().Set("X-Sum", "of the answer")
		w.Header().Set(http.TrailerPrefix+"X-Late", "not announced")
	}))
	req := newRequest(t, http.MethodPost, r.AppURL("shop", "/"), io.MultiReader(strings.NewReader("hello")))
	req.Trailer = http.Header{"X-Checksum": nil}
	req.Body = &atEnd{req.Body, func() { req.Trailer.Set("X-Checksum", "of the request") }}
	resp, _ := do(t, r.Client(), req)
	if trailer := rig.Receive(t, soon, "request's trailer", got); trailer.Get("X-Checksum") != "of the request" {
		t.Errorf("the app got the trailer %v", trailer)
	}
	if resp.Trailer.Get("X-Sum") != "of the answer" || resp.Trailer.Get("X-Late") != "not announced" {
		t.Errorf("the client got the trailer %v", resp.Trailer)
	}
}

// atEnd calls then when its reader has ended.
type atEnd struct {
	io.ReadCloser
	then func()
}

func (r *atEnd) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err == io.EOF {
		r.then()
	}
	return n, err
}

func TestEarlyHintsArriveBeforeTheAnswer(t *testing.T) {
	t.Parallel()
	hinted := make(chan struct{})
	r := startApp(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		select {
		case <-hinted:
		case <-req.Context().Done():
			return
		}
		io.WriteString(w, "page")
	}))
	var link string
	trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		if code == http.StatusEarlyHints {
			link = h.Get("Link")
			close(hinted)
		}
		return nil
	}}
	ctx, cancel := context.WithTimeout(httptrace.WithClientTrace(t.Context(), trace), soon)
	defer cancel()
	resp, body := do(t, r.Client(), newRequest(t, http.MethodGet, r.AppURL("shop", "/"), nil).WithContext(ctx))
	if resp.StatusCode != http.StatusOK || string(body) != "page" || link != "</style.css>; rel=preload" {
		t.Errorf("%s %q after the hint %q", resp.Status, body, link)
	}
}

func TestA100ContinueComesOnlyWhenTheAppWantsTheBody(t *testing.T) {
	t.Parallel()
	read := make(chan string, 1)
	r := startApp(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body) // net/http says 100 Continue here
		read <- string(body)
	}))
	conn := r.Dial(t, soon)
	fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: %s\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", r.AppHost("shop"))
	answer := bufio.NewReader(conn)
	line, err := answer.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "HTTP/1.1 100 ") {
		t.Fatalf("before the body was sent the answer was %q, %v", line, err)
	}
	answer.ReadString('\n') // the end of the interim answer
	io.WriteString(conn, "hello")
	resp, err := http.ReadResponse(answer, nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("after the body: %v, %v", resp, err)
	}
	if got := rig.Receive(t, soon, "body", read); got != "hello" {
		t.Errorf("the app read %q", got)
	}
}

func TestABodyThatTheAppDoesNotWantIsNeverAskedFor(t *testing.T) {
	t.Parallel()
	served := make(chan string, 1)
	r := startRawApp(t, func(conn net.Conn) {
		head, _ := http.ReadRequest(bufio.NewReader(conn))
		io.WriteString(conn, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")
		rest, _ := io.ReadAll(conn)
		served <- head.Header.Get("Expect") + "|" + string(rest)
	})
	conn := r.Dial(t, soon)
	fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: %s\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", r.AppHost("shop"))
	answer := bufio.NewReader(conn)
	resp, err := http.ReadResponse(answer, nil)
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		t.Fatalf("the first answer is %v, %v", resp, err)
	}
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "no" {
		t.Errorf("answer %q, %v", body, err)
	}
	conn.Close()
	if got := rig.Receive(t, soon, "end of the app's connection", served); got != "100-continue|" {
		t.Errorf("the app saw %q", got)
	}
}

func TestAnAppThatNeverSays100GetsTheBodyAllTheSame(t *testing.T) {
	t.Parallel()
	r := startRawApp(t, func(conn net.Conn) {
		in := bufio.NewReader(conn)
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		body, _ := io.ReadAll(req.Body)
		fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	})
	req := newRequest(t, http.MethodPost, r.AppURL("shop", "/"), strings.NewReader("hello"))
	req.Header.Set("Expect", "100-continue")
	if resp, body := do(t, r.Client(), req); resp.StatusCode != http.StatusOK || string(body) != "hello" {
		t.Errorf("%s %q", resp.Status, body)
	}
}

func TestAnAnswerDuringAnUploadReachesTheClientAtOnce(t *testing.T) {
	t.Parallel()
	r := startApp(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Connection", "close")
		http.Error(w, "too much", http.StatusRequestEntityTooLarge)
	}))
	t.Run("while the client pauses", func(t *testing.T) {
		conn := r.Dial(t, soon)
		fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: 1000000000\r\n\r\nfirst bytes", r.AppHost("shop"))
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Fatalf("answer %v, %v", resp, err)
		}
		if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "too much\n" {
			t.Errorf("body %q, %v", body, err)
		}
	})
	t.Run("while the client sends", func(t *testing.T) {
		conn := r.Dial(t, soon)
		fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: 1000000000\r\n\r\n", r.AppHost("shop"))
		// A client of the simplest kind: it looks for an answer between writes.
		answered := make(chan error, 1)
		go func() {
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err == nil && resp.StatusCode != http.StatusRequestEntityTooLarge {
				err = errors.New(resp.Status)
			}
			answered <- err
		}()
		chunk := make([]byte, 16<<10)
		for sent := 0; sent < 1e9; sent += len(chunk) {
			if _, err := conn.Write(chunk); err != nil {
				break
			}
			select {
			case err := <-answered:
				if err != nil {
					t.Error(err)
				}
				return
			default:
			}
		}
		if err := rig.Receive(t, soon, "answer", answered); err != nil {
			t.Error(err)
		}
	})
}

// upgradeApp answers an upgrade and hands over the connection.
func upgradeApp(then func(conn *net.TCPConn, in *bufio.Reader)) func(net.Conn) {
	return func(conn net.Conn) {
		in := bufio.NewReader(conn)
		if _, err := http.ReadRequest(in); err != nil {
			return
		}
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: plain\r\n\r\n")
		then(conn.(*net.TCPConn), in)
	}
}

// upgrade opens an upgraded connection to the app.
func upgrade(t *testing.T, r *rig.Relay) (*net.TCPConn, *bufio.Reader) {
	t.Helper()
	conn := r.Dial(t, soon)
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: plain\r\n\r\n", r.AppHost("shop"))
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Upgrade") != "plain" {
		t.Fatalf("upgrade answered %v, %v", resp, err)
	}
	return conn, in
}

func TestAnUpgradedConnectionCanBeHalfClosed(t *testing.T) {
	t.Parallel()
	t.Run("by the client", func(t *testing.T) {
		t.Parallel()
		r := startRawApp(t, upgradeApp(func(conn *net.TCPConn, in *bufio.Reader) {
			all, err := io.ReadAll(in) // ends with the client's direction
			fmt.Fprintf(conn, "%d bytes, %v", len(all), err)
		}))
		conn, in := upgrade(t, r)
		conn.Write(make([]byte, 300<<10))
		conn.CloseWrite()
		if got, err := io.ReadAll(in); err != nil || string(got) != "307200 bytes, <nil>" {
			t.Errorf("the app answered %q, %v", got, err)
		}
	})
	t.Run("by the app", func(t *testing.T) {
		t.Parallel()
		got := make(chan string, 1)
		r := startRawApp(t, upgradeApp(func(conn *net.TCPConn, in *bufio.Reader) {
			io.WriteString(conn, "that is all")
			conn.CloseWrite()
			all, err := io.ReadAll(in)
			got <- fmt.Sprintf("%d bytes, %v", len(all), err)
		}))
		conn, in := upgrade(t, r)
		if all, err := io.ReadAll(in); err != nil || string(all) != "that is all" {
			t.Fatalf("the app said %q, %v", all, err)
		}
		conn.Write(make([]byte, 300<<10))
		conn.CloseWrite()
		if got := rig.Receive(t, soon, "the app's count", got); got != "307200 bytes, <nil>" {
			t.Errorf("the app got %s", got)
		}
	})
}
