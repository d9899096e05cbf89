//go:build linux

package buildpack

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// dyno is a session of processes that one line of a Procfile has started, as on
// Heroku: .profile.d is sourced, then bash has the line.
type dyno struct {
	cmd  *exec.Cmd
	log  *output
	done chan struct{} // closed when the first process has ended
}

// boot is what a platform does with a line before it is the app's turn.
const boot = `for f in "$HOME"/.profile.d/*.sh; do [ -e "$f" ] && source "$f"; done; cd "$HOME"; eval "$1"`

// startDyno runs a process of the Procfile in build. Only env, PATH and HOME are
// in its environment.
func startDyno(t *testing.T, build, process string, env ...string) *dyno {
	t.Helper()
	d := &dyno{log: &output{}, done: make(chan struct{})}
	d.cmd = exec.Command("bash", "-c", boot, "bash", procfile(t, build)[process])
	d.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + build, "LANG=C.UTF-8"}, env...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	d.cmd.WaitDelay = time.Second
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		d.cmd.Wait()
		close(d.done)
	}()
	t.Cleanup(func() {
		d.broadcast(t, syscall.SIGKILL)
		<-d.done
		if t.Failed() {
			t.Logf("log of %s:\n%s", process, d.log)
		}
	})
	return d
}

// broadcast sends sig to every process of the dyno, as Heroku sends SIGTERM.
func (d *dyno) broadcast(t *testing.T, sig syscall.Signal) {
	t.Helper()
	for pid := range d.processes(t) {
		syscall.Kill(pid, sig) // it may have ended since
	}
}

// processes are the names of the session's processes, by id.
func (d *dyno) processes(t *testing.T) map[int]string {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	found := map[int]string{}
	for _, file := range stats {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		// pid (name) state ppid group session …
		open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
		if open < 0 || end < 0 {
			continue
		}
		fields := strings.Fields(string(text[end+1:]))
		if len(fields) > 3 && fields[3] == strconv.Itoa(d.cmd.Process.Pid) {
			pid, _ := strconv.Atoi(strings.TrimSpace(string(text[:open])))
			found[pid] = string(text[open+1 : end])
		}
	}
	return found
}

// exitCode waits for the end of the dyno's first process.
func (d *dyno) exitCode(t *testing.T, within time.Duration) int {
	t.Helper()
	rig.Receive(t, within, "the end of the process", after(d.done))
	return d.cmd.ProcessState.ExitCode()
}

func after(done <-chan struct{}) <-chan struct{} {
	c := make(chan struct{}, 1)
	go func() {
		<-done
		c <- struct{}{}
	}()
	return c
}

// output is what a process has printed. Safe for concurrent use.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// await waits for a line that contains every one of words.
func (d *dyno) await(t *testing.T, words ...string) {
	t.Helper()
	rig.Eventually(t, rig.StartsWithin, "log line "+strings.Join(words, " … "), func() error {
		for line := range strings.SplitSeq(d.log.String(), "\n") {
			if containsAll(line, words) {
				return nil
			}
		}
		return errors.New("it is not there")
	})
}

func containsAll(line string, words []string) bool {
	for _, word := range words {
		if !strings.Contains(line, word) {
			return false
		}
	}
	return true
}

// procfile reads the process types of a folder's Procfile.
func procfile(t *testing.T, build string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(build, "Procfile"))
	if err != nil {
		t.Fatal(err)
	}
	types := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if name, command, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			types[name] = strings.TrimSpace(command)
		}
	}
	return types
}
