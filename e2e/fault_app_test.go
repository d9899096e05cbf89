package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// idHeader names a request, so that an app can tell whether it had it before.
const idHeader = "X-Load-Id"

// loadApp answers the requests of a load: it takes the body whole, waits ?ms=,
// and answers with the body's digest and then ?size= bytes. seen is told every
// id before the answer begins.
func loadApp(seen func(id string)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the client broke off: not a request that counts
		}
		seen(r.Header.Get(idHeader))
		if ms, _ := strconv.Atoi(r.FormValue("ms")); ms > 0 {
			timer := time.NewTimer(time.Duration(ms) * time.Millisecond)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-r.Context().Done():
				return
			}
		}
		size, _ := strconv.Atoi(r.FormValue("size"))
		w.Write(loadAnswer(body, size))
	})
}

// loadAnswer is what loadApp answers.
func loadAnswer(body []byte, size int) []byte {
	sum := sha256.Sum256(body)
	return append([]byte(hex.EncodeToString(sum[:])), bytes.Repeat([]byte{'x'}, size)...)
}

// ledger counts ids. It is safe for concurrent use.
type ledger struct {
	mu     sync.Mutex
	counts map[string]int
}

func newLedger() *ledger { return &ledger{counts: map[string]int{}} }

func (l *ledger) add(id string) {
	l.mu.Lock()
	l.counts[id]++
	l.mu.Unlock()
}

func (l *ledger) count(id string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts[id]
}

// The variables of an app process.
const (
	appVariable       = "E2E_FAULT_APP"        // "1": this process is the app
	appLedgerVariable = "E2E_FAULT_APP_LEDGER" // file that gets a line for each request
	appExitVariable   = "E2E_FAULT_APP_EXIT"   // exit code after SIGTERM, default 0
)

// TestFaultAppProcess is no test: it is the app of other tests when the binary
// is executed again.
func TestFaultAppProcess(*testing.T) {
	if os.Getenv(appVariable) == "1" {
		os.Exit(faultApp())
	}
}

// faultAppCommand is a well-behaved web server as a process of its own: on
// SIGTERM it stops as net/http's documentation says, and exits with code.
func faultAppCommand(t testing.TB, ledgerFile string, code int) rig.Command {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return rig.Command{
		Args: []string{self, "-test.run=^TestFaultAppProcess$"},
		Env:  []string{appVariable + "=1", appLedgerVariable + "=" + ledgerFile, fmt.Sprintf("%s=%d", appExitVariable, code)},
	}
}

func faultApp() int {
	record, closeRecord, err := openLedger(os.Getenv(appLedgerVariable))
	if err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		return 1
	}
	defer closeRecord()
	term, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	l, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		return 1
	}
	// The tests hold the other end of our input: when they are gone, so are we.
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	s := &http.Server{Handler: loadApp(record)}
	go s.Serve(l)
	<-term.Done()
	end, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := s.Shutdown(end); err != nil {
		fmt.Fprintln(os.Stderr, "app: shutdown:", err)
		return 1
	}
	code, _ := strconv.Atoi(os.Getenv(appExitVariable))
	return code
}

// openLedger appends one line per id; lines of several processes do not mix.
func openLedger(path string) (record func(string), done func(), err error) {
	if path == "" {
		return func(string) {}, func() {}, nil
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, err
	}
	return func(id string) { f.WriteString(id + "\n") }, func() { f.Close() }, nil
}

// readLedger counts what the processes have written.
func readLedger(t testing.TB, path string) *ledger {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	l := newLedger()
	for line := range strings.Lines(string(text)) {
		l.add(strings.TrimSuffix(line, "\n"))
	}
	return l
}

// gate is an app that tells of every request's arrival and then waits until it
// is opened, so that a test knows where a request stands when something dies.
type gate struct {
	name    string
	arrived chan string   // gets each request's target
	open    chan struct{} // closed: answer
	left    chan string   // gets the target of each request whose client left first
}

func newGate(name string) *gate {
	return &gate{name: name, arrived: make(chan string, 1024), open: make(chan struct{}), left: make(chan string, 1024)}
}

// gateBody is the whole body of /body and /chunked.
var gateBody = strings.Repeat("a", 1000) + strings.Repeat("b", 1000)

// ServeHTTP answers /now at once; any other path waits for the gate. /body sends
// its head and a part of its body before it waits, with a length; /chunked
// without one.
func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	if r.URL.Path == "/now" {
		io.WriteString(w, g.name)
		return
	}
	first, rest := "", g.name
	if r.URL.Path == "/body" || r.URL.Path == "/chunked" {
		first, rest = gateBody[:1000], gateBody[1000:]
	}
	if r.URL.Path == "/body" {
		w.Header().Set("Content-Length", "2000")
	}
	if first != "" {
		io.WriteString(w, first)
		w.(http.Flusher).Flush()
	}
	g.arrived <- r.URL.Path
	select {
	case <-g.open:
		io.WriteString(w, rest)
	case <-r.Context().Done():
		g.left <- r.URL.Path
	}
}
