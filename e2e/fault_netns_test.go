package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// cable is two network namespaces, one for the relay and one for the agent, with
// a pair of virtual Ethernet devices between them. It needs root and iproute2.
type cable struct {
	relay, agent string // names of the namespaces
	relayIP      string
	drop         string // the queueing discipline that loses every packet
}

// dropping lists disciplines that lose everything, best first: netem is a kernel
// module that small kernels lack; a queue without room is always there.
var dropping = []string{"netem loss 100%", "pfifo limit 0"}

// newCable skips the test, with the reason, where there can be none.
func newCable(t testing.TB) *cable {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("network namespaces need ip, of the package iproute2")
	}
	if _, err := exec.LookPath("tc"); err != nil {
		t.Skip("losing packets needs tc, of the package iproute2")
	}
	sweepNamespaces()
	name := fmt.Sprintf("%s%d", namespacePrefix, os.Getpid())
	c := &cable{relay: name + "-relay", agent: name + "-agent", relayIP: "10.231.77.1"}
	for _, ns := range []string{c.relay, c.agent} {
		if err := ip("netns add " + ns); err != nil {
			t.Skipf("no network namespaces here: %v", err)
		}
		t.Cleanup(func() { ip("netns del " + ns) }) // takes its devices along
	}
	for _, step := range []string{
		"link add veth0 netns " + c.relay + " type veth peer name veth0 netns " + c.agent,
		"-n " + c.relay + " addr add " + c.relayIP + "/24 dev veth0",
		"-n " + c.agent + " addr add 10.231.77.2/24 dev veth0",
		"-n " + c.relay + " link set veth0 up",
		"-n " + c.agent + " link set veth0 up",
		"-n " + c.relay + " link set lo up",
		"-n " + c.agent + " link set lo up",
	} {
		if err := ip(step); err != nil {
			t.Skipf("no virtual Ethernet here: %v", err)
		}
	}
	for _, c.drop = range dropping {
		err := c.lose()
		if err == nil {
			t.Log("packets are lost by", c.drop)
			c.carry(t)
			return c
		}
		t.Log(c.drop, "is not there:", err)
	}
	t.Skip("no way to lose packets")
	return nil
}

// lose makes both ends lose every packet they send.
func (c *cable) lose() error {
	return errors.Join(
		command("tc -n "+c.relay+" qdisc replace dev veth0 root "+c.drop),
		command("tc -n "+c.agent+" qdisc replace dev veth0 root "+c.drop))
}

// carry ends lose.
func (c *cable) carry(t testing.TB) {
	t.Helper()
	err := errors.Join(
		command("tc -n "+c.relay+" qdisc del dev veth0 root"),
		command("tc -n "+c.agent+" qdisc del dev veth0 root"))
	if err != nil {
		t.Fatal(err)
	}
}

// namespacePrefix and a process id name our namespaces.
const namespacePrefix = "postern-e2e-"

// sweepNamespaces removes the namespaces of test processes that were killed.
func sweepNamespaces() {
	names, _ := filepath.Glob("/run/netns/" + namespacePrefix + "*")
	for _, name := range names {
		name = filepath.Base(name)
		pid, _, _ := strings.Cut(strings.TrimPrefix(name, namespacePrefix), "-")
		n, err := strconv.Atoi(pid)
		if err == nil && errors.Is(syscall.Kill(n, 0), syscall.ESRCH) {
			ip("netns del " + name)
		}
	}
}

func ip(args string) error { return command("ip " + args) }

