package policies

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/protocol/protocoltest"
)

// fakeAgent is the agent's end of a stream of policies.
type fakeAgent struct {
	t    testing.TB
	conn net.Conn
	got  chan *policy.Policy // what run has taken
	done chan struct{}       // closed when serve has returned
}

// agent has b serve a new one, until the test ends. It does nothing by itself.
func (b *bench) agent(app, instance string) *fakeAgent {
	ours, theirs := net.Pipe()
	a := &fakeAgent{t: b.t, conn: theirs, got: make(chan *policy.Policy, 100), done: make(chan struct{})}
	ctx, cancel := context.WithCancel(b.t.Context())
	go func() {
		defer close(a.done)
		b.serve(ctx, protocol.AppID(app), instance, ours)
	}()
	b.t.Cleanup(func() { cancel(); theirs.Close(); <-a.done })
	return a
}

// take reads the next policy.
func (a *fakeAgent) take() (*policy.Policy, error) {
	var got policy.Policy
	if err := protocol.ReadMessage(a.conn, protocol.MaxPolicy, &got); err != nil {
		return nil, err
	}
	return &got, nil
}

func (a *fakeAgent) ack(serial int64, problem string) {
	if err := protocol.WriteMessage(a.conn, protocol.PolicyAck{Serial: serial, Error: problem}); err != nil {
		a.t.Errorf("ack: %v", err)
	}
}

// run takes and acknowledges, a while after each, until the stream ends.
func (a *fakeAgent) run(after time.Duration) *fakeAgent {
	go func() {
		defer close(a.got)
		for {
			got, err := a.take()
			if err != nil {
				return
			}
			time.Sleep(after)
			a.got <- got
			if protocol.WriteMessage(a.conn, protocol.PolicyAck{Serial: got.Serial}) != nil {
				return
			}
		}
	}()
	return a
}

func TestAnAgentGetsThePolicyAtOnceAndWheneverItChanges(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil)
		b.apply(text("", "https://api.a.test"))
		a := b.agent("shop", "web.1").run(30 * time.Millisecond)
		if got := <-a.got; got.Version != 1 || got.App != "shop" || len(got.Allow) != 1 {
			t.Errorf("first: %+v", got)
		}
		time.Sleep(time.Second)
		changed := time.Now()
		b.apply(text("", "https://api.b.test"))
		got := <-a.got
		if got.Version != 2 || got.Serial != b.Of("shop", "web.1").Policy().Serial || got.Allow[0].Host != "api.b.test" {
			t.Errorf("second: %+v", got)
		}
		synctest.Wait()
		st := b.Status("shop")
		if len(st.Agents) != 1 || st.AppliedMS != 30 {
			t.Fatalf("status: %+v", st)
		}
		have := st.Agents[0]
		if have.Serial != got.Serial || have.Version != 2 || have.DelayMS != 30 || !have.AppliedAt.Equal(changed.Add(30*time.Millisecond)) {
			t.Errorf("agent: %+v", have)
		}
	})
}

func TestTheSameOverARealStream(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.apply(text("", "https://api.a.test"))
	agent, server := protocoltest.Pipe(t, protocoltest.Options{})
	got := make(chan *policy.Policy, 10)
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	running.Go(func() {
		agent.Run(ctx, protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
			if s.Kind() != protocol.KindPolicy || s.Accept() != nil {
				t.Errorf("stream of kind %s", s.Kind())
				return
			}
			for {
				var p policy.Policy
				if protocol.ReadMessage(s, protocol.MaxPolicy, &p) != nil {
					return
				}
				got <- &p
				protocol.WriteMessage(s, protocol.PolicyAck{Serial: p.Serial})
			}
		}})
	})
	running.Go(func() { server.Run(ctx, protocol.Handler{}) })
	s, err := server.Open(ctx, protocol.Open{Kind: protocol.KindPolicy})
	if err != nil {
		t.Fatal(err)
	}
	serving, end := context.WithCancel(ctx)
	running.Go(func() { b.Serve(serving, "shop", "web.1", s) })
	if p := <-got; p.Version != 1 {
		t.Errorf("first: version %d", p.Version)
	}
	b.apply(text("", "https://api.b.test"))
	if p := <-got; p.Version != 2 {
		t.Errorf("second: version %d", p.Version)
	}
	for deadline := time.Now().Add(10 * time.Second); b.Status("").AppliedMS < 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the acknowledgement did not come: %+v", b.Status(""))
		}
	}
	end()
	cancel()
	running.Wait()
	if agents := b.Status("").Agents; len(agents) != 0 {
		t.Errorf("still served: %+v", agents)
	}
}

