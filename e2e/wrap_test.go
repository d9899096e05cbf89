package e2e

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// signalVariable makes this binary an app that tells every signal that it gets.
const signalVariable = "E2E_SIGNAL_APP"

// signalCommand goes on after every signal but SIGUSR2, on which it ends with 9.
func signalCommand(t testing.TB) rig.Command {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return rig.Command{
		Args: []string{self, "-test.run=^TestSignalAppProcess$"},
		Env:  []string{signalVariable + "=1", "GODEBUG=asyncpreemptoff=1"}, // or it would send itself SIGURG
	}
}

var signalNames = map[os.Signal]string{
	syscall.SIGHUP: "SIGHUP", syscall.SIGINT: "SIGINT", syscall.SIGQUIT: "SIGQUIT", syscall.SIGUSR1: "SIGUSR1",
	syscall.SIGUSR2: "SIGUSR2", syscall.SIGWINCH: "SIGWINCH", syscall.SIGCONT: "SIGCONT", syscall.SIGURG: "SIGURG",
	syscall.SIGPIPE: "SIGPIPE", syscall.SIGCHLD: "SIGCHLD", syscall.SIGTERM: "SIGTERM",
}

// TestSignalAppProcess is no test: it is the app of signalCommand.
func TestSignalAppProcess(*testing.T) {
	if os.Getenv(signalVariable) != "1" {
		return
	}
	got := make(chan os.Signal, 64)
	signal.Notify(got)
	go func() {
		io.Copy(io.Discard, os.Stdin) // ends with the tests
		os.Exit(1)
	}()
	fmt.Println("up")
	for sig := range got {
		fmt.Println("got", signalNames[sig])
		if sig == syscall.SIGUSR2 {
			os.Exit(9)
		}
	}
}

func TestSignalsPassToTheAppAsTheyShould(t *testing.T) {
	t.Parallel()
	for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGQUIT} {
		if signal.Ignored(sig) {
			t.Skip("this test runs with", sig, "ignored, as under nohup, and so would the app")
		}
	}
	r := rig.StartRelay(t, rig.RelayConfig{})
	heroku := []string{"DYNO=web.1", "HEROKU_APP_NAME=shop"}
	fly := []string{"FLY_MACHINE_ID=148e21ea7e1089", "FLY_APP_NAME=shop"}
	for _, c := range []struct {
		name  string
		env   []string
		flags []string
		sig   syscall.Signal
		want  string // what the app is to get; "" nothing
	}{
		{name: "QUIT", sig: syscall.SIGQUIT, want: "SIGQUIT"},
		{name: "WINCH", sig: syscall.SIGWINCH, want: "SIGWINCH"},
		{name: "CONT", sig: syscall.SIGCONT, want: "SIGCONT"},
		// Go's own runtime sends itself URG many times a second under load.
		{name: "URG", sig: syscall.SIGURG},
		{name: "PIPE", sig: syscall.SIGPIPE},
		{name: "CHLD", sig: syscall.SIGCHLD},
		{name: "TERM", sig: syscall.SIGTERM, want: "SIGTERM"},
		{name: "TERM on Heroku, which sends it to the app itself", env: heroku, sig: syscall.SIGTERM},
		{name: "TERM on Heroku, to be forwarded all the same", env: heroku, flags: []string{"--forward-term", "always"}, sig: syscall.SIGTERM, want: "SIGTERM"},
		{name: "TERM that is not to be forwarded", flags: []string{"--forward-term", "never"}, sig: syscall.SIGTERM},
		{name: "TERM by the variable", env: append([]string{"POSTERN_FORWARD_TERM=never"}, fly...), sig: syscall.SIGTERM},
		{name: "INT on Fly, which means TERM", env: fly, sig: syscall.SIGINT, want: "SIGTERM"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			agent := r.StartRun(signalCommand(t), rig.AgentConfig{NoWait: true, Env: c.env, Flags: append([]string{"--grace", "20s"}, c.flags...)})
			agent.Log.Wait(t, wait, 0, 1, "up")
			// What the kernel merges into one when it comes at once, it does not when it
			// comes a moment later.
			for range 3 {
				agent.Signal(c.sig)
				<-time.After(50 * time.Millisecond)
			}
			if c.want != "" {
				agent.Log.Wait(t, wait, 0, 1, "got "+c.want)
			}
			stop := c.sig == syscall.SIGTERM || c.sig == syscall.SIGINT
			// Whatever is to come has come when the app has got another one.
			agent.Signal(syscall.SIGUSR2)
			if code := agent.ExitCode(wait); code != 9 {
				t.Errorf("exit code %d, want 9", code)
			}
			got := slices.DeleteFunc(linesOf(agent, "got SIG"), func(line string) bool { return line == "got SIGUSR2" })
			switch {
			case c.want == "" && len(got) > 0, stop && c.want != "" && len(got) != 1,
				c.want != "" && !slices.Contains(got, "got "+c.want):
				t.Errorf("the app got %q, want %q once", got, c.want)
			}
		})
	}
}

