package run_test

import (
	"context"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/posternhq/postern/agent/run"
)

func TestEachSignalReachesTheChildAndItsChildren(t *testing.T) {
	t.Parallel()
	a := launch(t, &run.Command{ForwardTERM: true}, "listen", "child", "grandchild-deaf-mortal")
	a.expect("child ready")
	a.expect("grandchild-deaf-mortal ready")
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGUSR1,
		syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGCONT, syscall.SIGTERM} {
		a.send(sig)
		a.expect("child got " + short(sig))
		a.expect("grandchild-deaf-mortal got " + short(sig))
	}
	a.stdin.Close()
	if code := a.wait(); code != 0 {
		t.Errorf("code %d", code)
	}
}

func TestTheAgentsOwnSignalsAreNotPassedOn(t *testing.T) {
	t.Parallel()
	// A shell listens, since Go programs get SIGURG from themselves. WINCH has the highest
	// number, so the shell has dealt with the others when it says that it has this one.
	a := launch(t, &run.Command{}, "shell", `for name in URG CHLD PIPE; do trap "echo got $name" $name; done
		trap 'echo got WINCH; exit 0' WINCH; echo ready; while :; do read line; done`)
	a.expect("ready")
	a.send(syscall.SIGURG, syscall.SIGCHLD, syscall.SIGPIPE, syscall.SIGTSTP, syscall.SIGWINCH)
	a.expect("got WINCH")
	if code := a.wait(); code != 0 || len(a.seen) != 2 {
		t.Errorf("code %d, said %q", code, a.seen)
	}
}

func TestARepeatedTERMIsDeliveredOnce(t *testing.T) {
	t.Parallel()
	a := launch(t, &run.Command{ForwardTERM: true, Grace: time.Hour}, "listen", "child")
	a.expect("child ready")
	a.send(syscall.SIGTERM)
	a.expect("child got TERM")
	a.send(syscall.SIGTERM, syscall.SIGTERM)
	a.sync("child")
	a.stdin.Close()
	if code := a.wait(); code != 0 || a.count("child got TERM") != 1 {
		t.Errorf("code %d, said %q", code, a.seen)
	}
}

func TestAChildThatIgnoresTERMIsKilledBeforeTheGraceEnds(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		forward bool
	}{{"forwarded", true}, {"broadcast by the platform", false}} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			const grace = 600 * time.Millisecond // killed at the half of it
			a := launch(t, &run.Command{ForwardTERM: test.forward, Grace: grace}, "listen", "child", "grandchild-deaf")
			a.expect("child ready")
			a.expect("grandchild-deaf ready")
			began := time.Now()
			a.send(syscall.SIGTERM)
			if code := a.wait(); code != 137 {
				t.Errorf("code %d, want 137", code)
			}
			if took := time.Since(began); took < grace/2 {
				t.Errorf("killed after %v, before its time was up", took)
			}
			if got := a.count("child got TERM"); got != map[bool]int{true: 1}[test.forward] {
				t.Errorf("%d SIGTERMs", got)
			}
		})
	}
}

func TestOnStopRunsBeforeTERMIsPassedOn(t *testing.T) {
	t.Parallel()
	entered, release := make(chan time.Duration, 2), make(chan struct{})
	cmd := &run.Command{ForwardTERM: true, Grace: 9 * time.Minute, OnStop: func(ctx context.Context) {
		until, _ := ctx.Deadline()
		entered <- time.Until(until)
		<-release
	}}
	a := launch(t, cmd, "listen", "child")
	let := sync.OnceFunc(func() { close(release) })
	t.Cleanup(let)
	a.expect("child ready")
	a.send(syscall.SIGTERM)
	if left := <-entered; left <= 4*time.Second || left > 5*time.Second {
		t.Errorf("the hook has %v, want 5s", left)
	}
	a.sync("child") // signals still flow while the hook runs
	if a.count("child got TERM") != 0 {
		t.Error("SIGTERM came before the hook was done")
	}
	let()
	a.expect("child got TERM")
	a.send(syscall.SIGTERM)
	a.stop()
	a.stdin.Close()
	a.wait()
	if len(entered) != 0 {
		t.Error("the hook was called again")
	}
}

