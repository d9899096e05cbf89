package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/agent/proc"
	"github.com/posternhq/postern/protocol"
)

// stage is a world for tests of Run in a bubble with a clock of its own: one process
// that listens where it is told, and connections that know it.
type stage struct {
	mu        sync.Mutex
	pid       int
	exit      *protocol.Exit
	listeners []proc.Socket
	blind     bool
	status    int           // of the health path
	keeps     time.Duration // how long it keeps an idle connection

	slowFrom int  // connections from that one on end a second after their context; 0: none
	left     bool // one of them has

	takes, glances, dials, requests int
	diagnoses                       []said
	begun                           time.Time
}

type said struct {
	at time.Duration
	Diagnosis
}

func newStage() *stage { return &stage{pid: 31, status: 200, begun: time.Now()} }

func (st *stage) set(change func()) {
	st.mu.Lock()
	defer st.mu.Unlock()
	change()
}

func (st *stage) listen(inode uint64, port int) {
	st.set(func() {
		st.listeners = []proc.Socket{{PID: st.pid, Process: "node", State: "LISTEN", Inode: inode,
			Local: netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(port))}}
	})
}

func (st *stage) world() world {
	locked := func(f func()) {
		st.mu.Lock()
		defer st.mu.Unlock()
		f()
	}
	return world{
		take: func(pid int) (shot proc.Snapshot, err error) {
			locked(func() {
				st.takes++
				if st.blind {
					err = proc.ErrUnavailable
					return
				}
				shot = proc.Snapshot{Tree: []proc.Process{{PID: st.pid, Name: "node", Args: []string{"node"}, State: 'S'}},
					Listeners: append([]proc.Socket(nil), st.listeners...)}
			})
			return shot, err
		},
		ports: func(int) (list []proc.Socket, err error) {
			locked(func() {
				st.glances++
				list = append(list, st.listeners...)
				if st.blind {
					list, err = nil, proc.ErrUnavailable
				}
			})
			return list, err
		},
		holds: func(s proc.Socket) (ok bool) {
			locked(func() {
				st.glances++
				ok = len(st.listeners) > 0 && st.listeners[0].Inode == s.Inode
			})
			return ok
		},
		holder:     func(uint64) (proc.Process, error) { return proc.Process{}, os.ErrNotExist },
		sockets:    func([]proc.Process) ([]proc.Socket, error) { return nil, nil },
		signals:    func(int) (uint64, uint64, error) { return 0, 0, nil },
		runnable:   func(int) bool { return false },
		executable: func(int) string { return "" },
		environ:    func(int) []string { return nil },
		addresses:  func() []netip.Addr { return nil },
		lookup:     func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no names here") },
		file:       func(string) []byte { return nil },
		dial: func(ctx context.Context, addr netip.AddrPort) (conn net.Conn, err error) {
			slow := false
			locked(func() {
				st.dials++
				slow = st.slowFrom > 0 && st.dials >= st.slowFrom
			})
			if slow {
				<-ctx.Done()
				time.Sleep(time.Second)
				st.set(func() { st.left = true })
				return nil, ctx.Err()
			}
			locked(func() {
				err = syscall.ECONNREFUSED
				for _, l := range st.listeners {
					if l.Local.Port() == addr.Port() {
						var peer net.Conn
						conn, peer = net.Pipe()
						err = nil
						go st.serve(peer)
					}
				}
			})
			return conn, err
		},
	}
}

// serve answers whole requests and waits for the rest of others.
func (st *stage) serve(conn net.Conn) {
	defer conn.Close()
	for reader := bufio.NewReader(conn); ; {
		r, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		st.mu.Lock()
		st.requests++
		status, keeps := st.status, st.keeps
		st.mu.Unlock()
		if _, err := io.WriteString(conn, "HTTP/1.1 "+strconv.Itoa(status)+" x\r\nContent-Length: 0\r\n\r\n"); err != nil || r.Close {
			return
		}
		conn.SetReadDeadline(time.Now().Add(keeps))
	}
}