// linesOf are the lines that the app itself has written and that begin so; the
// agent's own may quote them.
func linesOf(agent *rig.Agent, begin string) []string {
	var lines []string
	for line := range strings.SplitSeq(agent.Log.String(), "\n") {
		if strings.HasPrefix(line, begin) {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestArgumentsArePassedOnVerbatim(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	args := []string{"a b", "", "--help", "-x", "$HOME", "*", "a'b\"c", "\xff\xfe", "é", "--", "--relay=http://elsewhere", "new\nline"}
	agent := r.StartRun(rig.Command{
		Args: append([]string{"/bin/sh", "-c", `printf '<%s>' "$@"; echo`, "sh"}, args...),
	}, rig.AgentConfig{NoWait: true})
	if code := agent.ExitCode(wait); code != 0 {
		t.Errorf("exit code %d", code)
	}
	var want strings.Builder
	for _, a := range args {
		fmt.Fprintf(&want, "<%s>", a)
	}
	if !strings.Contains(agent.Log.String(), want.String()+"\n") {
		t.Errorf("the app did not get %q", args)
	}
}

// What an app leaves in its process group is gone with it.
func TestWhatAnAppLeavesBehindIsGoneWithIt(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	agent := r.StartRun(rig.Command{Args: []string{"/bin/sh", "-c", "sleep 300 & echo left $!; exit 3"}}, rig.AgentConfig{NoWait: true})
	if code := agent.ExitCode(wait); code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
	var pid int
	_, rest, _ := strings.Cut(agent.Log.String(), "left ")
	if _, err := fmt.Sscan(rest, &pid); err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, wait, "the end of what was left", func() error {
		if rig.Alive(pid) {
			return fmt.Errorf("process %d is there", pid)
		}
		return nil
	})
}

// orphans leaves ten processes without a parent, waits until they have ended, and
// tells how many zombies there are. Each daemon is a session of its own, outside
// the app's process group.
const orphans = `
i=0
while [ $i -lt 10 ]; do
	sh -c 'setsid sh -c "sleep 0.2" >/dev/null 2>&1 &'
	i=$((i+1))
done
n=0
while [ $n -lt 100 ]; do
	left=$(cat /proc/[0-9]*/stat 2>/dev/null | grep -c -E '^[0-9]+ \((sleep|sh)\) [^Z]' )
	dead=$(cat /proc/[0-9]*/stat 2>/dev/null | grep -c -E '^[0-9]+ \((sleep|sh)\) Z' )
	[ "$left" -le 2 ] && [ "$dead" -eq 0 ] && [ $n -gt 5 ] && break
	n=$((n+1))
	sleep 0.1
done
echo "zombies: $dead, left: $left"
exit 7`

// newPIDs runs a program in a PID namespace of its own, as its first process.
func newPIDs(t *testing.T) []string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a PID namespace needs root")
	}
	if out, err := exec.Command("unshare", "--pid", "--fork", "--mount-proc", "true").CombinedOutput(); err != nil {
		t.Skipf("no PID namespaces here: %v: %s", err, out)
	}
	return []string{"unshare", "--pid", "--fork", "--kill-child", "--mount-proc"}
}

func TestThePIDNamespacesFirstProcessReapsOrphansAndKeepsTheAppsCode(t *testing.T) {
	t.Parallel()
	under := newPIDs(t)
	r := rig.StartRelay(t, rig.RelayConfig{})
	agent := r.StartRun(rig.Command{Args: []string{"/bin/sh", "-c", orphans}}, rig.AgentConfig{NoWait: true, Under: under})
	if code := agent.ExitCode(3 * wait); code != 7 {
		t.Errorf("exit code %d, want 7", code)
	}
	if got := linesOf(agent, "zombies: "); len(got) != 1 || got[0] != "zombies: 0, left: 2" {
		t.Errorf("orphans were not reaped: %q", got)
	}
}

func TestASubreaperReapsOrphans(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	pids := filepath.Join(t.TempDir(), "pids")
	agent := r.StartRun(rig.Command{Args: []string{"/bin/sh", "-c", `
for i in 1 2 3 4 5; do sh -c 'setsid sh -c "echo \$\$ >> $0; sleep 0.2" &' ` + pids + `; done
echo up
read -r line
exit 7`}}, rig.AgentConfig{NoWait: true, Flags: []string{"--subreaper"}})
	agent.Log.Wait(t, wait, 0, 1, "up")
	rig.Eventually(t, wait, "the end of the orphans", func() error {
		text, err := os.ReadFile(pids)
		if err != nil {
			return err
		}
		var all []int
		for word := range strings.FieldsSeq(string(text)) {
			var pid int
			fmt.Sscan(word, &pid)
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil { // a zombie is there, too
				return fmt.Errorf("process %d is there", pid)
			}
			all = append(all, pid)
		}
		if len(all) != 5 {
			return fmt.Errorf("%d of 5 orphans have begun", len(all))
		}
		return nil
	})
	if !agent.Running() {
		t.Error("it has ended with its orphans")
	}
}

