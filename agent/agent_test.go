package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol"
)

// soon bounds every wait for what should happen at once.
const soon = 10 * time.Second

// gate is a relay's side of the protocol and nothing else.
type gate struct {
	t        *testing.T
	url      string
	sessions chan *session
	run      atomic.Bool // serve the sessions; else they are silent
	dials    atomic.Int32
}

// session is one tunnel as the gate sees it.
type session struct {
	*protocol.Session
	drains chan protocol.Drain
	states chan protocol.AppState
	ended  chan error
}

// newGate starts a relay that welcomes everybody with w. refuse, when set,
// answers in its place as long as it returns true.
func newGate(t *testing.T, w protocol.Welcome, refuse func(http.ResponseWriter) bool) *gate {
	t.Helper()
	g := &gate{t: t, sessions: make(chan *session, 100)}
	g.run.Store(true)
	web := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		g.dials.Add(1)
		if refuse != nil && refuse(rw) {
			return
		}
		sess, err := protocol.Accept(rw, r, protocol.AcceptConfig{
			Welcome: func(protocol.Hello) (protocol.Welcome, error) { return w, nil },
		})
		if err != nil {
			return
		}
		s := &session{Session: sess, drains: make(chan protocol.Drain, 1), states: make(chan protocol.AppState, 100), ended: make(chan error, 1)}
		if g.run.Load() {
			go func() {
				s.ended <- sess.Run(context.Background(), protocol.Handler{
					Drain: func(d protocol.Drain) { s.drains <- d },
					State: func(state protocol.AppState, _ string) { s.states <- state },
				})
			}()
		}
		g.sessions <- s
	}))
	g.url = web.URL
	t.Cleanup(web.Close)
	return g
}

// next is the next tunnel that the agent opens.
func (g *gate) next() *session {
	g.t.Helper()
	select {
	case s := <-g.sessions:
		return s
	case <-time.After(soon):
		g.t.Fatal("the agent opens no tunnel")
		return nil
	}
}

// start runs an agent at g. The returned channel has Run's error.
func (g *gate) start(ctx context.Context, cfg Config) (*Agent, <-chan error) {
	cfg.Relay, cfg.Token = g.url, "t"
	cfg.Hello.Instance, cfg.Hello.BootID = "web.1", "0123456789"
	a := New(cfg)
	ended := make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ended <- a.Run(ctx)
	}()
	g.t.Cleanup(func() { a.Close(); <-done })
	return a, ended
}

// within returns what c brings.
func within[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(soon):
		t.Fatalf("not within %v: %s", soon, what)
		panic("unreachable")
	}
}

func wantOpen(t *testing.T, s *session) {
	t.Helper()
	select {
	case <-s.Done():
		t.Error("the tunnel has ended")
	default:
	}
}

func TestWaitBetweenAttemptsGrowsWithTheTimeTheRelayIsAway(t *testing.T) {
	const ms = time.Millisecond
	for _, test := range []struct {
		attempt int
		away    time.Duration
		bound   time.Duration
	}{
		{0, 0, 100 * ms}, {1, 0, 200 * ms}, {2, 0, 400 * ms}, {3, 0, 800 * ms}, {4, 0, time.Second},
		{1000, time.Minute, time.Second},
		{3, time.Minute + 1, 800 * ms}, {5, 2 * time.Minute, 3200 * ms}, {6, 2 * time.Minute, 5 * time.Second},
		{1000, 10 * time.Minute, 5 * time.Second},
		{0, 24 * time.Hour, 100 * ms}, {8, 11 * time.Minute, 25600 * ms}, {9, 11 * time.Minute, 30 * time.Second},
		{1 << 40, 24 * time.Hour, 30 * time.Second},
	} {
		for _, random := range []float64{0, 0.25, 1} {
			want := time.Duration(random * float64(test.bound))
			if got := backoff(test.attempt, test.away, random); got != want {
				t.Errorf("attempt %d after %v with %v: %v, want %v", test.attempt, test.away, random, got, want)
			}
		}
	}
}

