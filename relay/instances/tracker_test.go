package instances

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/protocoltest"
	"github.com/posternhq/postern/relay"
)

const app = relay.AppID("shop")

// desk is a Tracker with a store and a tunnel registry made of memory. Each test
// lives in a synctest bubble, so that minutes pass at once.
type desk struct {
	t       *testing.T
	tracker *Tracker
	stop    context.CancelFunc // of Run
	gone    chan struct{}      // closed when Run has returned

	mu      sync.Mutex
	saved   []relay.LastWords
	fail    error
	tunnels []relay.Instance
	asked   func() // called when the tunnels were listed, without the lock
}

func newDesk(t *testing.T) *desk {
	d := &desk{t: t, gone: make(chan struct{})}
	d.tracker = New(Config{
		Save: func(_ context.Context, w relay.LastWords) error {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.fail == nil {
				d.saved = append(d.saved, w)
			}
			return d.fail
		},
		Instances: func(of relay.AppID) []relay.Instance {
			d.mu.Lock()
			list, asked := slices.Clone(d.tunnels), d.asked
			d.mu.Unlock()
			if asked != nil {
				asked()
			}
			return slices.DeleteFunc(list, func(i relay.Instance) bool { return i.App != of })
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	d.stop = cancel
	go func() {
		defer close(d.gone)
		d.tracker.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-d.gone })
	return d
}

// words are the last ones saved so far.
func (d *desk) words() []relay.LastWords {
	synctest.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.saved)
}

func (d *desk) one() relay.LastWords {
	d.t.Helper()
	all := d.words()
	if len(all) != 1 {
		d.t.Fatalf("%d last words were saved, want 1: %+v", len(all), all)
	}
	return all[0]
}

func (d *desk) none(when string) {
	d.t.Helper()
	if all := d.words(); len(all) > 0 {
		d.t.Fatalf("%s, last words were saved: %+v", when, all)
	}
}

// agent is an instance with a tunnel.
type agent struct {
	d    *desk
	sess *protocol.Session
	rel  *protocol.Session
	over chan struct{} // closed when both ends have
}

func hello(instance, boot string) protocol.Hello {
	return protocol.Hello{Instance: instance, BootID: boot, Tunnels: 1, Platform: "heroku", Process: "web", Release: "v42", Commit: "abc", Region: "eu"}
}

// connect gives an instance a tunnel.
func (d *desk) connect(instance, boot string) *agent {
	d.t.Helper()
	a := &agent{d: d, over: make(chan struct{})}
	a.sess, a.rel = protocoltest.Pipe(d.t, protocoltest.Options{Hello: hello(instance, boot), Heartbeat: time.Minute})
	at := relay.Instance{App: app, Name: instance, BootID: boot}
	d.mu.Lock()
	d.tunnels = append(d.tunnels, at)
	d.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { a.sess.Run(context.Background(), protocol.Handler{}) })
	both.Go(func() {
		a.rel.Run(context.Background(), protocol.Handler{Stream: func(ctx context.Context, s *protocol.Stream) {
			d.tracker.Serve(ctx, app, s)
		}})
		d.mu.Lock()
		defer d.mu.Unlock()
		d.tunnels = slices.DeleteFunc(d.tunnels, func(i relay.Instance) bool { return i.Name == instance && i.BootID == boot })
	})
	go func() { both.Wait(); close(a.over) }()
	d.t.Cleanup(a.kill)
	return a
}

// kill ends the tunnel without a word, as SIGKILL does.
func (a *agent) kill() {
	a.sess.Close(protocol.CodeReset, "killed")
	a.rel.Close(protocol.CodeReset, "killed")
	<-a.over
}

// report opens a stream of reports.
func (a *agent) report() *protocol.Stream {
	a.d.t.Helper()
	s, err := a.sess.Open(a.d.t.Context(), protocol.Open{Kind: protocol.KindReport})
	if err != nil {
		a.d.t.Fatal(err)
	}
	return s
}

func (d *desk) send(s io.Writer, r protocol.Report) {
	d.t.Helper()
	if err := protocol.WriteReport(s, r); err != nil {
		d.t.Fatal(err)
	}
	synctest.Wait()
}

func lines(from, to int) (list []protocol.Line) {
	for n := from; n < to; n++ {
		list = append(list, protocol.Line{At: time.Now().Add(time.Duration(n) * time.Millisecond), Stream: "stdout", Text: fmt.Sprint("line ", n)})
	}
	return list
}