func TestASlowAgentGetsOnlyTheNewest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil)
		b.apply(text("", "https://api.v1.test"))
		slow, quick := b.agent("shop", "web.1"), b.agent("shop", "web.2").run(0)
		synctest.Wait() // the first one is on its way to slow
		for i := range 5 {
			b.apply(text("", fmt.Sprintf("https://api.v%d.test", i+2)))
			synctest.Wait()
		}
		for i := range 6 {
			if got := <-quick.got; got.Version != int64(i+1) {
				t.Errorf("quick: version %d, want %d", got.Version, i+1)
			}
		}
		for _, want := range []int64{1, 6} {
			got, err := slow.take()
			if err != nil || got.Version != want {
				t.Fatalf("slow: %+v, %v, want version %d", got, err, want)
			}
		}
	})
}

func TestAnAgentThatTakesNothingLosesItsStream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil)
		b.apply(text("", "https://api.a.test"))
		stuck := b.agent("shop", "web.1")
		quick := b.agent("shop", "web.2").run(0)
		<-quick.got
		b.apply(text("", "https://api.b.test"))
		if got := <-quick.got; got.Version != 2 {
			t.Errorf("quick: version %d", got.Version)
		}
		synctest.Wait()
		if st := b.Status(""); st.AppliedMS != -1 || len(st.Agents) != 2 || st.Agents[0].Serial != 0 {
			t.Errorf("while it is stuck: %+v", st)
		}
		start := time.Now()
		<-stuck.done
		if took := time.Since(start); took != pushTime {
			t.Errorf("lost after %v, want %v", took, pushTime)
		}
		if _, err := stuck.take(); !errors.Is(err, io.EOF) {
			t.Errorf("stuck: %v", err)
		}
		if st := b.Status(""); st.AppliedMS != 0 || len(st.Agents) != 1 {
			t.Errorf("when it is gone: %+v", st)
		}
	})
}

func TestWhatAgentsAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil)
		b.apply(text("", "https://api.a.test"))
		a := b.agent("shop", "web.1")
		first, err := a.take()
		if err != nil {
			t.Fatal(err)
		}
		have := func() api.EgressAgent { synctest.Wait(); return b.Status("").Agents[0] }
		a.ack(first.Serial+1, "")
		if got := have(); got.Serial != 0 {
			t.Errorf("a serial that was not sent counts: %+v", got)
		}
		a.ack(first.Serial, "")
		if got := have(); got.Serial != first.Serial || got.Error != "" {
			t.Errorf("after the first: %+v", got)
		}
		b.apply(text("", "https://api.b.test"))
		second, err := a.take()
		if err != nil {
			t.Fatal(err)
		}
		a.ack(second.Serial, "no memory\n"+strings.Repeat("x", 500))
		if got := have(); got.Serial != first.Serial || !strings.HasPrefix(got.Error, "no memory xxx") || len(got.Error) > 210 {
			t.Errorf("after an error: %+v", got)
		}
		if ms := b.Status("").AppliedMS; ms != -1 {
			t.Errorf("applied in %v ms although one has not", ms)
		}
		a.ack(first.Serial, "")
		if got := have(); got.Error == "" {
			t.Errorf("an old serial again counts: %+v", got)
		}
		// What is no acknowledgement ends the stream.
		if _, err := a.conn.Write([]byte{0xff, 0, 0, 0}); err != nil {
			t.Fatal(err)
		}
		<-a.done
	})
}