func command(line string) error {
	words := strings.Fields(line)
	out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", line, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// logged is the output of a process in a namespace. The rig's own log is not to
// be had for processes that it has not started.
type logged struct {
	lines chan string
	all   []string // owned by the test
}

// startIn runs a program in a namespace until the test ends. It is ended by its
// own pid: ip becomes the program.
func startIn(t testing.TB, ns string, env []string, path string, args ...string) (*logged, io.Closer) {
	t.Helper()
	cmd := exec.Command("ip", append([]string{"netns", "exec", ns, path}, args...)...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent"}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	err = cmd.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	l := &logged{lines: make(chan string, 1<<16)}
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer r.Close()
		for lines := bufio.NewScanner(r); lines.Scan(); {
			l.lines <- lines.Text()
		}
	}()
	t.Cleanup(func() {
		input.Close()
		cmd.Process.Kill()
		cmd.Wait()
		<-read
		l.drain()
		if t.Failed() {
			t.Logf("output of %s in %s:\n%s", filepath.Base(path), ns, strings.Join(l.all, "\n"))
		}
	})
	return l, input
}

// await waits for a line with all of words and returns it.
func (l *logged) await(t testing.TB, within time.Duration, words ...string) string {
	t.Helper()
	timer := time.NewTimer(within)
	defer timer.Stop()
	for {
		select {
		case line := <-l.lines:
			l.all = append(l.all, line)
			if containsWords(line, words) {
				return line
			}
		case <-timer.C:
			t.Fatalf("no line with %q within %v", words, within)
		}
	}
}

// drain takes the lines that are there.
func (l *logged) drain() {
	for {
		select {
		case line := <-l.lines:
			l.all = append(l.all, line)
		default:
			return
		}
	}
}

func containsWords(line string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(line, w) {
			return false
		}
	}
	return true
}

// cabled is a relay at one end of a cable, an agent with its app at the other,
// and a crowd of clients beside the relay.
type cabled struct {
	relay, agent, clients *logged
}

func (c *cable) start(t testing.TB) *cabled {
	t.Helper()
	data := t.TempDir()
	token, err := exec.Command(rig.Binary(t, "postern-relay"), "token", "create", "--app", "shop", "--data", data).Output()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s := &cabled{}
	s.relay, _ = startIn(t, c.relay, []string{
		"POSTERN_LISTEN=0.0.0.0:8080", "POSTERN_ADMIN_LISTEN=off", "POSTERN_DATA=" + data, fastBeat,
	}, rig.Binary(t, "postern-relay"), "serve")
	s.relay.await(t, rig.StartsWithin, `msg="relay ready"`)
	app := faultAppCommand(t, "", 0)
	s.agent, _ = startIn(t, c.agent, append(app.Env,
		"POSTERN_RELAY=http://"+c.relayIP+":8080", "POSTERN_TOKEN="+strings.TrimSpace(string(token)),
		"POSTERN_INSTANCE=web.1", "PORT=3000"),
		rig.Binary(t, "postern"), append([]string{"run", "--"}, app.Args...)...)
	for range 2 {
		s.relay.await(t, rig.StartsWithin, `msg="tunnel open"`)
	}
	s.clients, _ = startIn(t, c.relay, []string{clientVariable + "=1"}, self, "-test.run=^TestFaultClientProcess$")
	return s
}

// clientVariable makes this binary a crowd of clients of 127.0.0.1:8080.
const clientVariable = "E2E_FAULT_CLIENT"

// report is one line of a client process.
type report struct {
	From time.Time
	Took time.Duration
	Kind string
	OK   bool
}

// TestFaultClientProcess is no test: it asks for as long as its input is open,
// and prints what it saw.
func TestFaultClientProcess(*testing.T) {
	if os.Getenv(clientVariable) != "1" {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	out := make(chan seen)
	go func() {
		defer close(out)
		askEvery(ctx, 50*time.Millisecond, "127.0.0.1:8080", "shop.localhost", "/", func(s seen) { out <- s })
	}()
	print := json.NewEncoder(os.Stdout)
	for s := range out {
		print.Encode(report{s.From, s.Took, s.kind(), s.ok()})
	}
	os.Exit(0)
}

// awaitReport waits for a client's report that good accepts.
func (l *logged) awaitReport(t testing.TB, within time.Duration, good func(report) bool) report {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		var r report
		line := l.await(t, time.Until(deadline), `"Took"`)
		if json.Unmarshal([]byte(line), &r) == nil && good(r) {
			return r
		}
	}
}