func TestAHookThatHangsDoesNotHoldTERMBack(t *testing.T) {
	t.Parallel()
	entered, release := make(chan context.Context, 1), make(chan struct{})
	cmd := &run.Command{ForwardTERM: true, Grace: 4500 * time.Millisecond, OnStop: func(ctx context.Context) {
		entered <- ctx
		<-release
	}}
	a := launch(t, cmd, "listen", "child-mortal")
	let := sync.OnceFunc(func() { close(release) })
	t.Cleanup(let)
	a.expect("child-mortal ready")
	a.send(syscall.SIGTERM)
	ctx := <-entered
	a.expect("child-mortal got TERM")
	if ctx.Err() == nil {
		t.Error("SIGTERM came while the hook still had time")
	}
	let()
	if code := a.wait(); code != 0 {
		t.Errorf("code %d", code)
	}
}

func TestTheEndOfTheContextIsAStop(t *testing.T) {
	t.Parallel()
	var alive atomic.Bool
	// ForwardTERM is false: whoever ends the context has not told the child.
	cmd := &run.Command{OnStop: func(ctx context.Context) { alive.Store(ctx.Err() == nil) }}
	a := launch(t, cmd, "listen", "child-mortal")
	a.expect("child-mortal ready")
	a.stop()
	a.expect("child-mortal got TERM")
	if code := a.wait(); code != 0 {
		t.Errorf("code %d", code)
	}
	if !alive.Load() {
		t.Error("the hook's context ended with the other")
	}
}

func TestABroadcastTERMIsNotPassedOn(t *testing.T) {
	t.Parallel()
	hooked := make(chan struct{})
	a := launch(t, &run.Command{Grace: time.Hour, OnStop: func(context.Context) { close(hooked) }}, "listen", "child")
	a.expect("child ready")
	a.send(syscall.SIGTERM, syscall.SIGTERM)
	<-hooked
	a.sync("child")
	a.stdin.Close()
	if code := a.wait(); code != 0 || a.count("child got TERM") != 0 {
		t.Errorf("code %d, said %q", code, a.seen)
	}
}

func TestASecondInterruptKills(t *testing.T) {
	t.Parallel()
	a := launch(t, &run.Command{}, "listen", "child", "grandchild-deaf")
	a.expect("child ready")
	a.expect("grandchild-deaf ready")
	a.send(syscall.SIGINT)
	a.expect("child got INT")
	a.send(syscall.SIGINT)
	if code := a.wait(); code != 137 || a.count("child got INT") != 1 {
		t.Errorf("code %d, said %q", code, a.seen)
	}
}

func TestAnInterruptThatMeansStop(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	cmd := &run.Command{StopOnINT: true, Grace: time.Hour, OnStop: func(context.Context) { calls.Add(1) }}
	a := launch(t, cmd, "listen", "child")
	a.expect("child ready")
	a.send(syscall.SIGINT)
	a.expect("child got TERM")
	a.send(syscall.SIGINT, syscall.SIGTERM) // Fly may send both
	a.sync("child")
	a.stdin.Close()
	if code := a.wait(); code != 0 || a.count("child got INT") != 0 || a.count("child got TERM") != 1 || calls.Load() != 1 {
		t.Errorf("code %d, %d calls, said %q", code, calls.Load(), a.seen)
	}
}

func TestAClosedSignalChannelIsNoSignal(t *testing.T) {
	t.Parallel()
	a := launch(t, &run.Command{}, "listen", "child")
	a.expect("child ready")
	close(a.signals)
	a.stdin.WriteString("still here\n")
	a.expect("child line still here")
	a.stdin.Close()
	if code := a.wait(); code != 0 {
		t.Errorf("code %d", code)
	}
}

