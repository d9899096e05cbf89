package doctor

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/posternhq/postern/protocol"
)

// The tests run this binary again as apps with mistakes. An app does what it reads
// from stdin, a command a line, and answers each with a line:
//
//	tcp ADDRESS        accepts and reads, never answers
//	http ADDRESS HOST  answers 200 to that host and 400 to others, "" to all; /STATUS answers with it
//	tls ADDRESS        the same in TLS
//	six ADDRESS        tcp with IPV6_V6ONLY
//	close              all of its listeners
//	requests           how many reached a handler
//	spin               uses a processor
//	exit CODE
const helperVariable = "DOCTOR_TEST_HELPER"

const patience = 20 * time.Second

func TestMain(m *testing.M) {
	switch os.Getenv(helperVariable) {
	case "":
		os.Exit(m.Run())
	case "app":
		os.Exit(playApp())
	}
	os.Exit(playDoctor(os.Getenv(helperVariable)))
}

func playApp() int {
	go func() {
		time.Sleep(3 * patience) // forgotten by a test that failed
		os.Exit(96)
	}()
	var requests atomic.Int64
	var listeners []net.Listener
	handler := func(host string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			requests.Add(1)
			if host != "" && r.Host != host {
				http.Error(w, "Invalid HTTP_HOST header", 400)
				return
			}
			if status, err := strconv.Atoi(strings.Trim(r.URL.Path, "/")); err == nil {
				w.WriteHeader(status)
			}
		})
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		words := append(strings.Fields(lines.Text()), "", "")
		config, network := net.ListenConfig{}, "tcp"
		if words[0] == "six" {
			network = "tcp6"
			config.Control = func(_, _ string, c syscall.RawConn) error {
				return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1) })
			}
		}
		if strings.HasPrefix(words[1], "0.0.0.0:") {
			network = "tcp4" // Go would take both families
		}
		switch words[0] {
		case "tcp", "http", "tls", "six":
			l, err := config.Listen(context.Background(), network, words[1])
			if err != nil {
				fmt.Println("error", err)
				continue
			}
			listeners = append(listeners, l)
			switch words[0] {
			case "http":
				go http.Serve(l, handler(words[2]))
			case "tls":
				go (&http.Server{Handler: handler(""), TLSConfig: selfSigned(), ErrorLog: log.New(io.Discard, "", 0)}).ServeTLS(l, "", "")
			default:
				go acceptAll(l)
			}
		case "close":
			for _, l := range listeners {
				l.Close()
			}
		case "requests":
			fmt.Println("ok", requests.Load())
			continue
		case "spin":
			go func() {
				for spun := new(atomic.Int64); ; {
					spun.Add(1)
				}
			}()
		case "exit":
			code, _ := strconv.Atoi(words[1])
			os.Exit(code)
		}
		fmt.Println("ok", os.Getpid())
	}
	return 0
}

func acceptAll(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			buf := make([]byte, 512)
			for {
				if _, err := conn.Read(buf); err != nil {
					conn.Close()
					return
				}
			}
		}()
	}
}

func selfSigned() *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

// app is a process to examine.
type app struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin *os.File
	out   *bufio.Scanner

	exit  atomic.Pointer[protocol.Exit]
	lines []protocol.Line
	said  string // behind the last "ok"
}

// start starts an app, through the words before it if there are any.
func start(t *testing.T, before ...string) *app {
	t.Helper()
	read, stdin, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	args := append(slices.Clone(before), os.Args[0])
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), helperVariable+"=app", "GORACE=atexit_sleep_ms=0")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = read, stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read.Close()
	stdout.Close()
	out.SetReadDeadline(time.Now().Add(3 * patience))
	a := &app{t: t, cmd: cmd, stdin: stdin, out: bufio.NewScanner(out)}
	t.Cleanup(func() {
		stdin.Close()
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
		for a.out.Scan() {
		}
		out.Close()
	})
	return a
}

