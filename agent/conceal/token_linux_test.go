package conceal_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/posternhq/postern/agent/conceal"
)

// The tests run this very binary again as the agent, which then starts it as the app.
const helperVariable = "CONCEAL_TEST_HELPER"

const secret = "pst_0123456789abcdefghijklmnopqrstuvwxyz"

// atOnce makes a binary built with the race detector exit without its usual second
// of reflection.
const atOnce = "GORACE=atexit_sleep_ms=0"

// nobody is a user who owns nothing.
const nobody = 65534

func TestMain(m *testing.M) {
	switch os.Getenv(helperVariable) {
	case "agent", "open agent":
		os.Exit(playAgent())
	case "app":
		os.Exit(playApp())
	}
	os.Exit(m.Run())
}

// seen is what the agent tells about itself, and what the app finds out about it.
type seen struct {
	Token, Warning string // what Token has returned
	PID            int    // the agent's
	Name           string // its name as ps shows it
	Args           []string
	Pipes          []int // that it has open

	Environ, Cmdline []byte   // of the agent, as far as the app may read them
	Errors           []string // why not
	Files            []string // of the agent
	Memory           bool     // the app may open the agent's memory

	OwnEnviron []byte   // of the app
	OwnFiles   []string //
	Dumpable   int
	Core       syscall.Rlimit
}

// playAgent hides the token, unless it is an open agent, starts the app, and says what
// became of both.
func playAgent() int {
	s := seen{PID: os.Getpid(), Args: os.Args[1:]}
	if os.Getenv(helperVariable) == "agent" {
		var warning error
		if s.Token, warning = conceal.Token(); warning != nil {
			s.Warning = warning.Error()
		}
	}
	for fd := 3; fd < 100; fd++ {
		var stat unix.Stat_t
		if unix.Fstat(fd, &stat) == nil && stat.Mode&unix.S_IFMT == unix.S_IFIFO {
			s.Pipes = append(s.Pipes, fd)
		}
	}
	switch {
	case slices.Contains(os.Args, "crash"):
		debug.SetTraceback("crash")
		syscall.Kill(os.Getpid(), syscall.SIGABRT)
		select {}
	case slices.Contains(os.Args, "only"):
	default:
		app := exec.Command("/proc/self/exe")
		app.Env = append(os.Environ(), helperVariable+"=app", atOnce)
		app.Stderr = os.Stderr
		out, err := app.Output()
		token, warning := s.Token, s.Warning
		if err == nil {
			err = json.Unmarshal(out, &s)
		}
		s.Token, s.Warning, s.Args = token, warning, os.Args[1:]
		if err != nil {
			fmt.Fprintln(os.Stderr, "app:", err)
			return 98
		}
	}
	name, _ := os.ReadFile("/proc/self/comm")
	s.Name = strings.TrimSpace(string(name))
	json.NewEncoder(os.Stdout).Encode(s)
	return 0
}

// playApp looks at the agent as any code in the app could.
func playApp() int {
	var s seen
	agent := fmt.Sprintf("/proc/%d/", os.Getppid())
	note := func(err error) {
		if err != nil {
			s.Errors = append(s.Errors, err.Error())
		}
	}
	var err error
	s.Environ, err = os.ReadFile(agent + "environ")
	note(err)
	s.Cmdline, err = os.ReadFile(agent + "cmdline")
	note(err)
	s.Files, err = files(agent + "fd")
	note(err)
	memory, err := os.OpenFile(agent+"mem", os.O_RDONLY, 0)
	if note(err); err == nil {
		s.Memory = true
		memory.Close()
	}
	s.OwnEnviron, _ = os.ReadFile("/proc/self/environ")
	s.OwnFiles, _ = files("/proc/self/fd")
	s.Dumpable, _ = unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	syscall.Getrlimit(syscall.RLIMIT_CORE, &s.Core)
	s.PID = os.Getppid()
	json.NewEncoder(os.Stdout).Encode(s)
	return 0
}

func files(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	var links []string
	for _, entry := range entries {
		link, _ := os.Readlink(filepath.Join(dir, entry.Name()))
		links = append(links, entry.Name()+" "+link)
	}
	return links, err
}

// pipes are the numbers of those among files that are pipes.
func pipes(files []string) []string {
	var numbers []string
	for _, file := range files {
		if number, link, _ := strings.Cut(file, " "); strings.HasPrefix(link, "pipe:") {
			numbers = append(numbers, number)
		}
	}
	return numbers
}

// launch runs the agent to its end.
func launch(t *testing.T, cmd *exec.Cmd, env ...string) seen {
	t.Helper()
	var out, log bytes.Buffer
	cmd.Env = append(cmd.Env, "PATH="+os.Getenv("PATH"), helperVariable+"=agent", atOnce)
	cmd.Env = append(cmd.Env, env...)
	cmd.Stdout, cmd.Stderr = &out, &log
	if err := cmd.Run(); err != nil {
		t.Fatalf("agent: %v\n%s", err, &log)
	}
	var s seen
	if err := json.Unmarshal(out.Bytes(), &s); err != nil {
		t.Fatalf("agent said %q: %v", &out, err)
	}
	return s
}

