package tunnel

import (
	"context"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/protocoltest"
	"github.com/posternhq/postern/relay"
)

// link is an agent's session and its tunnel in a registry, without a network.
type link struct {
	tunnel *Tunnel
	agent  *protocol.Session
	ended  chan error // how the agent's side ended
}

// connect adds a tunnel of app to r, served by h on the agent's side.
func connect(t *testing.T, r *Registry, app relay.AppID, hello protocol.Hello, h protocol.Handler) *link {
	t.Helper()
	hello.Tunnels = protocol.MaxTunnels
	agent, ours := protocoltest.Pipe(t, protocoltest.Options{Hello: hello})
	l := &link{
		tunnel: newTunnel(relay.Principal{App: app, Token: relay.TokenID("tok_" + hello.Instance)}, ours),
		agent:  agent, ended: make(chan error, 1),
	}
	served := make(chan struct{}, 2)
	go func() {
		l.ended <- agent.Run(context.Background(), h)
		served <- struct{}{}
	}()
	if _, ok := r.add(l.tunnel); !ok {
		t.Fatal("the registry takes no tunnels")
	}
	go func() {
		ours.Run(context.Background(), protocol.Handler{
			Drain: func(protocol.Drain) { l.tunnel.advance(draining) },
			State: func(state protocol.AppState, why string) { r.setAppState(l.tunnel, state, why) },
		})
		r.remove(l.tunnel)
		served <- struct{}{}
	}()
	t.Cleanup(func() {
		agent.Close(protocol.CodeShutdown, "test over")
		<-served
		<-served
	})
	return l
}

func hello(instance, boot string, number int) protocol.Hello {
	return protocol.Hello{Instance: instance, BootID: "0123456789-" + boot, Tunnel: number}
}

// acquireNow takes a stream's place and fails the test when there is none.
func acquireNow(t *testing.T, r *Registry, tried ...*Tunnel) *Tunnel {
	t.Helper()
	got, err := r.acquire(t.Context(), "shop", &attempts{tried: tried})
	if err != nil {
		t.Fatalf("acquire: %v", err)
	}
	return got
}

func TestWorkGoesToTheTunnelThatHasTheLeast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(Limits{}, nil)
		var tunnels []*Tunnel
		for _, name := range []string{"web.1", "web.2", "web.3"} {
			tunnels = append(tunnels, connect(t, r, "shop", hello(name, "a", 0), protocol.Handler{}).tunnel)
		}
		for range 9 {
			acquireNow(t, r)
		}
		for _, tun := range tunnels {
			if n := tun.InFlight(); n != 3 {
				t.Errorf("%s has %d of nine streams, want 3", tun.Instance(), n)
			}
		}
		r.release(tunnels[1])
		r.release(tunnels[1])
		for range 2 {
			if got := acquireNow(t, r); got != tunnels[1] {
				t.Errorf("picked %s, want web.2, which has the least", got.Instance())
			}
		}
	})
}

func TestTunnelsWithEqualWorkTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(Limits{}, nil)
		for _, name := range []string{"web.1", "web.2", "web.3"} {
			connect(t, r, "shop", hello(name, "a", 0), protocol.Handler{})
		}
		got := map[string]int{}
		for range 9 {
			tun := acquireNow(t, r)
			got[tun.Instance()]++
			r.release(tun)
		}
		for _, name := range []string{"web.1", "web.2", "web.3"} {
			if got[name] != 3 {
				t.Errorf("nine requests one after another went to %v, want three each", got)
			}
		}
	})
}

