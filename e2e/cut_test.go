package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

func TestTheAppNoticesThatTheClientHasGone(t *testing.T) {
	t.Parallel()
	started, gone := make(chan struct{}, 1), make(chan struct{}, 1)
	r := startApp(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/half" {
			w.WriteHeader(http.StatusOK)
			http.NewResponseController(w).Flush()
		}
		started <- struct{}{}
		<-req.Context().Done()
		gone <- struct{}{}
	}))
	for _, path := range []string{"/before", "/half"} {
		ctx, leave := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			resp, err := r.Client().Do(newRequest(t, http.MethodGet, r.AppURL("shop", path), nil).WithContext(ctx))
			if err == nil {
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		}()
		rig.Receive(t, soon, path+" to arrive", started)
		leave()
		rig.Receive(t, soon, path+" to be canceled", gone)
		<-ended
	}
}

func TestPartOfAnUploadIsNeverTakenForTheWhole(t *testing.T) {
	t.Parallel()
	started, result := make(chan struct{}, 1), make(chan error, 1)
	r := startApp(t, http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		started <- struct{}{}
		_, err := io.Copy(io.Discard, req.Body)
		result <- err
	}))
	for name, raw := range map[string]string{
		"with a length": "Content-Length: 1000\r\n\r\npart of it",
		"chunked":       "Transfer-Encoding: chunked\r\n\r\na\r\npart of it\r\n",
		"in a chunk":    "Transfer-Encoding: chunked\r\n\r\nff\r\npart of it",
	} {
		conn := r.Dial(t, soon)
		fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: %s\r\n%s", r.AppHost("shop"), raw)
		rig.Receive(t, soon, name+" to arrive", started) // or the app may never hear of it, rightly
		conn.CloseWrite()
		if err := rig.Receive(t, soon, name, result); err == nil {
			t.Errorf("%s: the app took a part for the whole", name)
		}
		conn.Close()
	}
}

// The ways an app's answer can end too early: what it sends before and after the
// client has seen the first part, and whether it then closes or breaks off.
var cutAnswers = map[string]struct {
	head, part, more string
	reset            bool
}{
	"with a length, closed":      {"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", "part of it", "", false},
	"with a length, reset":       {"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", "part of it", "", true},
	"between chunks, closed":     {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "a\r\npart of it\r\n", "", false},
	"between chunks, reset":      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "a\r\npart of it\r\n", "", true},
	"in a chunk, closed":         {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "a\r\npart of it\r\n", "ff\r\nmore", false},
	"before the trailer, closed": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "a\r\npart of it\r\n", "0\r\n", false},
	"without a length, reset":    {"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", "part of it", "", true},
	"HTTP/1.0, reset":            {"HTTP/1.0 200 OK\r\n\r\n", "part of it", "", true},
}

func TestACutAnswerIsNeverACleanEnd(t *testing.T) {
	t.Parallel()
	seen := make(chan struct{})
	app := rig.ServeRaw(t, func(conn net.Conn) {
		req, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			return
		}
		cut := cutAnswers[req.Header.Get("X-Cut")]
		io.WriteString(conn, cut.head+cut.part)
		select {
		case <-seen: // the part has arrived, so that the cut is all that is left
		case <-t.Context().Done():
		}
		io.WriteString(conn, cut.more)
		if cut.reset {
			conn.(*net.TCPConn).SetLinger(0)
		}
	})
	r := rig.StartRelay(t, rig.RelayConfig{})
	r.StartAgent(app, rig.AgentConfig{})
	for name := range cutAnswers {
		for _, version := range []string{"1.1", "1.0"} {
			t.Run(name+", for HTTP/"+version, func(t *testing.T) {
				conn := r.Dial(t, soon)
				fmt.Fprintf(conn, "GET / HTTP/%s\r\nHost: %s\r\nX-Cut: %s\r\n\r\n", version, r.AppHost("shop"), name)
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				if err != nil {
					t.Fatal(err)
				}
				part := make([]byte, len("part of it"))
				_, err = io.ReadFull(resp.Body, part)
				seen <- struct{}{} // in any case, so that no connection of the app is left for the next
				if err != nil || string(part) != "part of it" {
					t.Fatalf("the part came as %q, %v", part, err)
				}
				rest, err := io.ReadAll(resp.Body)
				switch {
				case err == nil:
					t.Errorf("a clean end, after %q more", rest)
				case isTimeout(err):
					t.Errorf("the client was never told: %v", err)
				}
			})
		}
	}
	// What ends with the connection by design is whole.
	t.Run("until the end, closed", func(t *testing.T) {
		r := startRawApp(t, func(conn net.Conn) {
			if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				io.WriteString(conn, "HTTP/1.0 200 OK\r\n\r\nall of it")
			}
		})
		for _, version := range []string{"1.1", "1.0"} {
			conn := r.Dial(t, soon)
			fmt.Fprintf(conn, "GET / HTTP/%s\r\nHost: %s\r\n\r\n", version, r.AppHost("shop"))
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			if all, err := io.ReadAll(resp.Body); err != nil || string(all) != "all of it" {
				t.Errorf("HTTP/%s: %q, %v", version, all, err)
			}
		}
	})
}