// binary is a copy of this program that everybody may execute.
func binary(t *testing.T, name string) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != filepath.Clean(os.TempDir()) && d != "/"; d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	from, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	path := filepath.Join(dir, name)
	to, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(to, from); err != nil {
		t.Fatal(err)
	}
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTheAppCannotFindTheToken(t *testing.T) {
	for _, test := range []struct {
		name string
		uid  uint32
	}{{"as root", 0}, {"as nobody", nobody}} {
		t.Run(test.name, func(t *testing.T) {
			if os.Geteuid() != 0 {
				t.Skip("needs root to become somebody")
			}
			path := binary(t, "postern")
			attr := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: test.uid, Gid: test.uid}}

			// What an agent looks like that hides nothing: else the test could not fail.
			cmd := exec.Command(path)
			cmd.SysProcAttr = attr
			open := launch(t, cmd, "POSTERN_TOKEN="+secret, helperVariable+"=open agent")
			if !bytes.Contains(open.Environ, []byte(secret)) || !bytes.Contains(open.OwnEnviron, []byte(secret)) || !open.Memory {
				t.Fatalf("the app does not see the secrets of an open agent: %+v", open)
			}

			cmd = exec.Command(path, "run", "--", "two words", "")
			cmd.SysProcAttr = attr
			s := launch(t, cmd, "POSTERN_TOKEN="+secret, "KEPT=yes", "POSTERN_TOKEN="+secret+"2")
			if s.Token != secret && s.Token != secret+"2" || s.Warning != "" {
				t.Errorf("token %q, warning %q", s.Token, s.Warning)
			}
			if want := []string{"run", "--", "two words", ""}; !slices.Equal(s.Args, want) {
				t.Errorf("arguments %q, want %q", s.Args, want)
			}
			everything, _ := json.Marshal([]any{string(s.Environ), string(s.Cmdline), s.Files, string(s.OwnEnviron), s.OwnFiles})
			if bytes.Contains(everything, []byte("pst_")) {
				t.Errorf("the token is in %s", everything)
			}
			if !bytes.Contains(s.OwnEnviron, []byte("KEPT=yes")) || bytes.Contains(s.OwnEnviron, []byte("POSTERN_TOKEN")) {
				t.Errorf("the app's environment is %q", s.OwnEnviron)
			}
			if string(s.Cmdline) != path+"\x00run\x00--\x00two words\x00\x00" || s.Name != "postern" {
				t.Errorf("the agent calls itself %q %q", s.Name, s.Cmdline)
			}
			if test.uid != 0 && (len(s.Environ) > 0 || len(s.Files) > 0 || s.Memory || len(s.Errors) != 3) {
				t.Errorf("nobody reads of the agent: %d bytes, files %q, memory %v, errors %q", len(s.Environ), s.Files, s.Memory, s.Errors)
			}
			if !slices.Equal(s.Pipes, open.Pipes) {
				t.Errorf("the agent has pipes open: %v, not just %v", s.Pipes, open.Pipes)
			}
			if got, want := pipes(s.OwnFiles), pipes(open.OwnFiles); !slices.Equal(got, want) {
				t.Errorf("the app has got pipes: %v, not just %v", got, want)
			}
			if s.Dumpable != 1 || s.Dumpable != open.Dumpable {
				t.Errorf("the app's dumpable flag is %d, was %d", s.Dumpable, open.Dumpable)
			}
			if s.Core != open.Core {
				t.Errorf("the app's core limit is %v, was %v", s.Core, open.Core)
			}
		})
	}
}

func TestTheAgentLeavesNoCore(t *testing.T) {
	t.Parallel()
	crash := func(part string) syscall.WaitStatus {
		cmd := exec.Command("sh", "-c", `ulimit -c unlimited; exec "$0" crash`, os.Args[0])
		cmd.Dir = t.TempDir()
		cmd.Env = []string{helperVariable + "=" + part, "POSTERN_TOKEN=" + secret, atOnce}
		cmd.Run()
		return cmd.ProcessState.Sys().(syscall.WaitStatus)
	}
	if status := crash("open agent"); !status.CoreDump() {
		t.Skipf("nothing leaves a core here: %v", status)
	}
	if status := crash("agent"); !status.Signaled() || status.CoreDump() {
		t.Errorf("status %v, core %v; want death by SIGABRT without one", status, status.CoreDump())
	}
}

func TestWithoutATokenNothingHappens(t *testing.T) {
	t.Parallel()
	for _, env := range [][]string{nil, {"POSTERN_TOKEN="}} {
		if s := launch(t, exec.Command(os.Args[0], "only"), env...); s.Token != "" || s.Warning != "" {
			t.Errorf("%q: token %q, warning %q", env, s.Token, s.Warning)
		}
	}
}

