package run

import (
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// dead starts a process that ends at once, in a group of its own if asked, and returns
// when it can be reaped.
func dead(t *testing.T, ownGroup bool) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: ownGroup}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := awaitExit(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// blindAdopter is an adopter that cannot tell who has started a process.
func blindAdopter(child int) *adopter {
	return &adopter{child: child, log: slog.New(slog.DiscardHandler), dead: map[int]time.Time{}, told: map[int]bool{}}
}

func TestWhoseProcessItIsCannotBeTold(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string
		ownGroup bool
		inApp    bool          // its group is the app's
		since    time.Duration // how long it is known to be dead
		want     bool          // it is reaped
	}{
		{"one of the app's group", true, true, 0, true},
		{"a stranger, just dead", true, false, 0, false},
		{"a stranger, dead for a while", true, false, time.Minute, true},
		{"one of our own group", false, false, time.Hour, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			cmd := dead(t, test.ownGroup)
			pid, child := cmd.Process.Pid, -1
			if test.inApp {
				child = pid // as a number of a group: the leader itself is never shown to bury
			}
			a := blindAdopter(child)
			if test.since > 0 {
				a.dead[pid] = time.Now().Add(-test.since)
			}
			if got := a.buryStranger(pid); got != test.want {
				t.Errorf("buried %v, want %v", got, test.want)
			}
			if test.want != (a.reaped == 1) {
				t.Errorf("%d reaped", a.reaped)
			}
			if err := cmd.Wait(); (err == nil) == test.want {
				t.Errorf("whoever started it gets %v", err)
			}
		})
	}
}

func TestADoubtfulProcessIsLookedAtAgain(t *testing.T) {
	t.Parallel()
	cmd := dead(t, true)
	a := blindAdopter(-1)
	a.buryStranger(cmd.Process.Pid)
	if a.again == nil || len(a.dead) != 1 {
		t.Error("nobody will come back to it")
	}
	cmd.Wait()
	if a.buryStranger(cmd.Process.Pid) {
		t.Error("a process that was gone has been buried")
	}
}

func TestTheProcessesOfThisProgramHaveHandles(t *testing.T) {
	t.Parallel()
	cmd := dead(t, false)
	pid := cmd.Process.Pid
	if _, err := os.Stat("/proc/self/fdinfo"); err != nil {
		t.Skip(err)
	}
	if !startedHere(-1)[pid] {
		t.Skip("the kernel has no pidfds, or Go does not use them")
	}
	a := blindAdopter(-1)
	a.handles = true
	if a.bury(pid) {
		t.Error("another's process was buried")
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("its status is lost: %v", err)
	}
	if startedHere(-1)[pid] {
		t.Error("a handle is left after Wait")
	}
	// One whose Process was released will never be waited for.
	released := dead(t, false)
	pid = released.Process.Pid
	released.Process.Release()
	if !a.bury(pid) || a.reaped != 1 {
		t.Error("it stays a zombie for ever")
	}
}

func TestTheKernelsCountersAreRead(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		text string
		want int64
		ok   bool
	}{
		{"low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\noom_group_kill 0\n", 2, true},
		{"oom_kill_disable 0\nunder_oom 0\noom_kill 11\n", 11, true},
		{"oom_kill_disable 0\nunder_oom 0\n", 0, false}, // before Linux 4.13
		{"oom_kill many\n", 0, false},
		{"", 0, false},
	} {
		if got, ok := killsIn([]byte(test.text)); got != test.want || ok != test.ok {
			t.Errorf("%q: %d, %v", test.text, got, ok)
		}
	}
}