func vitals(mib, limit int64) *protocol.Vitals {
	return &protocol.Vitals{At: time.Now(), RSS: mib << 20, Limit: limit << 20, Processes: 1,
		Sockets: []protocol.Socket{{PID: 7, State: "LISTEN", Local: "0.0.0.0:3000"}}}
}

func bubble(t *testing.T, f func(*testing.T, *desk)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { f(t, newDesk(t)) })
}

func TestACrashIsKeptBeforeTheAgentMayGo(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		s := d.connect("web.1", "boot-0001").report()
		d.send(s, protocol.Report{Lines: lines(0, 3), Vitals: vitals(100, 512),
			Findings: &protocol.Findings{List: []protocol.Finding{{Code: "PORT12", Severity: protocol.SeverityError}}}})
		time.Sleep(5 * time.Second)
		d.send(s, protocol.Report{Lines: lines(3, 4), Vitals: vitals(500, 512)})
		d.send(s, protocol.Report{Exit: &protocol.Exit{At: time.Now(), Code: 1, Reason: "the app exited with code 1"}})
		if n, err := io.Copy(io.Discard, s); n != 0 || err != nil {
			t.Fatalf("the agent waits for a FIN and gets %d bytes, %v", n, err)
		}
		w := d.one()
		if w.App != app || w.Instance != "web.1" || w.BootID != "boot-0001" || w.Platform != "heroku" || w.Release != "v42" || w.ID == "" {
			t.Errorf("whose: %+v", w)
		}
		if len(w.Lines) != 4 || w.Lines[3].Text != "line 3" || len(w.Memory) != 2 || w.Memory[1].RSS != 500<<20 ||
			w.Limit != 512<<20 || len(w.Sockets) != 1 || len(w.Findings) != 1 || w.Exit.Code != 1 {
			t.Errorf("what: %+v", w)
		}
		if !strings.HasPrefix(w.Reason, "the app exited with code 1") || !strings.Contains(w.Reason, "500 MiB of 512 MiB") {
			t.Errorf("reason %q", w.Reason)
		}
		if took := w.EndedAt.Sub(w.StartedAt); took != 5*time.Second {
			t.Errorf("from %v to %v", w.StartedAt, w.EndedAt)
		}
		time.Sleep(time.Hour)
		d.one()
	})
}

func TestOrderlyStops(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		exit   protocol.Exit
		others bool
		saved  bool
		whole  bool
	}{
		{"asked, and others are there", protocol.Exit{Code: 143, Asked: true}, true, false, false},
		{"asked, code 0, and others are there", protocol.Exit{Asked: true}, true, false, false},
		{"asked, and nobody is left", protocol.Exit{Code: 143, Asked: true}, false, true, false},
		{"asked, and it crashed", protocol.Exit{Code: 1, Asked: true}, true, true, true},
		{"asked, and it was killed", protocol.Exit{Code: 137, Signal: "SIGKILL", Asked: true}, true, true, true},
		{"nobody asked, code 0", protocol.Exit{}, true, true, true},
		{"nobody asked, SIGTERM", protocol.Exit{Code: 143, Signal: "SIGTERM"}, true, true, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, d *desk) {
				if test.others {
					d.connect("web.2", "boot-0002")
				}
				s := d.connect("web.1", "boot-0001").report()
				d.send(s, protocol.Report{Lines: lines(0, 3), Vitals: vitals(1, 2)})
				d.send(s, protocol.Report{Exit: &test.exit})
				if _, err := io.Copy(io.Discard, s); err != nil {
					t.Error(err)
				}
				if !test.saved {
					d.none("after an orderly stop")
					return
				}
				w := d.one()
				if whole := len(w.Lines) == 3 && len(w.Memory) == 1 && len(w.Sockets) == 1; whole != test.whole || w.Exit == nil || w.Reason == "" {
					t.Errorf("%+v", w)
				}
			})
		})
	}
}

func TestALostAgentIsGivenTimeToComeBack(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		a := d.connect("web.1", "boot-0001")
		d.send(a.report(), protocol.Report{Lines: lines(0, 3), Vitals: vitals(505, 512)})
		heard := time.Now()
		time.Sleep(2 * time.Second)
		a.kill()
		time.Sleep(29 * time.Second)
		d.none("within the grace")
		time.Sleep(5 * time.Second)
		w := d.one()
		if w.Exit != nil || len(w.Lines) != 3 || !w.EndedAt.Equal(heard) ||
			!strings.HasPrefix(w.Reason, reasonLost) || !strings.Contains(w.Reason, "505 MiB of 512 MiB") {
			t.Errorf("%+v", w)
		}
	})
}

