package run_test

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mountProc makes /proc show the PID namespace of this process, or nothing at all. The
// mount is its own alone.
func mountProc(what string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return os.NewSyscallError("mount", err)
	}
	kind := map[string]string{"proc": "proc", "none": "tmpfs"}[what]
	return os.NewSyscallError("mount "+kind, unix.Mount(kind, "/proc", kind, 0, ""))
}

// startFirst starts this binary as an agent that is the first process of a PID
// namespace. Without root it takes a user namespace, where those are allowed.
func startFirst(t *testing.T, proc string, args ...string) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
	}
	probe := exec.Command("true")
	probe.SysProcAttr = cmd.SysProcAttr
	if err := probe.Run(); err != nil {
		t.Skipf("no PID namespaces here: %v", err)
	}
	return startCommand(t, cmd, helperVariable+"=agent", procVariable+"="+proc, bystandersVariable+"=yes")
}

// ended waits for the agent and checks that the bystanders have their codes.
func (p *process) ended(t *testing.T) int {
	t.Helper()
	p.drain()
	code := p.wait()
	if i := slices.IndexFunc(p.seen, func(line string) bool { return strings.HasPrefix(line, "skip:") }); i >= 0 {
		t.Skip(p.seen[i])
	}
	if p.count("late 5") != 3 || p.count("bystander <nil>") != 2 {
		t.Errorf("somebody's exit status was stolen: %q", p.seen)
	}
	return code
}

func TestTheFirstProcessReapsOrphansAndNobodyElse(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"session", "group"} {
		t.Run("of a "+kind, func(t *testing.T) {
			t.Parallel()
			p := startFirst(t, "proc", "orphans", "10", kind)
			if code := p.ended(t); code != 7 || p.count("reaped 10") != 1 {
				t.Errorf("code %d, said %q; want 7 and ten orphans reaped", code, p.seen)
			}
		})
	}
}

func TestASubreaperDoesTheSame(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0], "orphans", "10", "session")
	p := startCommand(t, cmd, helperVariable+"=agent", subreaperVariable+"=yes", bystandersVariable+"=yes")
	if code := p.ended(t); code != 7 || p.count("reaped 10") != 1 {
		t.Errorf("code %d, said %q; want 7 and ten orphans reaped", code, p.seen)
	}
}

// Without /proc nobody can tell who has started what, so only the app's group is reaped.
func TestWithoutProcTheFirstProcessReapsTheGroup(t *testing.T) {
	t.Parallel()
	p := startFirst(t, "none", "orphans", "10", "group")
	if code := p.ended(t); code != 7 || p.count("reaped 10") != 1 {
		t.Errorf("code %d, said %q; want 7 and ten orphans reaped", code, p.seen)
	}
}

func TestAnAdoptedDaemonEndsAfterTheApp(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, daemon string }{
		{"one that obeys SIGTERM", "daemon-deaf-mortal"},
		{"one that does not", "daemon-deaf"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0], "daemon", test.daemon)
			p := startCommand(t, cmd, helperVariable+"=agent", subreaperVariable+"=yes")
			p.expect(test.daemon + " ready")
			p.cmd.Process.Signal(syscall.SIGUSR1)
			p.drain() // ends when the daemon does
			if code := p.wait(); code != 7 || p.count(test.daemon+" got TERM") != 1 {
				t.Errorf("code %d, said %q", code, p.seen)
			}
		})
	}
}

// The daemon may be what the app needs for its last requests.
func TestDuringAStopTheAppGoesFirst(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0], "beside", "child", "daemon-deaf-mortal")
	p := startCommand(t, cmd, helperVariable+"=agent", subreaperVariable+"=yes")
	p.expect("child ready")
	p.expect("daemon-deaf-mortal ready")
	p.cmd.Process.Signal(syscall.SIGTERM)
	p.expect("child got TERM")
	for _, sig := range []syscall.Signal{syscall.SIGUSR1, syscall.SIGUSR2} {
		p.cmd.Process.Signal(sig)
		p.expect("child got " + short(sig))
	}
	if p.count("daemon-deaf-mortal got TERM") != 0 {
		t.Error("the daemon was told before the app had ended")
	}
	p.stdin.Close()
	p.expect("daemon-deaf-mortal got TERM")
	p.drain()
	if code := p.wait(); code != 0 || p.count("daemon-deaf-mortal got TERM") != 1 {
		t.Errorf("code %d, said %q", code, p.seen)
	}
}

// "sh -c" ends at once; the server below it still answers, and may need the daemon.
func TestDuringAStopTheGroupGoesBeforeTheDaemons(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0], "beside", "fragile-deaf", "daemon-deaf-mortal", "server")
	p := startCommand(t, cmd, helperVariable+"=agent", subreaperVariable+"=yes")
	var shell int
	fmt.Sscanf(p.expect("fragile-deaf ready"), "fragile-deaf ready %d", &shell)
	p.expect("daemon-deaf-mortal ready")
	p.expect("server ready")
	p.cmd.Process.Signal(syscall.SIGTERM)
	p.expect("server got TERM")
	for deadline := time.Now().Add(patience); syscall.Kill(shell, 0) == nil && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond) // until the agent has seen that it ended
	}
	began := time.Now()
	for i := 0; time.Since(began) < 300*time.Millisecond; i++ { // time enough for a mistake
		p.stdin.WriteString(fmt.Sprintln("request", i))
		p.expect(fmt.Sprint("server line request ", i))
	}
	if p.count("daemon-deaf-mortal got TERM") != 0 {
		t.Error("the daemon was told before the server had ended")
	}
	p.stdin.Close()
	p.expect("daemon-deaf-mortal got TERM")
	p.drain()
	if code := p.wait(); code != 143 {
		t.Errorf("code %d, said %q", code, p.seen)
	}
}

// Go sends itself SIGURG, hundreds of times a second; a wrapper that subscribes to all
// signals passes every one of them on. The shell tells, since it never gets one otherwise.
func TestAStormOfSIGURGIsNotPassedOn(t *testing.T) {
	t.Parallel()
	p := startAgent(t, "shell", `trap 'echo got URG' URG; trap 'echo got TERM' TERM
		trap 'echo got WINCH; exit 3' WINCH; echo ready; while :; do read line; done`)
	p.expect("ready")
	for range 500 {
		if err := p.cmd.Process.Signal(syscall.SIGURG); err != nil {
			t.Fatal(err)
		}
	}
	// Platforms repeat SIGTERM, and some servers take the second one for "hurry".
	p.cmd.Process.Signal(syscall.SIGTERM)
	p.expect("got TERM")
	for range 5 {
		p.cmd.Process.Signal(syscall.SIGTERM)
	}
	p.cmd.Process.Signal(syscall.SIGUSR1) // kills a shell that has no trap for it
	if code := p.wait(); code != 128+int(syscall.SIGUSR1) {
		t.Errorf("code %d", code)
	}
	p.drain()
	if p.count("got URG") != 0 || p.count("got TERM") != 1 {
		t.Errorf("said %q", p.seen)
	}
}