func TestAnUpgradedConnectionThatBreaksOffIsNotACleanEnd(t *testing.T) {
	t.Parallel()
	t.Run("at the client", func(t *testing.T) {
		t.Parallel()
		ready, got := make(chan struct{}, 1), make(chan error, 1)
		r := startRawApp(t, upgradeApp(func(_ *net.TCPConn, in *bufio.Reader) {
			in.ReadByte()
			ready <- struct{}{}
			_, err := in.ReadByte()
			got <- err
		}))
		conn, _ := upgrade(t, r)
		conn.Write([]byte("x"))
		rig.Receive(t, soon, "first byte", ready)
		conn.SetLinger(0)
		conn.Close()
		if err := rig.Receive(t, soon, "the app's end", got); err == nil || err == io.EOF {
			t.Errorf("the app saw %v", err)
		}
	})
	t.Run("at the app", func(t *testing.T) {
		t.Parallel()
		seen := make(chan struct{}, 1)
		r := startRawApp(t, upgradeApp(func(conn *net.TCPConn, _ *bufio.Reader) {
			io.WriteString(conn, "x")
			select {
			case <-seen:
			case <-t.Context().Done():
			}
			conn.SetLinger(0)
		}))
		_, in := upgrade(t, r)
		if _, err := in.ReadByte(); err != nil {
			t.Fatal(err)
		}
		seen <- struct{}{}
		if _, err := in.ReadByte(); err == nil || err == io.EOF || isTimeout(err) {
			t.Errorf("the client saw %v", err)
		}
	})
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

func TestASlowTrickleOutlivesTheIdleLimit(t *testing.T) {
	t.Parallel()
	const idle, beats, pace = 2 * time.Second, 12, 400 * time.Millisecond // 4.8 s in all
	r := startApp(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodPost {
			n, err := io.Copy(io.Discard, req.Body)
			fmt.Fprintf(w, "%d %v", n, err)
			return
		}
		trickle(req.Context(), pace, beats, func() {
			io.WriteString(w, ".")
			http.NewResponseController(w).Flush()
		})
	}), "POSTERN_IDLE_TIMEOUT="+idle.String())
	t.Run("down", func(t *testing.T) {
		t.Parallel()
		if _, body := do(t, r.Client(), newRequest(t, http.MethodGet, r.AppURL("shop", "/"), nil)); len(body) != beats {
			t.Errorf("%d bytes of %d", len(body), beats)
		}
	})
	t.Run("up", func(t *testing.T) {
		t.Parallel()
		body, w := io.Pipe()
		go func() {
			trickle(t.Context(), pace, beats, func() { io.WriteString(w, ".") })
			w.Close()
		}()
		_, answer := do(t, r.Client(), newRequest(t, http.MethodPost, r.AppURL("shop", "/"), body))
		if string(answer) != fmt.Sprintf("%d <nil>", beats) {
			t.Errorf("the app got %s", answer)
		}
	})
}

// trickle calls do n times at pace.
func trickle(ctx context.Context, pace time.Duration, n int, do func()) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for range n {
		do()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func TestSilenceBeyondTheIdleLimitIsATimeout(t *testing.T) {
	t.Parallel()
	canceled := make(chan struct{}, 2)
	r := startApp(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/half" {
			io.WriteString(w, "half")
			http.NewResponseController(w).Flush()
		}
		<-req.Context().Done()
		canceled <- struct{}{}
	}), "POSTERN_IDLE_TIMEOUT=600ms")
	began := time.Now()
	resp, body := do(t, r.Client(), newRequest(t, http.MethodGet, r.AppURL("shop", "/"), nil))
	wantRefusal(t, resp, body, http.StatusGatewayTimeout, "app_timeout")
	if took := time.Since(began); took < 500*time.Millisecond {
		t.Errorf("given up after %v", took)
	}
	rig.Receive(t, soon, "end of the app's request", canceled)

	resp, err := r.Client().Get(r.AppURL("shop", "/half"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err == nil || string(got) != "half" {
		t.Errorf("an answer that fell silent ended as %q, %v", got, err)
	}
	rig.Receive(t, soon, "end of the app's request", canceled)
}