func TestWhatANewTunnelReplaces(t *testing.T) {
	for _, test := range []struct {
		name     string
		newer    protocol.Hello
		want     state
		replaces int
	}{
		{"another instance replaces nothing", hello("web.2", "a", 0), live, 0},
		{"another number of the same boot replaces nothing", hello("web.1", "a", 1), live, 0},
		{"a new boot makes the old one a reserve", hello("web.1", "b", 0), replaced, 1},
		{"a new boot makes the old one a reserve, whatever its number", hello("web.1", "b", 3), replaced, 1},
		{"the same boot and number closes the old one", hello("web.1", "a", 0), gone, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := NewRegistry(Limits{}, nil)
				old := connect(t, r, "shop", hello("web.1", "a", 0), protocol.Handler{})
				foreign := connect(t, r, "blog", test.newer, protocol.Handler{})
				connect(t, r, "shop", test.newer, protocol.Handler{})
				time.Sleep(2 * time.Second) // of the bubble's clock: whoever closes has closed
				if got := old.tunnel.current(); got != test.want {
					t.Errorf("the older tunnel is in state %d, want %d", got, test.want)
				}
				if foreign.tunnel.current() != live {
					t.Error("a tunnel of another app was replaced")
				}
				if want := 3 - test.replaces; test.want == gone && len(r.Tunnels()) != want {
					t.Errorf("%d tunnels are known, want %d", len(r.Tunnels()), want)
				}
				if test.want != gone {
					return
				}
				if err := <-old.ended; protocol.CodeOf(err) != protocol.CodeReplaced {
					t.Errorf("the agent was told %v, want %s", err, protocol.CodeReplaced)
				}
			})
		})
	}
}

func TestReplacedTunnelIsClosedWithItsLastStreamAndNotBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(Limits{}, nil)
		old := connect(t, r, "shop", hello("web.1", "a", 0), protocol.Handler{})
		first, second := acquireNow(t, r), acquireNow(t, r)
		connect(t, r, "shop", hello("web.1", "a", 0), protocol.Handler{})
		for range 4 {
			if got := acquireNow(t, r); got == old.tunnel {
				t.Error("a replaced tunnel got new work")
			}
		}
		r.release(first)
		time.Sleep(5 * time.Second)
		select {
		case err := <-old.ended:
			t.Fatalf("closed with a stream in flight: %v", err)
		default:
		}
		r.release(second)
		if err := <-old.ended; protocol.CodeOf(err) != protocol.CodeReplaced {
			t.Errorf("the agent was told %v, want %s", err, protocol.CodeReplaced)
		}
	})
}

func TestEarlierBootIsAReserveForWhenNothingElseIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(Limits{Park: time.Second}, nil)
		old := connect(t, r, "shop", hello("web.1", "a", 0), protocol.Handler{}).tunnel
		successor := connect(t, r, "shop", hello("web.1", "b", 0), protocol.Handler{}).tunnel
		for range 3 { // busier and busier, and still preferred
			if got := acquireNow(t, r); got != successor {
				t.Fatal("the reserve was picked before the new boot")
			}
		}
		if got := acquireNow(t, r, successor); got != old {
			t.Error("the reserve was not picked once the new boot had been tried")
		}
		r.remove(successor)
		if got := acquireNow(t, r); got != old {
			t.Error("the reserve was not picked once the new boot was gone")
		}
	})
}

func TestDrainingTunnelIsNeitherPickedNorCalledConnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(Limits{Park: time.Second}, nil)
		if r.Connected("shop") {
			t.Error("connected before any agent was")
		}
		first := connect(t, r, "shop", hello("web.1", "a", 0), protocol.Handler{})
		second := connect(t, r, "shop", hello("web.2", "a", 0), protocol.Handler{})
		if err := first.agent.Drain(t.Context(), protocol.Drain{}); err != nil {
			t.Fatal(err)
		}
		for range 4 {
			if got := acquireNow(t, r); got != second.tunnel {
				t.Fatal("a draining tunnel was picked")
			}
		}
		if !r.Connected("shop") {
			t.Error("not connected although one agent takes work")
		}
		if err := second.agent.Drain(t.Context(), protocol.Drain{}); err != nil {
			t.Fatal(err)
		}
		if r.Connected("shop") {
			t.Error("connected although every agent drains")
		}
		if _, err := r.acquire(t.Context(), "shop", &attempts{}); relay.CodeOf(err) != relay.NoAgent {
			t.Errorf("got %v, want %s", err, relay.NoAgent)
		}
	})
}