// A report that breaks while the tunnel stands is no loss.
func TestAnAgentWithATunnelIsNotLost(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		a := d.connect("web.1", "boot-0001")
		s := a.report()
		d.send(s, protocol.Report{Lines: lines(0, 3)})
		s.Reset(protocol.CodeCanceled)
		time.Sleep(10 * time.Minute)
		d.none("while its tunnel stands")
		a.kill()
		time.Sleep(2 * time.Minute)
		d.one()
	})
}

func TestAnAgentThatComesBackGoesOn(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		a := d.connect("web.1", "boot-0001")
		all := lines(0, 20)
		d.send(a.report(), protocol.Report{Lines: all[5:10], Vitals: vitals(1, 0)})
		a.kill()
		time.Sleep(20 * time.Second)
		s := d.connect("web.1", "boot-0001").report()
		d.send(s, protocol.Report{Lines: all[:12]}) // what it keeps, once more
		time.Sleep(50 * time.Second)
		d.send(s, protocol.Report{Lines: all[12:]})
		time.Sleep(50 * time.Second)
		d.none("though it came back")
		d.send(s, protocol.Report{Exit: &protocol.Exit{Code: 1}})
		w := d.one()
		var got []string
		for _, l := range w.Lines {
			got = append(got, l.Text)
		}
		var want []string
		for n := 5; n < 20; n++ {
			want = append(want, fmt.Sprint("line ", n))
		}
		if !slices.Equal(got, want) || len(w.Memory) != 1 {
			t.Errorf("%q, want %q; memory %v", got, want, w.Memory)
		}
	})
}

// An agent may come back in the very moment in which it is judged.
func TestAnAgentThatComesBackWhileItIsJudged(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		a := d.connect("web.1", "boot-0001")
		d.send(a.report(), protocol.Report{Lines: lines(0, 1)})
		a.kill()
		var once sync.Once
		d.mu.Lock()
		d.asked = func() {
			once.Do(func() { d.tracker.open(app, hello("web.1", "boot-0001"), func() {}) })
		}
		d.mu.Unlock()
		time.Sleep(time.Hour)
		d.none("though it is back")
	})
}

func TestANewerStreamTakesTheOlderOnesPlace(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		older := d.connect("web.1", "boot-0001").report()
		d.send(older, protocol.Report{Lines: lines(0, 1)})
		newer := d.connect("web.1", "boot-0001").report()
		d.send(newer, protocol.Report{Lines: lines(1, 2)})
		if _, err := older.Read(make([]byte, 1)); protocol.CodeOf(err) != protocol.CodeReplaced {
			t.Errorf("the older stream: %v", err)
		}
		time.Sleep(45 * time.Second)
		d.send(newer, protocol.Report{Exit: &protocol.Exit{Code: 2}})
		if w := d.one(); len(w.Lines) != 2 || w.Exit.Code != 2 {
			t.Errorf("%+v", w)
		}
	})
}

func TestTwoBootsOfOneNameAreTwo(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		older, newer := d.connect("web.1", "boot-0001").report(), d.connect("web.1", "boot-0002").report()
		d.send(older, protocol.Report{Lines: lines(0, 1)})
		d.send(newer, protocol.Report{Lines: lines(1, 3)})
		d.send(older, protocol.Report{Exit: &protocol.Exit{Code: 3}})
		if w := d.one(); w.BootID != "boot-0001" || len(w.Lines) != 1 {
			t.Errorf("%+v", w)
		}
	})
}

func TestALossWhileStopping(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		a := d.connect("web.1", "boot-0001")
		d.send(a.report(), protocol.Report{Lines: lines(0, 1)})
		d.mu.Lock()
		d.tunnels[0].Draining = true
		d.mu.Unlock()
		a.kill()
		time.Sleep(time.Minute)
		if w := d.one(); !strings.HasPrefix(w.Reason, reasonLate) {
			t.Errorf("%q", w.Reason)
		}
	})
}

