package run_test

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/posternhq/postern/agent/run"
)

// At a terminal the child shares the shell's job. What is typed reaches the child
// once: as text, or as the signal that the terminal makes of it.
func TestAtATerminal(t *testing.T) {
	t.Parallel()
	master, slave := openTerminal(t)
	output, stdout := pipe(t)
	cmd := exec.Command(os.Args[0], "listen", "child")
	cmd.Env = append(run.ChildEnv(os.Environ(), helperVariable), helperVariable+"=agent", atOnce)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	p := begin(t, cmd, master, output, slave, stdout)

	var pid, group int
	if _, err := fmt.Sscanf(p.expect("child ready"), "child ready %d %d", &pid, &group); err != nil {
		t.Fatal(err)
	}
	if group != p.cmd.Process.Pid {
		t.Errorf("the child is in group %d, the job is %d", group, p.cmd.Process.Pid)
	}
	p.stdin.WriteString("hello\n")
	p.expect("child line hello") // a background reader would have been stopped

	p.stdin.WriteString("\x03") // Ctrl-C
	p.expect("child got INT")
	p.stdin.WriteString("\x03")
	p.expectNth("child got INT", 2)
	p.stdin.WriteString("\x1c") // Ctrl-\
	p.expect("child got QUIT")
	unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 10, Col: 20})
	p.expect("child got WINCH")
	for _, sig := range []syscall.Signal{syscall.SIGUSR1, syscall.SIGTERM} { // to the agent alone
		if err := p.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		p.expect("child got " + short(sig))
	}
	p.stdin.WriteString("\x04") // Ctrl-D
	p.drain()
	if code := p.wait(); code != 0 {
		t.Errorf("code %d", code)
	}
	for line, want := range map[string]int{"child got INT": 2, "child got QUIT": 1, "child got WINCH": 1, "child got TERM": 1} {
		if got := p.count(line); got != want {
			t.Errorf("%q %d times, want %d", line, got, want)
		}
	}
}

// A terminal that is not the session's own stops nobody, so the child has a group.
func TestAForeignTerminalIsAFileLikeAnyOther(t *testing.T) {
	t.Parallel()
	master, slave := openTerminal(t)
	output, stdout := pipe(t)
	cmd := exec.Command(os.Args[0], "listen", "child")
	cmd.Env = append(run.ChildEnv(os.Environ(), helperVariable), helperVariable+"=agent", atOnce)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	p := begin(t, cmd, master, output, slave, stdout)

	var pid, group int
	if _, err := fmt.Sscanf(p.expect("child ready"), "child ready %d %d", &pid, &group); err != nil {
		t.Fatal(err)
	}
	if group != pid {
		t.Errorf("the child %d is in group %d", pid, group)
	}
	p.stdin.WriteString("hello\n")
	p.expect("child line hello")
	p.stdin.WriteString("\x04")
	if code := p.wait(); code != 0 {
		t.Errorf("code %d", code)
	}
}

func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}