// run runs a doctor in the bubble and returns it, and what ends it.
func (st *stage) run(t *testing.T, change ...func(*Config)) (d *Doctor, stop func()) {
	cfg := Config{
		Place: Place{Platform: "heroku", Process: "web", Port: 46443, PortVar: "46443", Serves: true, BootLimit: 60 * time.Second, Grace: 30 * time.Second},
		Child: func() (int, *protocol.Exit) {
			st.mu.Lock()
			defer st.mu.Unlock()
			return st.pid, st.exit
		},
		Changed: func(d Diagnosis) {
			st.set(func() { st.diagnoses = append(st.diagnoses, said{time.Since(st.begun), d}) })
		},
	}
	for _, c := range change {
		c(&cfg)
	}
	d = New(cfg)
	d.world = st.world()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.Run(ctx)
	}()
	return d, func() {
		cancel()
		<-ended
	}
}

// when is the first time a state was said, at or after a time.
func (st *stage) when(t *testing.T, state protocol.AppState, after time.Duration) said {
	t.Helper()
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, d := range st.diagnoses {
		if d.State == state && d.at >= after {
			return d
		}
	}
	t.Fatalf("no %s after %v: %+v", state, after, st.diagnoses)
	return said{}
}

func (st *stage) count(n *int) int {
	st.mu.Lock()
	defer st.mu.Unlock()
	return *n
}

func TestRunSeesAnAppBecomeReadyAndThenLeavesItAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage()
		_, stop := st.run(t)
		time.Sleep(3030 * time.Millisecond)
		if st.dials != 0 {
			t.Errorf("%d connections to an app that does not listen", st.dials)
		}
		st.listen(7, 46443)
		time.Sleep(2 * time.Second)
		if got := st.when(t, protocol.StateReady, 0); got.at > 3200*time.Millisecond || len(got.Findings.List) != 0 {
			t.Errorf("ready was said at %v with %+v", got.at, got.Findings.List)
		}
		dials := st.count(&st.dials)
		if dials > 2 {
			t.Errorf("%d connections for a correct app", dials)
		}
		takes, glances := st.count(&st.takes), st.count(&st.glances)
		time.Sleep(time.Hour)
		if got := st.count(&st.dials); got != dials {
			t.Errorf("%d connections to an app that is ready", got-dials)
		}
		if got := st.count(&st.takes) - takes; got > 70 {
			t.Errorf("%d examinations in an hour of nothing", got)
		}
		if got := st.count(&st.glances) - glances; got > 800 || got < 600 {
			t.Errorf("%d glances in an hour of nothing", got)
		}
		if len(st.diagnoses) > 2 {
			t.Errorf("%d diagnoses of an app that only became ready: %+v", len(st.diagnoses), st.diagnoses)
		}
		if st.requests != 0 {
			t.Errorf("%d requests reached the app", st.requests)
		}
		stop()
	})
}

func TestRunGivesUpAtTheLimitAndNoLater(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage()
		_, stop := st.run(t)
		time.Sleep(2 * time.Minute)
		if got := st.when(t, protocol.StateFailed, 0); got.at < 60*time.Second || got.at > 60*time.Second+300*time.Millisecond {
			t.Errorf("failed was said at %v", got.at)
		}
		seen := map[string]time.Duration{}
		for _, d := range st.diagnoses {
			for _, f := range d.Findings.List {
				if key := f.Code + " " + string(f.Severity); seen[key] == 0 {
					seen[key] = d.at.Round(time.Second)
				}
			}
		}
		for key, want := range map[string]time.Duration{"PORT06 warning": 10 * time.Second, "PORT07 warning": 30 * time.Second,
			"PORT07 error": 48 * time.Second, "PORT06 error": 60 * time.Second} {
			if seen[key] != want {
				t.Errorf("%s at %v, want %v", key, seen[key], want)
			}
		}
		if len(st.diagnoses) > 7 {
			t.Errorf("%d diagnoses of an app that did nothing", len(st.diagnoses))
		}
		st.listen(7, 46443) // later than ever
		time.Sleep(3 * time.Second)
		st.when(t, protocol.StateReady, time.Minute)
		stop()
	})
}

func TestRunSeesAnAppBeingLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage()
		d, stop := st.run(t)
		st.listen(7, 46443)
		time.Sleep(90 * time.Second)
		st.set(func() { st.listeners = nil })
		d.Poke() // the relay's connection was refused
		time.Sleep(20 * time.Second)
		lost := st.when(t, protocol.StateStarting, time.Minute)
		if lost.at > 90*time.Second+100*time.Millisecond {
			t.Errorf("a poke was heard at %v", lost.at)
		}
		if failed := st.when(t, protocol.StateFailed, 0); failed.at-lost.at < lossPatience || failed.at-lost.at > lossPatience+time.Second {
			t.Errorf("failed %v after it was lost", failed.at-lost.at)
		}
		st.listen(8, 46443)
		time.Sleep(5 * time.Second)
		back := st.when(t, protocol.StateReady, failedAfter(st))
		expect(t, back.Diagnosis, protocol.StateReady, "PORT12")

		// Without a poke it takes a glance.
		st.set(func() { st.listeners = nil })
		begun := time.Since(st.begun)
		time.Sleep(everyWatch + time.Second)
		st.when(t, protocol.StateStarting, begun)
		stop()
	})
}

func failedAfter(st *stage) time.Duration {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, d := range st.diagnoses {
		if d.State == protocol.StateFailed {
			return d.at
		}
	}
	return 0
}

func TestRunIsNotDrivenByAStormOfPokes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage()
		d, stop := st.run(t)
		st.listen(7, 46443)
		time.Sleep(55 * time.Second)
		takes, dials := st.count(&st.takes), st.count(&st.dials)
		for range 10000 {
			d.Poke()
			time.Sleep(time.Millisecond)
		}
		time.Sleep(2 * time.Second)
		if got := st.count(&st.takes) - takes; got > 14 {
			t.Errorf("%d examinations in ten seconds of pokes", got)
		}
		if got := st.count(&st.dials) - dials; got > 14 || got == 0 {
			t.Errorf("%d connections in ten seconds of pokes", got)
		}
		stop()
	})
}

func TestRunWithoutAnythingFromTheKernel(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage()
		st.blind = true
		_, stop := st.run(t)
		time.Sleep(3 * time.Second)
		st.listen(7, 46443)
		time.Sleep(time.Second)
		expect(t, st.when(t, protocol.StateReady, 0).Diagnosis, protocol.StateReady)
		time.Sleep(time.Minute)
		dials := st.count(&st.dials)
		time.Sleep(time.Hour)
		if got := st.count(&st.dials) - dials; got > 190 || got < 100 {
			t.Errorf("%d connections in an hour", got)
		}
		st.set(func() { st.listeners = nil })
		gone := time.Since(st.begun)
		time.Sleep(2 * time.Minute)
		st.when(t, protocol.StateFailed, gone)
		stop()
	})
}

func TestRunAsksABadHealthPathOnceASecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage()
		st.status = 503
		_, stop := st.run(t, func(c *Config) { c.Place.ReadyPath, c.Place.Platform = "/healthz", "render" })
		st.listen(7, 46443)
		time.Sleep(5 * time.Second)
		if got := st.count(&st.requests); got < 3 || got > 8 {
			t.Errorf("%d requests in five seconds", got)
		}
		st.set(func() { st.status = 204 })
		time.Sleep(2 * time.Second)
		expect(t, st.when(t, protocol.StateReady, 0).Diagnosis, protocol.StateReady)
		requests := st.count(&st.requests)
		time.Sleep(time.Hour)
		if got := st.count(&st.requests); got != requests {
			t.Errorf("%d requests once it was good", got-requests)
		}
		stop()
	})
}