// A thousand agents have a change within two seconds, and whoever ordered it waits no
// longer, although one of them is stuck.
func TestAThousandAgents(t *testing.T) {
	b := newBench(t, nil)
	b.apply(text("", "https://api.a.test"))
	agents := make([]*fakeAgent, 1000)
	for i := range agents {
		agents[i] = b.agent("shop", fmt.Sprintf("web.%04d", i))
		if i != 500 {
			<-agents[i].run(0).got
		}
	}
	start := time.Now()
	if _, err := b.Order(t.Context(), "tok_1", api.OrderRequest{Kind: "deny", What: "api.a.test", ForMS: 60_000, Reason: "leak"}); err != nil {
		t.Fatal(err)
	}
	ordered := time.Since(start)
	for i, a := range agents {
		if i == 500 {
			continue
		}
		select {
		case got := <-a.got:
			if len(got.Emergency) != 1 {
				t.Errorf("agent %d got %+v", i, got)
			}
		case <-time.After(2*time.Second - time.Since(start)):
			t.Fatalf("agent %d has nothing after 2 s", i)
		}
	}
	all := time.Since(start)
	// The acknowledgements are on their way.
	for b.roster.behind(b.state.Load()) > 1 {
		if time.Since(start) > 10*time.Second {
			t.Fatalf("%d agents are behind", b.roster.behind(b.state.Load()))
		}
		time.Sleep(time.Millisecond)
	}
	st := b.Status("")
	slowest := 0.0
	for i, a := range st.Agents {
		if i == 500 {
			if a.Serial != 0 {
				t.Errorf("the stuck one: %+v", a)
			}
			continue
		}
		slowest = max(slowest, a.DelayMS)
		if a.Serial != st.Serial {
			t.Errorf("agent %s has serial %d, want %d", a.Instance, a.Serial, st.Serial)
		}
	}
	t.Logf("order took %v, all agents had it after %v, the slowest acknowledged after %v ms", ordered, all, slowest)
	if slowest > 2000 || ordered > 2*time.Second {
		t.Errorf("slowest agent %v ms, order %v; want at most 2 s", slowest, ordered)
	}
	if st.AppliedMS != -1 {
		t.Errorf("applied in %v ms although one is stuck", st.AppliedMS)
	}
}

func TestAgentsThatAreGoneAreForgotten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil)
		b.agents = instances(1)
		a := b.agent("shop", "web.1").run(0)
		<-a.got
		synctest.Wait()
		if st := b.Status(""); len(st.Agents) != 2 || st.Agents[1].Instance != "web.0" || st.Agents[1].Serial != 0 {
			t.Errorf("with one that has no stream: %+v", st.Agents)
		}
		if st := b.Status("blog"); len(st.Agents) != 0 {
			t.Errorf("of another app: %+v", st.Agents)
		}
		a.conn.Close()
		<-a.done
		if st := b.Status(""); len(st.Agents) != 1 {
			t.Errorf("when it is gone: %+v", st.Agents)
		}
	})
}

func TestServeEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil)
		ours, theirs := net.Pipe()
		defer theirs.Close()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); b.serve(ctx, "shop", "web.1", ours) }()
		synctest.Wait() // it writes to nobody
		cancel()
		<-done
		if _, err := theirs.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the stream's other end reads %v, want its end", err)
		}
	})
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil)
		b.apply(text("", "https://api.a.test"))
		a := b.agent("shop", "web.1").run(30 * time.Millisecond)
		<-a.got
		synctest.Wait()
		b.apply(text("", "https://api.b.test"))
		<-a.got
		synctest.Wait()
		var out strings.Builder
		b.WriteMetrics(&out)
		for _, want := range []string{
			"postern_policy_version 2\n", "postern_policy_agents 1\n", "postern_policy_agents_behind 0\n",
			"postern_policy_applied_seconds 0.03\n", "postern_policy_delay_seconds_bucket{le=\"0.025\"} 0\n",
			"postern_policy_delay_seconds_bucket{le=\"0.05\"} 2\n", "postern_policy_delay_seconds_bucket{le=\"+Inf\"} 2\n",
			"postern_policy_delay_seconds_count 2\n", "# TYPE postern_policy_delay_seconds histogram\n",
		} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("lacks %q:\n%s", want, out.String())
			}
		}
	})
}