func TestRequestWithoutAnAgentIsParked(t *testing.T) {
	limits := Limits{Park: 8 * time.Second, ParkFor: 2 * time.Minute, MaxParked: 3}
	leftAgo := func(d time.Duration) func(*testing.T, *Registry) {
		return func(t *testing.T, r *Registry) {
			time.Sleep(time.Hour) // the relay's start is long past
			l := connect(t, r, "shop", hello("web.1", "a", 0), protocol.Handler{})
			l.agent.Close(protocol.CodeShutdown, "")
			synctest.Wait()
			if n := len(r.Tunnels()); n != 0 {
				t.Fatalf("%d tunnels are left", n)
			}
			time.Sleep(d)
		}
	}
	for _, test := range []struct {
		name   string
		before func(*testing.T, *Registry)
		during func(*testing.T, *Registry)
		want   relay.Code // "" for a tunnel
		after  time.Duration
	}{
		{name: "when the relay has just started, until the limit", want: relay.NoAgent, after: 8 * time.Second},
		{name: "not when no agent was seen for long",
			before: func(*testing.T, *Registry) { time.Sleep(2 * time.Minute) }, want: relay.NoAgent},
		{name: "when an agent left lately", before: leftAgo(119 * time.Second), want: relay.NoAgent, after: 8 * time.Second},
		{name: "not when the last one left long ago", before: leftAgo(121 * time.Second), want: relay.NoAgent},
		{name: "when every agent drains, however long ago the relay started",
			before: func(t *testing.T, r *Registry) {
				time.Sleep(time.Hour)
				connect(t, r, "shop", hello("web.1", "a", 0), protocol.Handler{}).tunnel.advance(draining)
			}, want: relay.NoAgent, after: 8 * time.Second},
		{name: "not when too many are",
			before: func(t *testing.T, r *Registry) {
				for range 3 {
					go r.acquire(t.Context(), "shop", &attempts{})
				}
				synctest.Wait()
			}, want: relay.NoAgent},
		{name: "also when too many of another app are",
			before: func(t *testing.T, r *Registry) {
				for range 3 {
					go r.acquire(t.Context(), "blog", &attempts{})
				}
				synctest.Wait()
			}, want: relay.NoAgent, after: 8 * time.Second},
		{name: "not when the relay stops",
			before: func(t *testing.T, r *Registry) { r.Drain(t.Context(), 0, 0) }, want: relay.NoAgent},
		{name: "until a tunnel comes",
			during: func(t *testing.T, r *Registry) {
				time.Sleep(3 * time.Second)
				connect(t, r, "shop", hello("web.1", "a", 0), protocol.Handler{})
			}, after: 3 * time.Second},
		{name: "through a tunnel of another app",
			during: func(t *testing.T, r *Registry) {
				time.Sleep(3 * time.Second)
				connect(t, r, "blog", hello("web.1", "a", 0), protocol.Handler{})
			}, want: relay.NoAgent, after: 8 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := NewRegistry(limits, nil)
				if test.before != nil {
					test.before(t, r)
				}
				began := time.Now()
				type outcome struct {
					err   error
					after time.Duration
				}
				done := make(chan outcome, 1)
				go func() {
					_, err := r.acquire(t.Context(), "shop", &attempts{})
					done <- outcome{err, time.Since(began)}
				}()
				if test.during != nil {
					test.during(t, r)
				}
				got := <-done
				if relay.CodeOf(got.err) != test.want || (got.err != nil) != (test.want != "") {
					t.Errorf("got %v, want code %q", got.err, test.want)
				}
				if got.after != test.after {
					t.Errorf("after %v, want %v", got.after, test.after)
				}
				time.Sleep(limits.Park)
				synctest.Wait()
				if n := r.apps["shop"].parked; n != 0 {
					t.Errorf("%d requests still hold a place among the parked", n)
				}
			})
		})
	}
}

func TestParkedRequestLeavesWithItsClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(Limits{}, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		began := time.Now()
		_, err := r.acquire(ctx, "shop", &attempts{})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 2*time.Second {
			t.Errorf("got %v after %v, want the context's own error after 2s", err, time.Since(began))
		}
		if n := r.apps["shop"].parked; n != 0 {
			t.Errorf("%d requests are parked after the only one left", n)
		}
	})
}