func TestRunTimesAnIdleConnectionOnHeroku(t *testing.T) {
	t.Parallel()
	for keeps, want := range map[time.Duration][]string{5 * time.Second: {"PORT14"}, 95 * time.Second: nil} {
		synctest.Test(t, func(t *testing.T) {
			st := newStage()
			st.keeps = keeps
			_, stop := st.run(t, func(c *Config) { c.Place.ReadyPath = "/healthz" })
			st.listen(7, 46443)
			time.Sleep(10 * time.Minute)
			st.mu.Lock()
			last := st.diagnoses[len(st.diagnoses)-1]
			st.mu.Unlock()
			f := expect(t, last.Diagnosis, protocol.StateReady, want...)
			if want != nil {
				contains(t, f.Evidence, fmt.Sprintf("%.1f s", keeps.Seconds()))
			}
			if got := st.count(&st.requests); got != 2 {
				t.Errorf("%d requests", got)
			}
			stop()
		})
	}
}

func TestRunEndsWithItsContextInWhateverItDoes(t *testing.T) {
	t.Parallel()
	for after := range 20 {
		synctest.Test(t, func(t *testing.T) {
			st := newStage()
			st.keeps = time.Hour
			_, stop := st.run(t, func(c *Config) {
				if after%2 == 0 {
					c.Place.ReadyPath = "/"
				}
			})
			st.listen(7, 46443)
			time.Sleep(time.Duration(after) * 97 * time.Millisecond)
			stop() // a goroutine that is left would fail the bubble
		})
	}
}

// Run waits for what it started.
func TestRunReturnsWhenNothingOfItIsLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage()
		st.slowFrom = 3 // the first two make the app ready, the third is to be held idle
		_, stop := st.run(t, func(c *Config) { c.Place.ReadyPath = "/" })
		st.listen(7, 46443)
		time.Sleep(time.Second)
		if st.count(&st.dials) != 3 {
			t.Fatalf("%d connections", st.dials)
		}
		stop()
		if !st.left {
			t.Error("a connection is still being made")
		}
	})
}

func TestRunNoticesTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		st := newStage()
		_, stop := st.run(t)
		time.Sleep(2 * time.Second)
		st.set(func() { st.exit = &protocol.Exit{At: time.Now(), Code: 1}; st.listeners = nil })
		time.Sleep(time.Second)
		expect(t, st.when(t, protocol.StateFailed, 0).Diagnosis, protocol.StateFailed, "PORT06")
		takes := st.count(&st.takes)
		time.Sleep(time.Hour)
		if got := st.count(&st.takes); got != takes {
			t.Errorf("%d examinations of the dead", got-takes)
		}
		stop()
	})
}

// The real thing: how soon it sees a real app, what it costs then.
func TestRunOnARealApp(t *testing.T) {
	t.Parallel()
	skipWithoutProc(t)
	port := freePort(t)
	a := start(t).do("requests")
	ready := make(chan Diagnosis, 16)
	d := a.doctor(port, func(c *Config) { c.Changed = func(d Diagnosis) { ready <- d } })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.Run(ctx)
	}()
	a.do(fmt.Sprintf("http 0.0.0.0:%d", port))
	begun := time.Now()
	deadline := time.After(patience)
	for state := protocol.StateStarting; state != protocol.StateReady; {
		select {
		case got := <-ready:
			state = got.State
		case <-deadline:
			t.Fatal("not ready")
		}
	}
	t.Logf("ready after %v", time.Since(begun))
	cancel()
	<-ended
	if a.do("requests"); a.said != "0" {
		t.Errorf("%s requests reached the app's handler", a.said)
	}
}

// BenchmarkIdle is what a minute of a ready app costs: twelve glances and one look.
func BenchmarkIdle(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	d := New(Config{Place: Place{Serves: true, Port: port}, Child: func() (int, *protocol.Exit) { return os.Getpid(), nil }})
	d.Examine(b.Context())
	for b.Loop() {
		for range 12 {
			d.world.holds(d.past.here)
		}
		d.look(b.Context(), brief)
	}
}
