package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

const (
	bulk = 64 << 20 // one download, in bytes

	// firstWindow is what the relay lets an app send ahead of a client;
	// grownWindow what it may become for one that reads fast, or seems to while
	// the kernel still takes all. appMemory is what an app has by default, and
	// growth what all its windows together may grow by.
	firstWindow = 256 << 10
	grownWindow = 4 << 20
	appMemory   = 512 << 20
	growth      = appMemory / 16
	// copying is what the agent's and the relay's own buffers hold besides: 64 KiB
	// to copy with at either end and 128 KiB on their way into the socket, of which
	// several streams share one.
	copying = 256 << 10
)

// bulkApp sends bulk bytes to whoever asks and counts what it could write. /now
// is answered at once.
type bulkApp struct {
	running atomic.Int64 // answers being written
	written atomic.Int64 // bytes of all of them
}

func (a *bulkApp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/now" {
		io.WriteString(w, "now")
		return
	}
	a.running.Add(1)
	defer a.running.Add(-1)
	w.Header().Set("Content-Length", fmt.Sprint(bulk))
	for chunk, sent := make([]byte, 32<<10), 0; sent < bulk; {
		n, err := w.Write(chunk)
		sent += n
		a.written.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// idle is nil when no download runs.
func (a *bulkApp) idle() error {
	if n := a.running.Load(); n > 0 {
		return fmt.Errorf("%d downloads still run at the app", n)
	}
	return nil
}

// stall starts a download on a connection with a small buffer, reads the head
// and ahead bytes, and then no more.
func stall(t testing.TB, addr, host string, ahead int64) (*http.Response, net.Conn) {
	t.Helper()
	resp, conn := download(t, addr, host)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("a download is answered with %s", resp.Status)
	}
	if n, err := io.CopyN(io.Discard, resp.Body, ahead); err != nil {
		t.Fatalf("%v after %d bytes", err, n)
	}
	return resp, conn
}

// download starts a download and reads the head of its answer.
func download(t testing.TB, addr, host string) (*http.Response, net.Conn) {
	t.Helper()
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		raw.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 64<<10) })
		return err
	}}
	conn, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(2 * callWithin))
	io.WriteString(conn, "GET /bulk HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReaderSize(conn, 16), nil)
	if err != nil {
		t.Fatal(err)
	}
	return resp, conn
}

// awaitStandstill waits until the app has not been able to write for a while.
func (a *bulkApp) awaitStandstill(t testing.TB) {
	t.Helper()
	last, since := a.written.Load(), time.Now()
	rig.Eventually(t, 3*wait, "downloads at a standstill", func() error {
		if now := a.written.Load(); now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) < time.Second/2 {
			return fmt.Errorf("the app has written %s and goes on", mib(last))
		}
		return nil
	})
}

func TestStalledDownloadsHoldABoundedPartOfTheRelaysMemory(t *testing.T) {
	const stalled = 100
	r := rig.StartRelay(t, rig.RelayConfig{})
	app, other := &bulkApp{}, &bulkApp{}
	target := rig.Serve(t, app)
	l := newLink(t, r.Addr, 10*time.Millisecond) // far enough for windows to grow
	r.StartAgent(target, rig.AgentConfig{URL: l.URL})
	r.StartAgent(rig.Serve(t, other), rig.AgentConfig{App: "other"})
	host := r.AppHost("shop")
	heapBefore, rssBefore := heapOf(t, r.Admin), r.RSS()

	var conns []net.Conn
	for range stalled {
		_, conn := stall(t, r.Addr, host, 0)
		conns = append(conns, conn)
	}
	app.awaitStandstill(t)
	rss := r.RSS()
	atApp, atRelay := queued(t, portOf(target)), queued(t, r.Port)
	inKernel := atApp + atRelay
	held := app.written.Load() - inKernel
	t.Logf("%d stalled downloads: RSS %s (before: %s), heap %s; the app wrote %s, of which the kernel holds %s between app and agent and %s between relay and clients: %s per download in agent and relay",
		stalled, mib(rss), mib(rssBefore), mib(heapOf(t, r.Admin)), mib(app.written.Load()), mib(atApp), mib(atRelay), mib(held/stalled))
	if rss > 128<<20 {
		t.Errorf("the relay's RSS is %s, want less than 128 MiB", mib(rss))
	}
	if limit := int64(stalled*(firstWindow+copying) + growth); held > limit {
		t.Errorf("agent and relay hold %s of %d downloads, want at most %s", mib(held), stalled, mib(limit))
	}
	for _, h := range []string{host, r.AppHost("other")} {
		median, slowest := latency(t, r.Addr, h, 50)
		t.Logf("beside them %s answers after %v, at the slowest %v", h, median, slowest)
		if slowest > time.Second {
			t.Errorf("a request to %s took %v", h, slowest)
		}
	}

	for _, conn := range conns {
		conn.Close()
	}
	left := time.Now()
	rig.Eventually(t, wait, "the app's connections are closed", app.idle)
	closed := time.Since(left)
	rig.Eventually(t, 2*wait, "memory given back", func() error {
		if heap := heapOf(t, r.Admin); heap > heapBefore+16<<20 {
			return fmt.Errorf("the heap is %s, it was %s", mib(heap), mib(heapBefore))
		}
		if now := r.RSS(); now > rss-(rss-rssBefore)/3 {
			return fmt.Errorf("RSS is %s, it was %s before and %s at most", mib(now), mib(rssBefore), mib(rss))
		}
		return nil
	})
	t.Logf("the app's connections were closed %v after the clients left; RSS %s, heap %s after %v",
		closed.Round(time.Millisecond), mib(r.RSS()), mib(heapOf(t, r.Admin)), time.Since(left).Round(time.Millisecond))
}