func TestFailuresAreLoggedEachTimeTheirNumberHasDoubled(t *testing.T) {
	var log bytes.Buffer
	a := New(Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	for attempt := range 20 {
		a.logFailure(0, attempt, io.EOF, 0)
		a.logFailure(1, attempt, io.EOF, 0) // the other tunnels say nothing new
	}
	var got []string
	for line := range strings.Lines(log.String()) {
		for field := range strings.FieldsSeq(line) {
			if n, ok := strings.CutPrefix(field, "attempt="); ok {
				got = append(got, n)
			}
		}
	}
	if want := []string{"1", "2", "4", "8", "16"}; !slices.Equal(got, want) {
		t.Errorf("attempts %v were logged, want %v", got, want)
	}
}

func TestAgentHoldsAsManyTunnelsAsItIsTold(t *testing.T) {
	for _, test := range []struct{ configured, want int }{
		{0, DefaultTunnels}, {1, 1}, {3, 3}, {1000, protocol.MaxTunnels},
	} {
		t.Run(fmt.Sprint(test.configured), func(t *testing.T) {
			g := newGate(t, protocol.Welcome{Session: "s", Node: "n1", URL: "https://shop.example.com"}, nil)
			a, _ := g.start(context.Background(), Config{Tunnels: test.configured})
			seen := map[int]bool{}
			for range test.want {
				h := g.next().Hello()
				if seen[h.Tunnel] || h.Tunnels != test.want || h.Instance != "web.1" {
					t.Errorf("hello %+v, want one for each of %d tunnels", h, test.want)
				}
				seen[h.Tunnel] = true
			}
			within(t, a.Ready(), "Ready is closed")
			if got := a.URL(); got != "https://shop.example.com" {
				t.Errorf("URL is %q", got)
			}
		})
	}
}

func TestTokenThatWillNeverBeGoodEndsTheAgent(t *testing.T) {
	for _, reason := range []string{"token_revoked", "token_malformed"} {
		t.Run(reason, func(t *testing.T) {
			var refuse atomic.Bool
			g := newGate(t, protocol.Welcome{}, func(w http.ResponseWriter) bool {
				if refuse.Load() {
					w.WriteHeader(http.StatusUnauthorized)
					fmt.Fprintf(w, `{"error":{"code":"unauthorized","reason":%q,"message":"no"}}`, reason)
				}
				return refuse.Load()
			})
			a, ended := g.start(context.Background(), Config{Tunnels: 2})
			first, second := g.next(), g.next()
			refuse.Store(true)
			first.Close(protocol.CodeRevoked, "the token was revoked")
			err := within(t, ended, "Run ends")
			var why *protocol.HandshakeError
			if !errors.Is(err, ErrGivenUp) || !errors.As(err, &why) || why.Reason != reason {
				t.Errorf("Run returned %v, want ErrGivenUp with the relay's reason", err)
			}
			within(t, second.ended, "the other tunnel ends too")
			if n := len(a.running(false)); n != 0 {
				t.Errorf("%d sessions are left", n)
			}
		})
	}
}

func TestRefusalThatMayPassIsTriedAgain(t *testing.T) {
	for _, test := range []struct {
		name, body string
		status     int
	}{
		{"an expired token", `{"error":{"code":"unauthorized","reason":"token_expired","message":"no"}}`, 401},
		{"an unknown key", `{"error":{"code":"unauthorized","reason":"token_key","message":"no"}}`, 401},
		{"a relay that stops, whatever its Retry-After", `{"error":{"code":"draining","message":"no"}}`, 503},
		{"something that is no relay", `<h1>It works!</h1>`, 200},
	} {
		t.Run(test.name, func(t *testing.T) {
			var refused atomic.Int32
			g := newGate(t, protocol.Welcome{}, func(w http.ResponseWriter) bool {
				if refused.Add(1) > 2 {
					return false
				}
				if test.status == 503 {
					w.Header().Set("Retry-After", "3600")
				}
				w.WriteHeader(test.status)
				io.WriteString(w, test.body)
				return true
			})
			g.start(context.Background(), Config{Tunnels: 1})
			g.next()
		})
	}
}

func TestRelaysDrainBringsANewTunnelBesideTheOldOne(t *testing.T) {
	g := newGate(t, protocol.Welcome{Session: "s"}, nil)
	_, ended := g.start(context.Background(), Config{Tunnels: 1})
	old := g.next()
	if err := old.Drain(t.Context(), protocol.Drain{Reason: "relay restarts", Grace: time.Minute}); err != nil {
		t.Fatal(err)
	}
	successor := g.next()
	wantOpen(t, old)
	if got := successor.Hello(); got.Tunnel != old.Hello().Tunnel || got.BootID != old.Hello().BootID {
		t.Errorf("the new tunnel says %+v, the old one said %+v", got, old.Hello())
	}
	old.Close(protocol.CodeShutdown, "relay stopped")
	within(t, old.ended, "the old tunnel ends")
	wantOpen(t, successor)
	// The old one's end asks for nothing: one more drain, one more tunnel.
	if err := successor.Drain(t.Context(), protocol.Drain{}); err != nil {
		t.Fatal(err)
	}
	g.next()
	if n := g.dials.Load(); n != 3 {
		t.Errorf("%d tunnels were opened, want 3", n)
	}
	select {
	case err := <-ended:
		t.Errorf("the agent ended: %v", err)
	default:
	}
}

func TestDrainingRelayIsLeftAloneUntilTheAgentsTurn(t *testing.T) {
	g := newGate(t, protocol.Welcome{}, nil)
	g.start(context.Background(), Config{Tunnels: 1})
	turn := 200 * time.Millisecond
	began := time.Now()
	if err := g.next().Drain(t.Context(), protocol.Drain{Reconnect: turn}); err != nil {
		t.Fatal(err)
	}
	g.next()
	if took := time.Since(began); took < turn {
		t.Errorf("came back after %v, before its turn at %v", took, turn)
	}
}

func TestTunnelThatIsLostIsOpenedAgain(t *testing.T) {
	g := newGate(t, protocol.Welcome{SlotMS: 1}, nil)
	g.start(context.Background(), Config{Tunnels: 2})
	first, second := g.next(), g.next()
	first.Close(protocol.CodeReset, "gone")
	if got, want := g.next().Hello().Tunnel, first.Hello().Tunnel; got != want {
		t.Errorf("tunnel %d was opened for the lost %d", got, want)
	}
	wantOpen(t, second)
}

func TestSilentRelayGetsASecondTunnelBeforeTheFirstIsGivenUp(t *testing.T) {
	g := newGate(t, protocol.Welcome{HeartbeatMS: 100}, nil)
	g.run.Store(false) // the relay does not even read
	a, _ := g.start(context.Background(), Config{Tunnels: 1})
	silent := g.next()
	within(t, a.Ready(), "Ready is closed")
	g.run.Store(true)
	t.Cleanup(func() { silent.Close(protocol.CodeShutdown, "test over") })
	wantOpen(t, g.next())
	// Later the silent one is given up, without a third in its place.
	deadline := time.Now().Add(soon)
	for len(a.running(false)) != 1 {
		if time.Now().After(deadline) {
			t.Fatal("the silent tunnel is never given up")
		}
		time.Sleep(time.Millisecond)
	}
	if n := g.dials.Load(); n != 2 {
		t.Errorf("%d tunnels were opened, want 2", n)
	}
}

func TestAgentStopsInOrder(t *testing.T) {
	g := newGate(t, protocol.Welcome{}, nil)
	entered, release := make(chan struct{}), make(chan struct{})
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(entered)
		<-release
		io.WriteString(w, "finished")
	}))
	defer app.Close()
	a, ended := g.start(context.Background(), Config{Tunnels: 2, Target: app.Listener.Addr().String()})
	sessions := []*session{g.next(), g.next()}
	within(t, a.Ready(), "Ready is closed")
	stream, err := sessions[0].Open(t.Context(), protocol.Open{Kind: protocol.KindHTTP})
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(stream, "GET / HTTP/1.0\r\n\r\n")
	within(t, entered, "the app has the request")

	// The relay is told on every tunnel, and nothing ends by it.
	deadline := time.Now().Add(soon)
	for len(a.running(false)) != 2 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if err := a.Drain(t.Context(), "app stops", time.Minute); err != nil {
		t.Fatal(err)
	}
	for _, s := range sessions {
		if d := within(t, s.drains, "the relay is told"); d.Reason != "app stops" || d.Grace != time.Minute {
			t.Errorf("the relay was told %+v", d)
		}
		wantOpen(t, s)
	}
	// What is in flight is waited for.
	brief, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := a.WaitIdle(brief); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("WaitIdle with a request in flight: %v", err)
	}
	close(release)
	if got, err := io.ReadAll(stream); err != nil || !strings.HasSuffix(string(got), "finished") {
		t.Errorf("the request in flight got %q, %v", got, err)
	}
	stream.Close()
	if err := a.WaitIdle(t.Context()); err != nil {
		t.Errorf("WaitIdle: %v", err)
	}
	// The tunnels go last.
	for _, s := range sessions {
		wantOpen(t, s)
	}
	a.Close()
	for _, s := range sessions {
		if err := within(t, s.ended, "the tunnel ends"); protocol.CodeOf(err) != protocol.CodeShutdown {
			t.Errorf("the relay was told %v, want %s", err, protocol.CodeShutdown)
		}
	}
	if err := within(t, ended, "Run ends"); err != nil {
		t.Errorf("Run returned %v", err)
	}
	if n := g.dials.Load(); n != 2 {
		t.Errorf("%d tunnels were opened, want 2: none after the drain", n)
	}
	a.Close() // a second time is no fault
}

