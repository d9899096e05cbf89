package run_test

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/agent/run"
)

// process is a whole process of its own, mostly an agent, and what it says.
type process struct {
	*transcript
	cmd   *exec.Cmd
	stdin *os.File
}

// startAgent starts this binary as the agent around an app of the tests.
func startAgent(t *testing.T, args ...string) *process {
	t.Helper()
	return startProcess(t, "agent", append([]string{os.Args[0]}, args...)...)
}

// startProcess starts a program whose environment makes this binary play part.
func startProcess(t *testing.T, part string, args ...string) *process {
	t.Helper()
	return startCommand(t, exec.Command(args[0], args[1:]...), helperVariable+"="+part)
}

// startCommand starts cmd with more in its environment and its streams in our hands.
func startCommand(t *testing.T, cmd *exec.Cmd, env ...string) *process {
	t.Helper()
	stdin, feed := pipe(t)
	output, stdout := pipe(t)
	cmd.Env = append(run.ChildEnv(os.Environ(), helperVariable), atOnce, "POSTERN_TOKEN=secret", "POSTERN_TOKEN_FD=9")
	cmd.Env = append(cmd.Env, env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, os.Stderr
	return begin(t, cmd, feed, output, stdin, stdout)
}

// begin starts cmd, closes what is the child's alone, and kills it with the test.
func begin(t *testing.T, cmd *exec.Cmd, feed, output *os.File, childs ...*os.File) *process {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range childs {
		f.Close()
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	return &process{transcript: newTranscript(t, output), cmd: cmd, stdin: feed}
}

// wait returns the exit code.
func (p *process) wait() int {
	p.t.Helper()
	hung := time.AfterFunc(patience, func() { p.cmd.Process.Kill() })
	defer hung.Stop()
	p.cmd.Wait()
	return p.cmd.ProcessState.ExitCode()
}

func TestExecReplacesTheProcessAndKeepsTheTokenBack(t *testing.T) {
	t.Parallel()
	p := startAgent(t, "exec", "sh", "-c", `echo "$$ $1"; tr '\0' '\n' </proc/self/environ | grep POSTERN_; echo "${POSTERN_TOKEN-none}"; exit 9`, "sh", "two words")
	p.drain()
	pid := p.cmd.Process.Pid
	if code := p.wait(); code != 9 {
		t.Errorf("code %d, want 9", code)
	}
	if got, want := strings.Join(p.seen, "\n"), strconv.Itoa(pid)+" two words\nnone"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestExecOfWhatCannotRun(t *testing.T) {
	t.Parallel()
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args []string
		want int
	}{
		{[]string{"no-such-program"}, 127},
		{[]string{"/no/such/program"}, 127},
		{[]string{file}, 126},
		{[]string{os.TempDir()}, 126},
		{nil, 2},
	} {
		if code, err := run.Exec(test.args); code != test.want || err == nil {
			t.Errorf("%q: got %d, %v; want %d and an error", test.args, code, err, test.want)
		}
	}
}