// latency asks n times, one after another.
func latency(t testing.TB, addr, host string, n int) (median, slowest time.Duration) {
	t.Helper()
	c := &caller{addr: addr, host: host}
	defer c.close()
	var took []time.Duration
	for range n {
		s := c.call(http.MethodGet, "/now", nil, nil)
		if !s.ok() {
			t.Errorf("a request to %s saw %v", host, s)
		}
		took = append(took, s.Took)
	}
	slices.Sort(took)
	return took[n/2].Round(10 * time.Microsecond), took[n-1].Round(10 * time.Microsecond)
}

func TestASlowReaderHoldsNoMoreThanItsWindow(t *testing.T) {
	const line = 20 * time.Millisecond // each way
	for _, c := range []struct {
		name   string
		delay  time.Duration // between agent and relay
		ahead  int64         // read fast before the stall
		memory int64         // of the app
		window int64         // most that may be sent ahead
		grown  bool          // and more than the first window is
	}{
		{"that stalls at once", 0, 0, appMemory, grownWindow, false},
		{"that has read 32 MiB fast", 0, 32 << 20, appMemory, grownWindow, false},
		{"that has read 32 MiB over a long line", line, 32 << 20, appMemory, grownWindow, true},
		{"that stalls at once, of an app with little memory", 0, 0, 1 << 20, firstWindow, false},
		{"that has read 8 MiB over a long line, of an app with little memory", line, 8 << 20, 1 << 20, firstWindow, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := rig.StartRelay(t, rig.RelayConfig{Env: []string{fmt.Sprintf("POSTERN_APP_MEMORY=%d", c.memory)}})
			app := &bulkApp{}
			target := rig.Serve(t, app)
			l := newLink(t, r.Addr, c.delay)
			r.StartAgent(target, rig.AgentConfig{URL: l.URL})
			_, conn := stall(t, r.Addr, r.AppHost("shop"), c.ahead)
			app.awaitStandstill(t)
			written := app.written.Load()
			inKernel := queued(t, portOf(target), r.Port)
			held := written - c.ahead - inKernel
			t.Logf("the app wrote %s; the client has read %s, the kernel holds %s, agent and relay hold %s",
				mib(written), mib(c.ahead), mib(inKernel), mib(held))
			if held > c.window+copying {
				t.Errorf("agent and relay hold %s, want at most %s and %s of copying", mib(held), mib(c.window), mib(copying))
			}
			if c.grown && held < 2*firstWindow {
				t.Errorf("agent and relay hold %s: the window has not grown, and this test shows nothing", mib(held))
			}
			conn.Close()
			rig.Eventually(t, wait, "the app's connection is closed", app.idle)
		})
	}
}

func TestAnAppOverItsMemoryIsRefusedAndRecovers(t *testing.T) {
	t.Parallel()
	const streams = 8
	r := rig.StartRelay(t, rig.RelayConfig{Env: []string{fmt.Sprintf("POSTERN_APP_MEMORY=%d", streams*firstWindow)}})
	app, other := newGate("one"), newGate("other")
	r.StartAgent(rig.Serve(t, app), rig.AgentConfig{})
	r.StartAgent(rig.Serve(t, other), rig.AgentConfig{App: "other"})
	host := r.AppHost("shop")
	var holding []<-chan seen
	for range streams {
		holding = append(holding, asking(r.Addr, host, "/wait"))
		rig.Receive(t, wait, "the request at the app", app.arrived)
	}
	for range 20 {
		s := ask(r.Addr, host, "/now")
		if s.Status != http.StatusServiceUnavailable || s.Code != "overloaded" || s.Header.Get("Retry-After") == "" {
			t.Fatalf("the request beyond the limit saw %v, Retry-After %q", s, s.Header.Get("Retry-After"))
		}
		if s.Took > time.Second {
			t.Errorf("it was refused only after %v", s.Took)
		}
	}
	if s := ask(r.Addr, r.AppHost("other"), "/now"); !s.ok() {
		t.Errorf("the other app: saw %v", s)
	}
	close(app.open)
	for _, answer := range holding {
		if s := rig.Receive(t, wait, "the answer", answer); !s.ok() {
			t.Errorf("a request within the limit saw %v", s)
		}
	}
	rig.Eventually(t, wait, "the app is served again", func() error {
		if s := ask(r.Addr, host, "/now"); !s.ok() {
			return errors.New(s.String())
		}
		return nil
	})
	// All of it was given back, not some.
	app.open = make(chan struct{})
	for range streams {
		asking(r.Addr, host, "/wait")
		rig.Receive(t, wait, "the request at the app", app.arrived)
	}
	close(app.open)
}