func TestOfTakesNothing(t *testing.T) {
	b := newBench(t, nil)
	b.apply(text("", "https://api.a.test"))
	b.apply(text(rollout("50%", "10m", "2x"), "https://api.b.test"))
	names := []string{"web.1", "web.2", "web.3", "worker.1"}
	for _, name := range names {
		b.Of("shop", name)
		b.Observe("shop", 1, false)
	}
	if n := testing.AllocsPerRun(1000, func() {
		for _, name := range names {
			b.Observe("shop", b.Of("shop", name).Policy().Version, false)
		}
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func BenchmarkOf(b *testing.B) {
	bench := newBench(b, nil)
	if _, err := bench.Apply(b.Context(), "tok_1", api.ManifestRequest{Source: text("", "https://api.a.test")}); err != nil {
		b.Fatal(err)
	}
	if _, err := bench.Apply(b.Context(), "tok_1", api.ManifestRequest{Source: text(rollout("50%", "10m", "2x"), "https://api.b.test")}); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			bench.Of("shop", "web.1")
		}
	})
}

func TestEverythingAtOnce(t *testing.T) {
	b := newBench(t, nil)
	b.apply(text("", "https://api.a.test"))
	b.agents = instances(8)
	b.run()
	for i := range 8 {
		a := b.agent("shop", fmt.Sprintf("web.%d", i)).run(0)
		go func() {
			for range a.got {
			}
		}()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	var all sync.WaitGroup
	loop := func(f func(i int)) {
		all.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				f(i)
			}
		})
	}
	for n := range 3 {
		loop(func(i int) {
			app := protocol.AppID(fmt.Sprintf("app%d", (n*7+i)%50))
			c := b.Of(app, "web.1")
			if c == nil || c.Policy().App != string(app) {
				t.Errorf("Of %s: %v", app, c)
			}
			b.Observe(app, c.Policy().Version, i%3 == 0)
			b.Observe("shop", b.Of("shop", fmt.Sprintf("web.%d", i%8)).Policy().Version, i%2 == 0)
		})
	}
	loop(func(i int) {
		_, err := b.Apply(ctx, "tok_1", api.ManifestRequest{Source: text(rollout("30%", "1s", "2x"), fmt.Sprintf("https://v%d.test", i))})
		if err != nil && ctx.Err() == nil {
			t.Errorf("Apply: %v", err)
		}
		b.Promote(ctx, "tok_1")
		b.Rollback(ctx, "tok_1", api.RollbackRequest{})
	})
	loop(func(i int) {
		o, err := b.Order(ctx, "tok_1", api.OrderRequest{Kind: "deny", What: "api.x.test", ForMS: 50, Reason: "r"})
		if err == nil && i%2 == 0 {
			b.EndOrder(ctx, "tok_1", o.ID)
		}
	})
	loop(func(int) {
		b.Status("")
		b.WriteMetrics(io.Discard)
		b.Diff(ctx, api.ManifestRequest{Source: text("", "https://z.test"), SinceMS: 1000})
		b.Learn(ctx, "shop", time.Now().Add(-time.Hour))
		time.Sleep(time.Millisecond)
	})
	all.Wait()
	versions, err := b.store.Manifests(t.Context(), 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	running := 0
	for _, v := range versions {
		if v.Status == "running" {
			running++
		}
	}
	if running != 1 {
		t.Errorf("%d versions are running", running)
	}
	serials := map[int64]bool{}
	for _, a := range b.Status("").Agents {
		serials[a.Serial] = true
	}
	if len(serials) == 0 || serials[0] {
		t.Errorf("agents' serials: %v", serials)
	}
}