func TestCloseEndsAnAgentThatWaitsForItsNextAttempt(t *testing.T) {
	refused := make(chan struct{}, 100)
	g := newGate(t, protocol.Welcome{}, func(w http.ResponseWriter) bool {
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(http.StatusTooManyRequests)
		refused <- struct{}{}
		return true
	})
	a, ended := g.start(context.Background(), Config{Tunnels: 1})
	within(t, refused, "the agent has tried")
	a.Close()
	if err := within(t, ended, "Run ends"); err != nil {
		t.Errorf("Run returned %v", err)
	}
	if n := g.dials.Load(); n != 1 {
		t.Errorf("%d attempts within the time the relay asked for", n)
	}
}

func TestEndOfTheContextEndsTheAgent(t *testing.T) {
	t.Run("with a tunnel", func(t *testing.T) {
		g := newGate(t, protocol.Welcome{}, nil)
		ctx, cancel := context.WithCancel(t.Context())
		a, ended := g.start(ctx, Config{Tunnels: 1})
		s := g.next()
		within(t, a.Ready(), "Ready is closed")
		served, err := s.Open(t.Context(), protocol.Open{Kind: "unknown"})
		if err != nil {
			t.Fatal(err)
		}
		if err := served.AwaitReply(t.Context()); protocol.CodeOf(err) != protocol.CodeUnsupported {
			t.Fatalf("the tunnel is not served: %v", err)
		}
		cancel()
		if err := within(t, ended, "Run ends"); err != nil {
			t.Errorf("Run returned %v", err)
		}
		within(t, s.ended, "the tunnel ends")
	})
	t.Run("during a handshake", func(t *testing.T) {
		dialed, hold := make(chan struct{}), make(chan struct{})
		g := newGate(t, protocol.Welcome{}, func(http.ResponseWriter) bool {
			close(dialed)
			<-hold
			return true
		})
		t.Cleanup(func() { close(hold) })
		ctx, cancel := context.WithCancel(t.Context())
		_, ended := g.start(ctx, Config{Tunnels: 1})
		within(t, dialed, "the agent dials")
		cancel()
		if err := within(t, ended, "Run ends"); err != nil {
			t.Errorf("Run returned %v", err)
		}
	})
}