func TestClientsThatLeaveGiveTheirStreamsBack(t *testing.T) {
	t.Parallel()
	const streams = 8
	r := rig.StartRelay(t, rig.RelayConfig{Env: []string{fmt.Sprintf("POSTERN_APP_MEMORY=%d", streams*firstWindow)}})
	app := &bulkApp{}
	r.StartAgent(rig.Serve(t, app), rig.AgentConfig{})
	host := r.AppHost("shop")
	for range 10 { // a leak of one stream each time would show
		var conns []net.Conn
		for range streams {
			_, conn := stall(t, r.Addr, host, 0)
			conns = append(conns, conn)
		}
		if s := ask(r.Addr, host, "/now"); s.Code != "overloaded" {
			t.Fatalf("a request beyond the limit saw %v", s)
		}
		for _, conn := range conns {
			conn.Close()
		}
		rig.Eventually(t, wait, "the downloads have ended", app.idle)
		awaitRoom(t, r.Addr, host, streams)
	}
}

// awaitRoom waits until the app has room for n requests at once.
func awaitRoom(t testing.TB, addr, host string, n int) {
	t.Helper()
	rig.Eventually(t, wait, "room for as many requests as before", func() error {
		var crowd tally
		var asking sync.WaitGroup
		for range n {
			asking.Go(func() { crowd.add(ask(addr, host, "/now")) })
		}
		asking.Wait()
		if len(crowd.failures()) > 0 {
			return errors.New(crowd.String())
		}
		return nil
	})
}

func TestTheStalledStreamsOfOneAppDoNotStopAnother(t *testing.T) {
	const streams = 32
	r := rig.StartRelay(t, rig.RelayConfig{Env: []string{fmt.Sprintf("POSTERN_APP_MEMORY=%d", streams*firstWindow)}})
	greedy, modest := &bulkApp{}, &bulkApp{}
	r.StartAgent(rig.Serve(t, greedy), rig.AgentConfig{App: "greedy"})
	r.StartAgent(rig.Serve(t, modest), rig.AgentConfig{App: "modest"})
	running := 0
	for range 2 * streams { // windows that grow take the place of some
		if resp, _ := download(t, r.Addr, r.AppHost("greedy")); resp.StatusCode == http.StatusOK {
			running++
		}
	}
	if running > streams || running < streams*3/4 {
		t.Errorf("%d downloads run in the memory of %d", running, streams)
	}
	greedy.awaitStandstill(t)
	if s := ask(r.Addr, r.AppHost("greedy"), "/now"); s.Code != "overloaded" {
		t.Errorf("the app over its memory: saw %v", s)
	}
	median, slowest := latency(t, r.Addr, r.AppHost("modest"), 100)
	t.Logf("the other app answers after %v, at the slowest %v", median, slowest)
	if slowest > time.Second {
		t.Errorf("a request to the other app took %v", slowest)
	}
	began := time.Now()
	resp, _ := stall(t, r.Addr, r.AppHost("modest"), bulk)
	resp.Body.Close()
	t.Logf("the other app's download of %s took %v", mib(bulk), time.Since(began).Round(time.Millisecond))
}

func TestParkedRequestsAreBounded(t *testing.T) {
	const (
		requests = 600
		places   = 512
	)
	r := rig.StartRelay(t, rig.RelayConfig{Env: []string{"POSTERN_PARK=20s"}})
	app := newGate("one")
	token := r.Token("shop") // which makes the app known
	var refused, served, otherwise atomic.Int64
	var asked sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), callWithin)
	defer cancel()
	began := time.Now()
	var slowest atomic.Int64
	for range requests {
		asked.Go(func() {
			s := ask(r.Addr, r.AppHost("shop"), "/now")
			switch {
			case s.ok():
				served.Add(1)
			case s.Status == http.StatusServiceUnavailable && s.Code == "no_agent" && s.Header.Get("Retry-After") != "":
				refused.Add(1)
				slowest.Store(max(slowest.Load(), int64(s.Took)))
			default:
				otherwise.Add(1)
				t.Errorf("a request saw %v", s)
			}
		})
	}
	rig.Eventually(t, wait, "the requests beyond the bound are refused", func() error {
		if n := refused.Load(); n < requests-places {
			return fmt.Errorf("%d of %d", n, requests-places)
		}
		return ctx.Err()
	})
	t.Logf("%d requests refused within %v, the slowest after %v; RSS with %d parked: %s", refused.Load(),
		time.Since(began).Round(time.Millisecond), time.Duration(slowest.Load()).Round(time.Millisecond), places, mib(r.RSS()))
	r.StartAgent(rig.Serve(t, app), rig.AgentConfig{Token: token})
	asked.Wait()
	if served.Load() != places || refused.Load() != requests-places {
		t.Errorf("%d served, %d refused, %d otherwise; want %d and %d", served.Load(), refused.Load(), otherwise.Load(), places, requests-places)
	}
}