func TestAFINWithoutAnExitLeavesNothing(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		a := d.connect("web.1", "boot-0001")
		s := a.report()
		d.send(s, protocol.Report{Lines: lines(0, 1)})
		s.CloseWrite()
		synctest.Wait()
		a.kill()
		time.Sleep(time.Hour)
		d.none("though the agent only had no more to say")
	})
}

// Of the agents that are there when the relay stops, none was lost; of one that
// was lost before, that is said.
func TestTheRelayStops(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		lost, there := d.connect("web.1", "boot-0001"), d.connect("web.2", "boot-0002")
		d.send(lost.report(), protocol.Report{Lines: lines(0, 1)})
		s := there.report()
		d.send(s, protocol.Report{Lines: lines(0, 1)})
		ending := d.connect("web.3", "boot-0003").report()
		d.send(ending, protocol.Report{Lines: lines(0, 1)})
		lost.kill()
		time.Sleep(5 * time.Second)
		d.stop()
		<-d.gone
		if w := d.one(); w.Instance != "web.1" || !strings.HasSuffix(w.Reason, addStopped) {
			t.Errorf("%+v", w)
		}
		d.send(ending, protocol.Report{Exit: &protocol.Exit{Code: 1}}) // while the relay drains
		there.kill()
		if all := d.words(); len(all) != 2 || all[1].Instance != "web.3" {
			t.Errorf("%+v", all)
		}
		if n := len(d.tracker.records); n != 0 {
			t.Errorf("%d records are left", n)
		}
	})
}

func TestTheStoreFailsForAWhile(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		d.fail = errors.New("disk on fire")
		s := d.connect("web.1", "boot-0001").report()
		d.send(s, protocol.Report{Exit: &protocol.Exit{Code: 1}})
		time.Sleep(1500 * time.Millisecond)
		d.mu.Lock()
		d.fail = nil
		d.mu.Unlock()
		if _, err := io.Copy(io.Discard, s); err != nil {
			t.Error(err)
		}
		d.one()
	})
}

func TestTheAgentIsNotToldThatAllIsKeptWhenItIsNot(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		d.fail = errors.New("disk on fire")
		s := d.connect("web.1", "boot-0001").report()
		d.send(s, protocol.Report{Exit: &protocol.Exit{Code: 1}})
		if _, err := io.Copy(io.Discard, s); protocol.CodeOf(err) != protocol.CodeReset {
			t.Errorf("%v", err)
		}
	})
}

func TestFindingsAndVitalsAreThoseOfNow(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		finding := func(code string, severity protocol.Severity, evidence string) protocol.Finding {
			return protocol.Finding{Code: code, Severity: severity, Evidence: evidence}
		}
		one, two := d.connect("web.1", "boot-0001"), d.connect("web.2", "boot-0002")
		s1, s2 := one.report(), two.report()
		d.send(s1, protocol.Report{Findings: &protocol.Findings{List: []protocol.Finding{finding("PORT09", protocol.SeverityError, "old")}}})
		d.send(s1, protocol.Report{Vitals: vitals(7, 0), Findings: &protocol.Findings{List: []protocol.Finding{
			finding("PORT18", "strange", "x"), finding("PORT10", protocol.SeverityNote, "a"), finding("PORT02", protocol.SeverityError, "b")}}})
		d.send(s2, protocol.Report{Findings: &protocol.Findings{List: []protocol.Finding{
			finding("PORT02", protocol.SeverityError, "a"), finding("PORT03", protocol.SeverityWarning, "")}}})
		var got []string
		for _, f := range d.tracker.Findings(app) {
			got = append(got, f.Code+f.Evidence)
		}
		if want := []string{"PORT02a", "PORT03", "PORT10a", "PORT18x"}; !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		if other := d.tracker.Findings("other"); len(other) != 0 {
			t.Errorf("another app's: %v", other)
		}
		list := []relay.Instance{{App: app, Name: "web.1", BootID: "boot-0001"}, {App: app, Name: "web.1", BootID: "boot-0009"}, {App: "other", Name: "web.1", BootID: "boot-0001"}}
		d.tracker.Fill(list)
		if list[0].Vitals == nil || list[0].Vitals.RSS != 7<<20 || len(list[0].Findings) != 3 || list[1].Vitals != nil || list[2].Findings != nil {
			t.Errorf("%+v", list)
		}
		one.kill()
		if got := d.tracker.Findings(app); len(got) != 2 {
			t.Errorf("of a lost instance, too: %v", got)
		}
	})
}
