package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/posternhq/postern/e2e/rig"
	"github.com/posternhq/postern/relay/selftest"
)

// mayTrace skips the test where a process cannot be traced.
func mayTrace(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("this needs strace, which is not installed")
	}
	if said, err := exec.Command("strace", "-qq", "-e", "trace=none", "-o", os.DevNull, "true").CombinedOutput(); err != nil {
		t.Skipf("this needs ptrace: %v: %s", err, said)
	}
}

// trace lets strace look at the relay, until stop, which gives what it saw.
func (s *crashSite) trace(flags ...string) (stop func() []byte) {
	s.t.Helper()
	out := filepath.Join(s.dir, "strace.out")
	p := s.process("strace", nil, append([]string{"strace", "-f", "-qq", "-p", strconv.Itoa(s.relay.PID()), "-o", out}, flags...)...)
	s.start(p)
	rig.Eventually(s.t, rig.StartsWithin, "a tracer at each thread", s.traced)
	return func() []byte {
		s.t.Helper()
		p.Stop() // it lets go of the relay
		seen, err := os.ReadFile(out)
		if err != nil {
			s.t.Fatal(err)
		}
		return seen
	}
}

// traced is nil when all threads of the relay have a tracer.
func (s *crashSite) traced() error {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", s.relay.PID()))
	if err != nil || len(threads) == 0 {
		return errors.Join(err, errors.New("the relay is gone"))
	}
	for _, file := range threads {
		status, err := os.ReadFile(file)
		if err == nil && bytes.Contains(status, []byte("TracerPid:\t0\n")) {
			return errors.New(file + " has none")
		}
	}
	return nil
}

// The half of the promise that killing cannot show: before a 202 leaves, all that
// was written for its event has been given to fsync, and fsync has succeeded. So
// it is what the relay asks of the kernel that is judged, and in which order.
func TestNo202LeavesBeforeItsEventIsSynced(t *testing.T) {
	t.Parallel()
	mayTrace(t)
	for _, test := range []struct {
		name   string
		binary func(*testing.T) string
		good   bool
	}{
		{"the relay", func(t *testing.T) string { return rig.Binary(t, "postern-relay") }, true},
		{"one that acknowledges before it commits", func(t *testing.T) string { return brokenRelay(t, "hasty") }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newCrashSite(t, crashConfig{Binary: test.binary(t)})
			stop := s.trace("-y", "-s", "16", "-e", "trace=write,writev,pwrite64,pwritev,fsync,fdatasync")
			const small, large = 30, 6
			s.postOneByOne(small, 2000)
			s.postOneByOne(large, 400_000)
			accepted, faults := unsynced(stop())
			t.Logf("%d answers, %d too early", accepted, len(faults))
			if accepted != small+large {
				t.Fatalf("%d answers in the trace, want %d", accepted, small+large)
			}
			if test.good {
				for _, fault := range faults {
					t.Error(fault)
				}
			} else if len(faults) == 0 {
				t.Error("that was not found out, so it proves nothing of the relay either")
			}
		})
	}
}

// postOneByOne sends n events and awaits each 202.
func (s *crashSite) postOneByOne(n, size int) {
	s.t.Helper()
	r := rand.New(rand.NewPCG(uint64(n), uint64(size)))
	sign := selftest.GitHub(crashSecret, func(*rand.Rand) int { return size })
	for i := range n {
		body, header := sign(r, int64(size+i), "")
		resp, text := post(s.t, http.DefaultClient, s.relay.URL+"/hooks/shop/plain", hook{body, header})
		if resp.StatusCode != http.StatusAccepted {
			s.t.Fatalf("answered %s: %s", resp.Status, text)
		}
	}
}

// Lines of strace -f -y: a system call on a file begins, or one that was
// interrupted by another thread's comes to its end.
var (
	callBegins  = regexp.MustCompile(`^(\d+) +(\w+)\(\d+<([^>]*)>(.*)`)
	callResumes = regexp.MustCompile(`^(\d+) +<\.\.\. (\w+) resumed>(.*)`)
)

// syncState is what a trace has shown of each file: the number of the line that
// last wrote to it, and of the last such line that fsync has covered.
type syncState struct {
	written, synced map[string]int
	pending         map[string]pendingSync // by thread
}

type pendingSync struct {
	path   string
	covers int
}

// unsynced counts the answers 202 in a trace, and names those that left while
// something was written and not synced, or while nothing had been written at all.
func unsynced(trace []byte) (accepted int, faults []string) {
	s := syncState{map[string]int{}, map[string]int{}, map[string]pendingSync{}}
	lines := bufio.NewScanner(bytes.NewReader(trace))
	last := 0 // line of the answer before
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		if m := callResumes.FindStringSubmatch(line); m != nil {
			s.ended(m[1], m[3])
			continue
		}
		m := callBegins.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		thread, call, path, rest := m[1], m[2], m[3], m[4]
		switch {
		case strings.HasPrefix(call, "f"): // fsync, fdatasync
			s.pending[thread] = pendingSync{path, s.written[path]}
			if !strings.Contains(rest, "<unfinished") {
				s.ended(thread, rest)
			}
		case durable(path):
			s.written[path] = n
			if dir := filepath.Dir(path); strings.HasSuffix(dir, "-bodies") {
				s.written[dir] = n // its name is in there
			}
		case strings.Contains(rest, `"HTTP/1.1 202`):
			accepted++
			if fault := s.judge(last); fault != "" {
				faults = append(faults, fmt.Sprintf("answer %d left while %s (line %d of the trace)", accepted, fault, n))
			}
			last = n
		}
	}
	return accepted, faults
}

// durable reports whether an event is in the file: the log of the database, or a
// body of its own. What is in the database itself came out of the log.
func durable(path string) bool {
	return strings.HasSuffix(path, "-wal") || strings.HasSuffix(filepath.Dir(path), "-bodies")
}

// ended notes that a thread's fsync came back.
func (s *syncState) ended(thread, result string) {
	p, ok := s.pending[thread]
	delete(s.pending, thread)
	if ok && strings.HasSuffix(strings.TrimSpace(result), "= 0") {
		s.synced[p.path] = max(s.synced[p.path], p.covers)
	}
}

// judge says what is wrong with an answer that leaves now, "" for nothing.
func (s *syncState) judge(last int) string {
	stored := false
	for path, line := range s.written {
		if s.synced[path] < line {
			return filepath.Base(path) + " was written and not synced"
		}
		stored = stored || line > last
	}
	if !stored {
		return "nothing was written for it"
	}
	return ""
}