func TestATokenFromALauncher(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0], "only")
	cmd.ExtraFiles = []*os.File{filled(t, secret+"\n")}
	if s := launch(t, cmd, "POSTERN_TOKEN_FD=3"); s.Token != secret || s.Warning != "" {
		t.Errorf("token %q, warning %q", s.Token, s.Warning)
	}
}

// filled is a pipe with text in it and nobody to write more.
func filled(t *testing.T, text string) *os.File {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { read.Close() })
	go func() {
		defer write.Close()
		write.WriteString(text) // fails when nobody reads it all
	}()
	return read
}

func TestAForgedPipeIsRefused(t *testing.T) {
	t.Parallel()
	file, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	endless, held, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { endless.Close(); held.Close() })
	as := func(f *os.File) func() *os.File { return func() *os.File { return f } }
	for _, test := range []struct {
		name, number string
		file         func() *os.File // 3
		want         string
	}{
		{"nothing", "", nil, "not the number"},
		{"no number", "three", nil, "not the number"},
		{"the token itself", secret, nil, "not the number"},
		{"a number below zero", "-1", nil, "not the number"},
		{"standard input", "0", nil, "not the number"},
		{"a number that is too large", "99999999999999999999", nil, "not the number"},
		{"a number that is not open", "2147483647", nil, "fstat"},
		{"a number beyond what a descriptor can be", "4294967299", as(file), "not the number"},
		{"a file", "3", as(file), "not a pipe"},
		{"a pipe that holds nothing", "3", func() *os.File { return filled(t, "") }, "empty"},
		{"a pipe that holds too much", "3", func() *os.File { return filled(t, strings.Repeat("x", 1<<20)) }, "more than 4096"},
		{"a pipe that holds no text", "3", func() *os.File { return filled(t, "a\x00b") }, "not a token"},
		{"a pipe that never ends", "3", as(endless), "does not end"},
		{"the wrong end of a pipe", "3", as(held), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for _, token := range []string{"", secret} { // which is taken instead, and stays in sight
				cmd := exec.Command(os.Args[0], "only")
				if test.file != nil {
					cmd.ExtraFiles = []*os.File{test.file()}
				}
				s := launch(t, cmd, "POSTERN_TOKEN_FD="+test.number, "POSTERN_TOKEN="+token)
				if s.Token != token || s.Warning == "" || !strings.Contains(s.Warning, test.want) {
					t.Errorf("token %q, warning %q; want %q", s.Token, s.Warning, test.want)
				}
				if strings.Contains(s.Warning, "pst_") {
					t.Errorf("the warning tells the token: %q", s.Warning)
				}
			}
		})
	}
}

func TestATokenThatCannotBeHiddenIsUsedAllTheSame(t *testing.T) {
	t.Parallel()
	long := secret + strings.Repeat("x", 5000)
	s := launch(t, exec.Command(os.Args[0], "only"), "POSTERN_TOKEN="+long)
	if s.Token != long || !strings.Contains(s.Warning, "more than 4096 bytes") || strings.Contains(s.Warning, "pst_") {
		t.Errorf("%d bytes, warning %q", len(s.Token), s.Warning)
	}
}

// A deploy may replace the file of a program that runs.
func TestAProgramWhoseFileIsGoneStartsAgain(t *testing.T) {
	t.Parallel()
	path := binary(t, "postern")
	cmd := exec.Command("sh", "-c", `exec 3<"$0"; rm "$0"; exec /proc/self/fd/3 only`, path)
	if s := launch(t, cmd, "POSTERN_TOKEN="+secret); s.Token != secret || s.Warning != "" {
		t.Errorf("token %q, warning %q", s.Token, s.Warning)
	}
}

func TestWithoutProcTheTokenIsUsedAllTheSame(t *testing.T) {
	t.Parallel()
	unshare, err := exec.LookPath("unshare")
	if err != nil || os.Geteuid() != 0 {
		t.Skip("needs unshare, and root")
	}
	cmd := exec.Command(unshare, "-m", "sh", "-c", `mount -t tmpfs none /proc && exec "$0" only`, os.Args[0])
	s := launch(t, cmd, "POSTERN_TOKEN="+secret)
	if s.Token != secret || !strings.Contains(s.Warning, "/proc/self/exe") {
		t.Errorf("token %q, warning %q", s.Token, s.Warning)
	}
}

func TestTheProcessIdStays(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0], "only")
	s := launch(t, cmd, "POSTERN_TOKEN="+secret)
	if s.PID != cmd.Process.Pid {
		t.Errorf("pid %d, was %s", s.PID, strconv.Itoa(cmd.Process.Pid))
	}
}

// BenchmarkStart is a start with and without the second one.
func BenchmarkStart(b *testing.B) {
	for name, env := range map[string]string{"hidden": "POSTERN_TOKEN=" + secret, "without": "NO_TOKEN=" + secret} {
		b.Run(name, func(b *testing.B) {
			for range b.N {
				cmd := exec.Command(os.Args[0], "only")
				cmd.Env = []string{helperVariable + "=agent", env}
				if err := cmd.Run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
