package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// idleTunnels is how many there are at once; each costs every process one file, and
// idleFiles is what a process needs besides.
const (
	idleTunnels = 10_000
	idleFiles   = 500
)

// What one idle tunnel may cost, in bytes of memory that is resident. With room for
// what the race detector adds there is no telling, so it is not checked then.
const (
	relayPerTunnel = 48 << 10
	agentPerTunnel = 40 << 10
)

// sinkVariable makes this binary a destination that holds its connections: it has
// files of its own then. Its value is the address.
const sinkVariable = "E2E_EGRESS_SINK"

// TestEgressSinkProcess is no test: it listens where the variable says and echoes until
// its input ends.
func TestEgressSinkProcess(*testing.T) {
	if os.Getenv(sinkVariable) == "" {
		return
	}
	l, err := net.Listen("tcp4", os.Getenv(sinkVariable))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("up")
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for {
		conn, err := l.Accept()
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		go func() {
			// Not io.Copy as it is: between two connections it takes a pipe, and files are
			// what is scarce here.
			io.CopyBuffer(struct{ io.Writer }{conn}, struct{ io.Reader }{conn}, make([]byte, 64))
			conn.Close()
		}()
	}
}

// sinkAddresses is over how many addresses of loopback the connections are spread: the
// ports that the kernel gives to one end of them are not many more than there are
// tunnels.
const sinkAddresses = 4

// startSink starts the destination on all of loopback's addresses and returns its port.
func startSink(t testing.TB) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestEgressSinkProcess$")
	port := portOf(rig.FreeAddr(t))
	cmd.Env = append(os.Environ(), sinkVariable+"=0.0.0.0:"+port)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "up\n" {
		t.Fatalf("the destination says %q, %v", line, err)
	}
	return port
}

// mayOpen raises the limit of open files, of this process and those it starts, or
// skips the test.
func mayOpen(t testing.TB, files uint64) {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Skipf("limit of open files: %v", err)
	}
	if limit.Cur >= files {
		return
	}
	limit.Cur, limit.Max = max(limit.Cur, files), max(limit.Max, files)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Skipf("%d open files are not to be had here: %v", files, err)
	}
}

// Not parallel: it is about memory and takes the machine.
func TestTenThousandIdleTunnelsCostBoundedMemory(t *testing.T) {
	mayOpen(t, idleTunnels+idleFiles)
	port := startSink(t)
	var allow []string
	for n := range sinkAddresses {
		allow = append(allow, fmt.Sprintf("tcp://127.0.0.%d:%s", n+1, port))
	}
	s := newSite(t, fmt.Sprintf(`
version: 1
apps:
  shop:
    egress: {allow: ["%s"]}
egress:
  allow_ranges: [{range: 127.0.0.0/24, ports: [%s], reason: the destination of this test}]
`, strings.Join(allow, `", "`), port))
	agent := s.agent(t, rig.AgentConfig{})
	for n := range sinkAddresses {
		warm, err := tunnelTo(agent.Proxy, fmt.Sprintf("127.0.0.%d:%s", n+1, port), wait)
		if err != nil {
			t.Fatal(err)
		}
		warm.Close()
	}
	relayBefore, agentBefore := s.RSS(), agent.RSS()

	began := time.Now()
	conns := openTunnels(t, agent.Proxy, port, idleTunnels)
	opened := time.Since(began)
	for i := 0; i < len(conns); i += idleTunnels / 100 {
		conns[i].SetDeadline(time.Now().Add(wait))
		if err := conns[i].echoed(fmt.Sprintf("tunnel %d", i)); err != nil {
			t.Fatalf("tunnel %d: %v", i, err)
		}
	}
	relay, atAgent := s.RSS(), agent.RSS()
	status, err := s.EgressStatus(s.operator)
	if err != nil || status.InFlight != idleTunnels {
		t.Errorf("%d in flight, %v", status.InFlight, err)
	}
	t.Logf("%d tunnels opened in %v; the relay grew from %s to %s, %d KiB each; the agent from %s to %s, %d KiB each",
		idleTunnels, opened.Round(time.Millisecond), mib(relayBefore), mib(relay), (relay-relayBefore)/idleTunnels>>10,
		mib(agentBefore), mib(atAgent), (atAgent-agentBefore)/idleTunnels>>10)
	if !rig.Race() {
		if each := (relay - relayBefore) / idleTunnels; each > relayPerTunnel {
			t.Errorf("%d bytes of the relay's for each tunnel, want at most %d", each, relayPerTunnel)
		}
		if each := (atAgent - agentBefore) / idleTunnels; each > agentPerTunnel {
			t.Errorf("%d bytes of the agent's for each tunnel, want at most %d", each, agentPerTunnel)
		}
	}
	// Aborted, because ends would keep ten thousand ports from the tests that follow.
	for _, c := range conns {
		c.Conn.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	s.checkCounts(t, 0)
	rig.Eventually(t, wait, "the agent's files", func() error {
		if n := openFiles(t, agent.PID()); n > 100 {
			return fmt.Errorf("%d are open", n)
		}
		return nil
	})
}

// openTunnels opens n tunnels, several at once, and closes them when the test ends.
func openTunnels(t testing.TB, proxy, port string, n int) []*wayOut {
	t.Helper()
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	conns := make([]*wayOut, n)
	next := make(chan int)
	var opening sync.WaitGroup
	for range 32 {
		opening.Go(func() {
			for i := range next {
				conn, err := tunnelTo(proxy, fmt.Sprintf("127.0.0.%d:%s", i%sinkAddresses+1, port), time.Minute)
				if err != nil {
					cancel(fmt.Errorf("tunnel %d: %w", i, err))
					continue
				}
				conns[i] = conn
			}
		})
	}
	for i := range n {
		if ctx.Err() != nil {
			break
		}
		next <- i
	}
	close(next)
	opening.Wait()
	t.Cleanup(func() {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
	})
	if err := context.Cause(ctx); err != nil {
		t.Fatal(err)
	}
	return conns
}