func TestSIGTERMStopsTheAppOfAFirstProcess(t *testing.T) {
	t.Parallel()
	under := newPIDs(t)
	r := rig.StartRelay(t, rig.RelayConfig{})
	agent := r.StartRun(faultAppCommand(t, "", 7), rig.AgentConfig{Under: under})
	tree := agent.Tree() // unshare, which waits; the agent; the app
	if len(tree) < 3 {
		t.Fatalf("the tree is %v", tree)
	}
	syscall.Kill(tree[1], syscall.SIGTERM)
	if code := agent.ExitCode(wait); code != 7 {
		t.Errorf("exit code %d, want 7", code)
	}
}

// An app that ceases to listen because it was asked to stop makes no mistake.
func TestAStopIsNoMistake(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	ledgerFile := filepath.Join(t.TempDir(), "ledger")
	for _, c := range []struct {
		app string
		env []string
		all bool // the signal is sent to all processes, as Heroku does
	}{{"plain", nil, false}, {"heroku", []string{"DYNO=web.1"}, true}} {
		t.Run(c.app, func(t *testing.T) {
			t.Parallel()
			agent := r.StartRun(drillCommand(t, c.app, 0, ledgerFile), rig.AgentConfig{App: c.app, Env: append([]string{"POSTERN_GRACE=20s"}, c.env...)})
			awaitState(t, r, developer(r, c.app), "ready")
			slow := asking(r.Addr, r.AppHost(c.app), "/?ms=4000")
			rig.Eventually(t, wait, "the request is under way", func() error {
				if connections(t, agent.Target) == 0 {
					return fmt.Errorf("nobody is connected to the app")
				}
				return nil
			})
			if c.all {
				rig.SignalEach(agent.Tree(), syscall.SIGTERM)
			} else {
				agent.Signal(syscall.SIGTERM)
			}
			if s := rig.Receive(t, wait, "the answer", slow); !s.ok() {
				t.Errorf("the request under way saw %v", s)
			}
			if code := agent.ExitCode(wait); code != 0 {
				t.Errorf("exit code %d", code)
			}
			if lines := complaints(agent.Log.String()); len(lines) > 0 {
				t.Errorf("it complains:\n%s", strings.Join(lines, "\n"))
			}
		})
	}
}

// One-off processes, and any that are told so, become the app: nothing of ours
// is between.
func TestWhereThereIsNothingToDoTheAppTakesOurPlace(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	for _, c := range []struct {
		name string
		env  []string
	}{
		{"a console", []string{"DYNO=run.1"}},
		{"a release task", []string{"DYNO=release.1"}},
		{"a scheduled task", []string{"DYNO=scheduler.4821"}},
		{"a job", []string{"CLOUD_RUN_JOB=nightly", "CLOUD_RUN_EXECUTION=nightly-1"}},
		{"disabled", []string{"POSTERN_DISABLE=1", "DYNO=web.1"}},
		{"disabled, with nonsense besides", []string{"POSTERN_DISABLE=1", "POSTERN_TUNNELS=many", "POSTERN_GRACE=soon", "PORT=none"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			agent := r.StartRun(rig.Command{Args: []string{"/bin/sh", "-c", "echo pid $$ of $PPID; read -r line; exit 5"}},
				rig.AgentConfig{NoWait: true, Env: c.env})
			agent.Log.Wait(t, wait, 0, 1, fmt.Sprintf("pid %d of %d", agent.PID(), os.Getpid()))
			if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", agent.PID())); err != nil || filepath.Base(exe) == "postern" {
				t.Errorf("it is %q, %v", exe, err)
			}
			if open := r.Log.Count(0, `msg="tunnel open"`, "instance="+agent.Instance+" "); open > 0 {
				t.Error("it is connected to the relay")
			}
		})
	}
	t.Run("a console that is to be connected", func(t *testing.T) {
		t.Parallel()
		r.StartRun(faultAppCommand(t, "", 0), rig.AgentConfig{Env: []string{"DYNO=run.2"}, Flags: []string{"--one-off"}})
	})
	t.Run("a console that is to be connected, by the variable", func(t *testing.T) {
		t.Parallel()
		r.StartRun(faultAppCommand(t, "", 0), rig.AgentConfig{Env: []string{"DYNO=run.3", "POSTERN_ONE_OFF=1"}})
	})
}