// An app that refuses connections is not reached by waiting for another agent. Its
// own agent is given a moment to say that it stops.
func TestRequestIsHardlyParkedAfterTheAppItselfRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(Limits{}, nil)
		refuse := protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
			s.Refuse(protocol.CodeRefused, "nothing listens")
		}}
		connect(t, r, "shop", hello("web.1", "a", 0), refuse)
		connect(t, r, "shop", hello("web.2", "a", 0), refuse)
		began := time.Now()
		_, err := r.Open(t.Context(), "shop", protocol.Open{Kind: protocol.KindTCP})
		if relay.CodeOf(err) != relay.AppRefused || time.Since(began) != refusalTime {
			t.Errorf("got %v after %v, want %s after %v", err, time.Since(began), relay.AppRefused, refusalTime)
		}
		for _, tun := range r.Tunnels() {
			if n := tun.InFlight(); n != 0 {
				t.Errorf("%s still counts %d streams", tun.Instance(), n)
			}
		}
	})
}

func TestOpenGoesOnToAnAgentWhoseAppAccepts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(Limits{}, nil)
		connect(t, r, "shop", hello("web.1", "a", 0), protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
			s.Refuse(protocol.CodeRefused, "nothing listens")
		}})
		connect(t, r, "shop", hello("web.2", "a", 0), protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
			s.Accept()
			io.WriteString(s, "hello from "+s.Open().Addr)
			s.CloseWrite()
			io.Copy(io.Discard, s)
		}})
		for range 2 { // whichever comes first
			conn, err := r.Open(t.Context(), "shop", protocol.Open{Kind: protocol.KindTCP, Addr: "db:5432"})
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(conn); err != nil || string(got) != "hello from db:5432" {
				t.Errorf("read %q, %v", got, err)
			}
			conn.Close()
			conn.Close() // gives its place back once
		}
		for _, tun := range r.Tunnels() {
			if n := tun.InFlight(); n != 0 {
				t.Errorf("%s counts %d streams after all were closed", tun.Instance(), n)
			}
		}
		if used := r.budgetOf("shop").used; used != 0 {
			t.Errorf("%d bytes are still counted", used)
		}
	})
}

func TestStreamsBeyondAnAppsMemoryAreRefusedAndItsPlaceComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(Limits{Memory: 2 * streamCost}, nil)
		tun := connect(t, r, "shop", hello("web.1", "a", 0), protocol.Handler{}).tunnel
		connect(t, r, "blog", hello("web.1", "a", 0), protocol.Handler{})
		acquireNow(t, r)
		acquireNow(t, r)
		for range 3 {
			if _, err := r.acquire(t.Context(), "shop", &attempts{}); relay.CodeOf(err) != relay.Overloaded {
				t.Fatalf("third stream: got %v, want %s", err, relay.Overloaded)
			}
		}
		if n := tun.InFlight(); n != 2 {
			t.Errorf("%d streams are counted after two were taken and three refused", n)
		}
		if _, err := r.acquire(t.Context(), "blog", &attempts{}); err != nil {
			t.Errorf("another app pays for it: %v", err)
		}
		r.release(tun)
		acquireNow(t, r)
	})
}

func TestWindowsGrowWithinTheirShareOfAnAppsMemory(t *testing.T) {
	const limit = 64 * streamCost
	b := budget{limit: limit}
	if b.Reserve(limit/growthShare + 1) {
		t.Error("a window grew beyond the share")
	}
	if !b.Reserve(limit/growthShare) || b.Reserve(1) {
		t.Error("the share is not used up exactly")
	}
	b.Release(limit / growthShare)
	for range 63 {
		if !b.openStream() {
			t.Fatal("a stream was refused although there is room")
		}
	}
	if !b.Reserve(streamCost) || b.openStream() {
		t.Error("what windows grew by does not count against the streams")
	}
	b.Release(streamCost)
	if !b.openStream() || b.Reserve(1) {
		t.Error("what streams use does not count against the windows")
	}
}

func TestCloseTokensEndsTheTunnelsOfRevokedTokensOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(Limits{}, nil)
		stolen := connect(t, r, "shop", hello("web.1", "a", 0), protocol.Handler{})
		good := connect(t, r, "shop", hello("web.2", "a", 0), protocol.Handler{})
		r.CloseTokens(func(id relay.TokenID) bool { return id == "tok_web.1" })
		for range 4 {
			if acquireNow(t, r) == stolen.tunnel {
				t.Fatal("a tunnel of a revoked token got work")
			}
		}
		if err := <-stolen.ended; protocol.CodeOf(err) != protocol.CodeRevoked {
			t.Errorf("its agent was told %v, want %s", err, protocol.CodeRevoked)
		}
		time.Sleep(time.Minute)
		if all := r.Tunnels(); len(all) != 1 || all[0] != good.tunnel {
			t.Errorf("%d tunnels are left, want the good one", len(all))
		}
	})
}

func TestDrainGivesEachAgentATurnOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(Limits{}, nil)
		told := make(chan protocol.Drain, 4)
		for _, name := range []string{"web.1", "web.2", "web.3", "web.4"} {
			connect(t, r, "shop", hello(name, "a", 0), protocol.Handler{Drain: func(d protocol.Drain) { told <- d }})
		}
		r.Drain(t.Context(), time.Minute, 400*time.Millisecond)
		var turns []time.Duration
		for range 4 {
			d := <-told
			turns = append(turns, d.Reconnect)
			if d.Grace != time.Minute || d.Reason == "" {
				t.Errorf("an agent was told %+v, want a reason and a grace of 1m", d)
			}
		}
		slices.Sort(turns)
		const ms = time.Millisecond
		if want := []time.Duration{0, 100 * ms, 200 * ms, 300 * ms}; !slices.Equal(turns, want) {
			t.Errorf("turns %v, want %v", turns, want)
		}
		if len(r.Tunnels()) != 4 {
			t.Error("the drain ended tunnels")
		}
		acquireNow(t, r) // requests that are here already are still carried
		_, ours := protocoltest.Pipe(t, protocoltest.Options{})
		if _, ok := r.add(newTunnel(relay.Principal{App: "shop"}, ours)); ok {
			t.Error("a tunnel was taken after the drain began")
		}
	})
}

func TestRegistryTellsWhoIsConnectedAndListsByAppAndAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var came []relay.AppID
		r := NewRegistry(Limits{}, func(id relay.AppID) { came = append(came, id) })
		for _, id := range []relay.AppID{"shop", "blog", "shop"} {
			connect(t, r, id, hello("web."+string('1'+rune(len(came))), "a", 0), protocol.Handler{})
			time.Sleep(time.Second)
		}
		if want := []relay.AppID{"shop", "blog", "shop"}; !slices.Equal(came, want) {
			t.Errorf("told of %v, want %v", came, want)
		}
		var got []string
		for _, tun := range r.Tunnels() {
			got = append(got, string(tun.App())+"/"+tun.Instance())
		}
		if want := []string{"blog/web.2", "shop/web.1", "shop/web.3"}; !slices.Equal(got, want) {
			t.Errorf("listed %v, want %v", got, want)
		}
	})
}

func TestCodesOfTheWireBecomeTheRelays(t *testing.T) {
	for from, want := range map[protocol.Code]relay.Code{
		protocol.CodeRefused:     relay.AppRefused,
		protocol.CodeUnsupported: relay.AppRefused,
		protocol.CodeTimeout:     relay.AppTimeout,
		protocol.CodeDraining:    relay.NoAgent,
		protocol.CodeLimit:       relay.Overloaded,
		protocol.CodeReset:       relay.AppReset,
		protocol.CodeDead:        relay.AppReset,
	} {
		cause := protocol.Errorf(from, "because")
		got := translate(cause, "shop")
		if relay.CodeOf(got) != want || !errors.Is(got, cause) {
			t.Errorf("%s became %v, want %s with its cause", from, got, want)
		}
	}
	if err := translate(io.EOF, "shop"); err != io.EOF {
		t.Errorf("an error without a code became %v", err)
	}
}

// A process that is being replaced may lose its tunnel and come back. Until then
// its successor has the traffic, and keeps it.
func TestEarlierBootThatReconnectsDoesNotPushItsSuccessorAside(t *testing.T) {
	a := &appTunnels{}
	hello := func(boot string) protocol.Hello { return protocol.Hello{Instance: "web.1", BootID: boot} }
	for i, step := range []struct {
		boot    string
		earlier bool
	}{{"a", false}, {"a", false}, {"b", false}, {"a", true}, {"b", false}, {"c", false}, {"b", true}} {
		if got := a.isEarlierLocked(hello(step.boot)); got != step.earlier {
			t.Errorf("step %d, boot %s: earlier %t, expected %t", i, step.boot, got, step.earlier)
		}
	}
}