// do has the app do things and waits until it has.
func (a *app) do(commands ...string) *app {
	a.t.Helper()
	for _, c := range commands {
		fmt.Fprintln(a.stdin, c)
		if !a.out.Scan() {
			a.t.Fatalf("the app ended at %q", c)
		}
		answer := a.out.Text()
		if !strings.HasPrefix(answer, "ok") {
			a.t.Fatalf("%q: %s", c, answer)
		}
		a.said = strings.TrimSpace(strings.TrimPrefix(answer, "ok"))
	}
	return a
}

// die has it end with a code, and waits for that.
func (a *app) die(code int) {
	fmt.Fprintln(a.stdin, "exit", code)
	a.cmd.Wait()
	exit := &protocol.Exit{At: time.Now(), Code: code}
	if code == 137 {
		exit.Signal = "SIGKILL"
	}
	a.exit.Store(exit)
}

func (a *app) child() (int, *protocol.Exit) { return a.cmd.Process.Pid, a.exit.Load() }

// doctor is one for the app, on Heroku unless change says otherwise.
func (a *app) doctor(port int, change ...func(*Config)) *Doctor {
	cfg := Config{
		Place: Place{Platform: "heroku", Process: "web", Port: port, PortVar: strconv.Itoa(port), Serves: true,
			BootLimit: 60 * time.Second, Grace: 30 * time.Second},
		Command: []string{os.Args[0]},
		Dir:     a.t.TempDir(),
		Child:   a.child,
		Lines:   func(int) []protocol.Line { return a.lines },
	}
	for _, c := range change {
		c(&cfg)
	}
	return New(cfg)
}

// backdate makes everything the doctor saw so far older, but for the use of the
// processor.
func (d *Doctor) backdate(by time.Duration) *Doctor {
	h := &d.past
	for _, t := range []*time.Time{&h.started, &h.lostAt, &h.refused, &h.answered} {
		if !t.IsZero() {
			*t = t.Add(-by)
		}
	}
	for at := range h.appeared {
		h.appeared[at] = h.appeared[at].Add(-by)
	}
	for i := range h.gaps {
		h.gaps[i].from, h.gaps[i].to = h.gaps[i].from.Add(-by), h.gaps[i].to.Add(-by)
	}
	return d
}

var lastPort atomic.Int64

// freePort is a port where nobody listens, on any address, and below those that the
// kernel gives to connections.
func freePort(t *testing.T) int {
	t.Helper()
	for range 1000 {
		port := 12000 + (os.Getpid()*61+int(lastPort.Add(1)))%16000
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			continue
		}
		l.Close()
		return port
	}
	t.Fatal("no port is free")
	return 0
}

// codes are those of a diagnosis. It holds the diagnosis to what all of them must be.
func codes(t *testing.T, d Diagnosis) []string {
	t.Helper()
	list := []string{}
	for _, f := range d.Findings.List {
		list = append(list, f.Code)
		i := slices.IndexFunc(Codes(), func(c Code) bool { return c.Code == f.Code })
		if i < 0 {
			t.Fatalf("%s is not in the table", f.Code)
		}
		if rank(f.Severity) < rank(Codes()[i].Severity) {
			t.Errorf("%s is given as %s, worse than the table's %s", f.Code, f.Severity, Codes()[i].Severity)
		}
		for _, text := range []string{f.Cause, f.Evidence, f.Fix} {
			if text == "" || strings.Contains(text, "%!") || strings.ContainsAny(text, "\n\x00") {
				t.Errorf("%s has the text %q", f.Code, text)
			}
		}
	}
	return list
}

// expect checks codes and state, and returns the first finding.
func expect(t *testing.T, d Diagnosis, state protocol.AppState, want ...string) protocol.Finding {
	t.Helper()
	got := codes(t, d)
	if want == nil {
		want = []string{}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) || d.State != state {
		t.Fatalf("got %s (%s) and %v\nwant %s and %v\nfindings: %+v", d.State, d.Why, got, state, want, d.Findings.List)
	}
	if len(d.Findings.List) == 0 {
		return protocol.Finding{}
	}
	return d.Findings.List[0]
}

func contains(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q has no %q", text, part)
		}
	}
}

func skipWithoutProc(t *testing.T) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("what the kernel says is only to be had on Linux")
	}
}

// failing is a dial that fails.
func failing(err error) dialFunc {
	return func(context.Context, netip.AddrPort) (net.Conn, error) { return nil, err }
}
