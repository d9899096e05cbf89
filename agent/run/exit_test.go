package run_test

import (
	"context"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/posternhq/postern/agent/run"
)

// exits runs script in a shell and returns how it ended.
func exits(t *testing.T, script string) run.Exit {
	t.Helper()
	var ended []run.Exit
	pid := 0
	before := time.Now()
	cmd := &run.Command{Args: []string{"sh", "-c", script}, Stderr: io.Discard,
		OnStart: func(p int) { pid = p }, OnExit: func(e run.Exit) { ended = append(ended, e) }}
	code, err := cmd.Run(t.Context())
	if err != nil || len(ended) != 1 {
		t.Fatalf("%v, told %d times", err, len(ended))
	}
	e := ended[0]
	if e.PID != pid || pid == 0 || e.Code != code {
		t.Errorf("pid %d of %d, code %d of %d", e.PID, pid, e.Code, code)
	}
	if e.Began.Before(before) || e.Ended.Before(e.Began) || e.Ended.After(time.Now()) {
		t.Errorf("from %v to %v", e.Began, e.Ended)
	}
	return e
}

func TestTheExitIsToldInFull(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		script string
		want   run.Exit
		reason string
	}{
		{"exit 0", run.Exit{}, "ended by itself with code 0"},
		{"exit 7", run.Exit{Code: 7}, "ended by itself with code 7"},
		{"no-such-program 2>&-", run.Exit{Code: 127}, "no such program"},
		{"sh -c 'kill -KILL $$' 2>&-; exit $?", run.Exit{Code: 137}, "a shell gives when its program was killed by SIGKILL"},
		{"kill -KILL $$", run.Exit{Code: 137, Signal: "SIGKILL"}, "killed from outside (SIGKILL)"},
		{"ulimit -c 0; kill -SEGV $$", run.Exit{Code: 139, Signal: "SIGSEGV"}, "died of SIGSEGV"},
	} {
		t.Run(test.script, func(t *testing.T) {
			t.Parallel()
			e := exits(t, test.script)
			if !strings.Contains(e.Reason(), test.reason) {
				t.Errorf("reason %q", e.Reason())
			}
			if e.MaxRSS < 100<<10 || e.MaxRSS > 1<<30 {
				t.Errorf("%d bytes of memory", e.MaxRSS)
			}
			got := run.Exit{Code: e.Code, Signal: e.Signal, Core: e.Core, Asked: e.Asked, Killed: e.Killed, OOM: e.OOM}
			if got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestTheReasonOfAnExit(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		exit run.Exit
		want string
	}{
		{run.Exit{Code: 137, Signal: "SIGKILL", OOM: true}, "was killed by the kernel for want of memory (SIGKILL)"},
		{run.Exit{Code: 137, Signal: "SIGKILL", Killed: true, OOM: true}, "was killed by postern"},
		{run.Exit{Code: 137, Signal: "SIGKILL", Killed: true, Asked: true}, "did not stop when asked and was killed by postern"},
		{run.Exit{Code: 143, Signal: "SIGTERM", Asked: true}, "stopped as asked, of SIGTERM"},
		{run.Exit{Code: 143, Signal: "SIGTERM"}, "died of SIGTERM"},
		{run.Exit{Code: 0, Asked: true}, "stopped as asked, with code 0"},
		{run.Exit{Code: 134, Signal: "SIGABRT", Core: true}, "died of SIGABRT and left a core"},
		{run.Exit{Code: 1, OOM: true}, "ended by itself with code 1, and the kernel has killed a process of it for want of memory"},
		{run.Exit{Code: 255}, "ended by itself with code 255"},
	} {
		if got := test.exit.Reason(); got != test.want {
			t.Errorf("%+v: %q, want %q", test.exit, got, test.want)
		}
	}
}

func TestAProgramThatNeverRanHasNoExit(t *testing.T) {
	t.Parallel()
	told := false
	cmd := &run.Command{Args: []string{"no-such-program"}, OnStart: func(int) { told = true }, OnExit: func(run.Exit) { told = true }}
	if code, err := cmd.Run(t.Context()); code != 127 || err == nil || told {
		t.Errorf("code %d, %v, told %v", code, err, told)
	}
}

func TestTheExitSaysWhoWantedIt(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, part string
		signals    []os.Signal
		want       run.Exit
	}{
		{"stopped", "child-mortal", []os.Signal{syscall.SIGTERM}, run.Exit{Asked: true}},
		{"stopped, of the signal", "child-fragile", []os.Signal{syscall.SIGTERM}, run.Exit{Code: 143, Signal: "SIGTERM", Asked: true}},
		{"killed when its time was up", "child", []os.Signal{syscall.SIGTERM}, run.Exit{Code: 137, Signal: "SIGKILL", Asked: true, Killed: true}},
		{"interrupted twice", "child", []os.Signal{syscall.SIGINT, syscall.SIGINT}, run.Exit{Code: 137, Signal: "SIGKILL", Asked: true, Killed: true}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			exit := make(chan run.Exit, 1)
			a := launch(t, &run.Command{ForwardTERM: true, Grace: 1200 * time.Millisecond, OnExit: func(e run.Exit) { exit <- e }}, "listen", test.part)
			a.expect(test.part + " ready")
			a.send(test.signals...)
			a.wait()
			e := <-exit
			if got := (run.Exit{Code: e.Code, Signal: e.Signal, Asked: e.Asked, Killed: e.Killed}); got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

// What the child leaves behind may take the rest of the grace, and the last words must
// not wait for that.
func TestTheExitIsToldBeforeTheSweep(t *testing.T) {
	t.Parallel()
	exit := make(chan run.Exit, 1)
	a := launch(t, &run.Command{ForwardTERM: true, Grace: time.Hour, OnExit: func(e run.Exit) { exit <- e }}, "listen", "fragile-deaf", "server")
	a.expect("fragile-deaf ready")
	a.expect("server ready")
	a.send(syscall.SIGTERM)
	if e := <-exit; e.Code != 143 || !e.Asked {
		t.Errorf("got %+v", e)
	}
	select {
	case <-a.ended:
		t.Error("Run has returned")
	default:
	}
	a.stdin.Close()
	a.wait()
}

// Where the platform kills at once nothing may wait: not the app for the relay, nor the
// relay for the app.
func TestWithHardlyAnyGraceTheAppDoesNotWaitForTheHook(t *testing.T) {
	t.Parallel()
	for name, grace := range map[string]time.Duration{"none at all": run.NoGrace, "half a second": 500 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			entered, release := make(chan error, 1), make(chan struct{})
			a := launch(t, &run.Command{ForwardTERM: true, Grace: grace, OnStop: func(ctx context.Context) {
				entered <- ctx.Err()
				<-release
			}}, "listen", "child-mortal")
			let := sync.OnceFunc(func() { close(release) })
			t.Cleanup(let)
			a.expect("child-mortal ready")
			a.send(syscall.SIGTERM)
			a.expect("child-mortal got TERM") // while the hook is held
			if err := <-entered; err != nil {
				t.Errorf("the hook was not given any time: %v", err)
			}
			let()
			if code := a.wait(); code != 0 || a.count("child-mortal got TERM") != 1 {
				t.Errorf("code %d, said %q", code, a.seen)
			}
		})
	}
}