// wait itself checks in these that nobody is left: the output ends only when the
// last holder of stdout is gone.
func TestOrphansAreGone(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, orphan string
		wantTERM     int
	}{
		{"one that obeys SIGTERM", "orphan-deaf-mortal", 1},
		{"one that does not", "orphan-deaf", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			a := launch(t, &run.Command{}, "leave", test.orphan)
			a.expect(test.orphan + " ready")
			a.send(syscall.SIGUSR1)
			if code := a.wait(); code != 7 {
				t.Errorf("code %d, want the child's 7", code)
			}
			if got := a.count(test.orphan + " got TERM"); got != test.wantTERM {
				t.Errorf("%d SIGTERMs, want %d", got, test.wantTERM)
			}
		})
	}
}

// "npm start" and "sh -c" die of SIGTERM at once, while the server below them drains.
func TestDuringAStopTheGrandchildrenKeepTheRestOfTheGrace(t *testing.T) {
	t.Parallel()
	a := launch(t, &run.Command{ForwardTERM: true, Grace: time.Hour}, "listen", "fragile-deaf", "server")
	a.expect("fragile-deaf ready")
	a.expect("server ready")
	a.send(syscall.SIGTERM)
	a.expect("server got TERM")
	a.stdin.WriteString("last request\n")
	a.expect("server line last request")
	select {
	case <-a.ended:
		t.Error("Run returned while the server was still draining")
	default:
	}
	a.stdin.Close()
	if code := a.wait(); code != 143 || a.count("server got TERM") != 1 {
		t.Errorf("code %d, said %q", code, a.seen)
	}
}

func TestAnInterruptEndsTheWaitForOrphans(t *testing.T) {
	t.Parallel()
	a := launch(t, &run.Command{ForwardTERM: true, Grace: time.Hour}, "listen", "fragile-deaf", "orphan-deaf")
	a.expect("fragile-deaf ready")
	a.expect("orphan-deaf ready")
	a.send(syscall.SIGTERM)
	a.expect("orphan-deaf got TERM")
	a.send(syscall.SIGTERM, syscall.SIGINT, syscall.SIGINT)
	if code := a.wait(); code != 143 && code != 137 {
		t.Errorf("code %d", code)
	}
}

func TestADaemonIsNotTouchedAndHoldsNobody(t *testing.T) {
	t.Parallel()
	a := launch(t, &run.Command{}, "daemon", "daemon")
	a.expect("daemon ready")
	a.send(syscall.SIGUSR1)
	select {
	case <-a.ended:
	case <-time.After(patience):
		t.Fatal("Run waited for a process that has left the group")
	}
	a.stdin.WriteString("you there\n")
	a.expect("daemon line you there")
	a.stdin.Close()
	if code := a.wait(); code != 7 {
		t.Errorf("code %d, want 7", code)
	}
}

// A server that is its own supervisor: real signals to a real agent process.
func TestTheAgentProcessPassesSignalsOnAndTakesOverTheCode(t *testing.T) {
	t.Parallel()
	p := startAgent(t, "listen", "child-mortal", "grandchild-deaf-mortal")
	p.expect("child-mortal ready")
	p.expect("grandchild-deaf-mortal ready")
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGWINCH, syscall.SIGTERM} {
		if err := p.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		p.expect("child-mortal got " + short(sig))
		p.expect("grandchild-deaf-mortal got " + short(sig))
	}
	if code := p.wait(); code != 0 {
		t.Errorf("code %d", code)
	}
}

func TestAnIgnoredSignalStaysIgnored(t *testing.T) {
	t.Parallel()
	p := startProcess(t, "agent", "sh", "-c", `trap '' HUP INT; exec "$0" signals`, os.Args[0])
	p.drain()
	p.wait()
	said := strings.Join(p.seen, " ")
	if strings.Contains(said, "hangup") || strings.Contains(said, "interrupt") {
		t.Errorf("ignored signals in %s", said)
	}
	if !strings.Contains(said, "terminated") || !strings.Contains(said, "user defined signal 2") {
		t.Errorf("signals missing in %s", said)
	}
}
