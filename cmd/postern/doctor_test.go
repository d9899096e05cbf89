package main

import (
	"encoding/json"
	"flag"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/agent"
	"github.com/posternhq/postern/agent/doctor"
	"github.com/posternhq/postern/agent/platform"
	"github.com/posternhq/postern/protocol"
)

// Every finding links to its section, so the document has one for each code, in
// order, under the code's own title, and none for a code that is not there.
func TestTheDocumentHasASectionForEachCode(t *testing.T) {
	t.Parallel()
	text := readDoctorDocs(t)
	sections := regexp.MustCompile(`(?m)^## ((?:PORT|EGR).*)\n\n\*\*([^*]+)\.\*\*`).FindAllStringSubmatchIndex(text, -1)
	var want, got []string
	for _, c := range doctor.Codes() {
		want = append(want, c.Code+" "+strings.ToLower(c.Title))
	}
	for i, at := range sections {
		code := text[at[2]:at[3]]
		got = append(got, code+" "+strings.ToLower(strings.Join(strings.Fields(text[at[4]:at[5]]), " ")))
		end := len(text)
		if i+1 < len(sections) {
			end = sections[i+1][0]
		}
		for _, part := range []string{"\n*Found*: ", "\n*Fix*:"} {
			if !strings.Contains(text[at[0]:end], part) {
				t.Errorf("%s has no %q", code, part)
			}
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("sections\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if n := len(regexp.MustCompile(`(?m)^## (PORT|EGR)`).FindAllString(text, -1)); n != len(got) {
		t.Errorf("%d headings of codes, %d of them with a title", n, len(got))
	}
}

func TestTheLinksInTheDocumentLeadSomewhere(t *testing.T) {
	t.Parallel()
	text := readDoctorDocs(t)
	anchors := map[string]bool{}
	for _, heading := range regexp.MustCompile(`(?m)^##+ (.*)$`).FindAllStringSubmatch(text, -1) {
		anchors[strings.ReplaceAll(strings.ToLower(heading[1]), " ", "-")] = true
	}
	links := regexp.MustCompile(`\]\(#([^)]*)\)`).FindAllStringSubmatch(text, -1)
	for _, link := range links {
		if !anchors[link[1]] {
			t.Errorf("#%s leads nowhere", link[1])
		}
	}
	if len(links) == 0 {
		t.Error("no links were found")
	}
}

func TestTheDocumentKnowsEachFlagAndPlatform(t *testing.T) {
	t.Parallel()
	text := readDoctorDocs(t)
	f := newDoctorFlags()
	f.VisitAll(func(fl *flag.Flag) {
		if row := "| `--" + fl.Name + "` | `" + f.env[fl.Name] + "` |"; !strings.Contains(text, row) {
			t.Errorf("no row %q", row)
		}
	})
	for _, name := range platform.Mimics() {
		if !strings.Contains(text, "\n| "+name+" | ") {
			t.Errorf("no row for %s", name)
		}
	}
}

func readDoctorDocs(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/doctor.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestDoctorCommandLine(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		env    []string
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{"help", nil, []string{"--help"}, 0, "--as (POSTERN_DOCTOR_AS)", ""},
		{"a platform that nobody knows", nil, []string{"--as", "lambda", "--", "true"}, 2, "", `--as "lambda": expected one of heroku, dokku, render`},
		{"the same by its variable", []string{"POSTERN_DOCTOR_AS=lambda"}, []string{"--", "true"}, 2, "", `--as "lambda"`},
		{"a platform without a command", nil, []string{"--as", "fly"}, 2, "", "--as fly needs a command"},
		{"a wait below zero", nil, []string{"--wait", "-1s", "--", "true"}, 2, "", "--wait -1s: expected a time above zero"},
		{"a wait that is none", nil, []string{"--wait", "soon", "--", "true"}, 2, "", "soon"},
		{"a wrong variable", []string{"POSTERN_DOCTOR_WAIT=soon"}, []string{"--", "true"}, 2, "", `POSTERN_DOCTOR_WAIT="soon"`},
		{"a path that is none", nil, []string{"--ready-path", "healthz", "--", "true"}, 2, "", `--ready-path "healthz"`},
		{"a command that is not there", nil, []string{"--", "/no/such/program"}, 1, "", "/no/such/program"},
		{"an app that ends", nil, []string{"--", "sh", "-c", "echo from the app; exit 3"}, 1, "PORT06  error", "from the app"},
		{"the platform it is on", []string{"RENDER=true"}, []string{"--", "sh", "-c", "exit 3"}, 1, "PORT06", "running sh as Render would"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			code, stdout, stderr := postern(t, test.env, append([]string{"doctor"}, test.args...)...)
			if code != test.code || !strings.Contains(stdout, test.stdout) || !strings.Contains(stderr, test.stderr) {
				t.Errorf("code %d, said %q and %q; want %d, %q and %q", code, stdout, stderr, test.code, test.stdout, test.stderr)
			}
			if strings.Contains(stdout+stderr, "\x1b[") {
				t.Error("colours without a terminal")
			}
		})
	}
}

// In a network without listeners, since on a machine with other tests somebody's app
// may well be found.
func TestDoctorWithNothingToLookAt(t *testing.T) {
	t.Parallel()
	if out, err := exec.Command("unshare", "-rn", "true").CombinedOutput(); err != nil {
		t.Skipf("no network namespaces here: %v %s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), "unshare", "-rn", os.Args[0], "doctor")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "POSTERN_TEST_AS_PROGRAM=1"}
	out, _ := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != 2 || !strings.Contains(string(out), "no app to look at here: PORT is not set. To run one: postern doctor --") {
		t.Errorf("code %d: %s", code, out)
	}
}

// The app is this test binary, which listens as listenVariable says.
const listenVariable = "POSTERN_TEST_LISTEN"

func init() {
	host, is := os.LookupEnv(listenVariable)
	if !is {
		return
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, os.Getenv("PORT")))
	if err != nil {
		os.Exit(98)
	}
	time.AfterFunc(time.Minute, func() { os.Exit(96) }) // forgotten by a test that failed
	for {
		conn, err := l.Accept()
		if err != nil {
			os.Exit(97)
		}
		go func() {
			defer conn.Close()
			for b := make([]byte, 4096); ; {
				if _, err := conn.Read(b); err != nil {
					return
				}
				conn.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
			}
		}()
	}
}

func TestDoctorOnRealApps(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		listen string
		flags  string
		code   int
		report string // what the human report has
	}{
		{"a correct one", "0.0.0.0", "--strict", 0, "nothing to fix: it would come up on Heroku"},
		{"one on localhost", "127.0.0.1", "", 1, "#port03"},
		{"a warning", "0.0.0.0", "--as railway", 0, "RAILWAY_DEPLOYMENT_DRAINING_SECONDS"},
		{"a warning, strictly", "0.0.0.0", "--as railway --strict", 1, "#port19"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			args := append(append([]string{"doctor"}, strings.Fields(test.flags)...),
				"--", "env", listenVariable+"="+test.listen, "GORACE=atexit_sleep_ms=0", os.Args[0])
			code, stdout, stderr := postern(t, nil, args...)
			if code != test.code || !strings.Contains(stdout, test.report) || !strings.Contains(stdout, "on port ") || !strings.Contains(stdout, " after SIGTERM") {
				t.Errorf("code %d: %s\n%s", code, stdout, stderr)
			}
			code, stdout, _ = postern(t, []string{"POSTERN_JSON=1"}, args...)
			var r map[string]any
			if err := json.Unmarshal([]byte(stdout), &r); err != nil || code != test.code {
				t.Fatalf("code %d, %v in %s", code, err, stdout)
			}
			for _, key := range []string{"platform", "process", "port", "ready", "boot_ms", "findings", "exit", "stop_ms"} {
				if _, ok := r[key]; !ok {
					t.Errorf("no %q in %s", key, stdout)
				}
			}
			if r["ready"] != (test.listen == "0.0.0.0") {
				t.Errorf("ready is %v", r["ready"])
			}
		})
	}
}

func TestTheDoctorsPage(t *testing.T) {
	t.Parallel()
	m, _ := platform.Mimic("render")
	fault := protocol.Finding{Code: "PORT03", Severity: protocol.SeverityError, Cause: "on localhost", Evidence: "127.0.0.1:\x1b[2J", Fix: "0.0.0.0", Framework: "Flask"}
	exited := func(signal string, asked bool) *protocol.Exit {
		return &protocol.Exit{Code: 1, Signal: signal, Reason: "exited with code 1", Asked: asked}
	}
	for _, test := range []struct {
		name string
		r    agent.Rehearsal
		here bool
		want []string
	}{
		{"ready", agent.Rehearsal{Port: 10000, Ready: true, BootMS: 812, StopMS: 200, StopSignal: "SIGTERM", Obeyed: true, Exit: exited("", true)}, false,
			[]string{"✓ ready after 0.8 s on port 10000", "✓ stopped in 0.2 s after SIGTERM\n", "nothing to fix: it would come up on Render"}},
		{"with a finding", agent.Rehearsal{Port: 10000, BootMS: 2000, Findings: []protocol.Finding{fault}, StopSignal: "SIGTERM", Obeyed: true}, false,
			[]string{"PORT03  error     on localhost\n", `        seen      127.0.0.1:\x1b[2J`, "        fix       Flask: 0.0.0.0\n", "docs/doctor.md#port03\n",
				"✗ not ready after 2.0 s on port 10000", "Render would say: No open ports detected", "1 error, 0 warnings"}},
		{"ended by itself", agent.Rehearsal{Port: 10000, BootMS: 100, Exit: exited("", false)}, false,
			[]string{"✗ exited with code 1 after 0.1 s, before it was ready on port 10000"}},
		{"killed by the signal", agent.Rehearsal{Ready: true, StopSignal: "SIGTERM", Obeyed: true, Untrapped: true, Exit: exited("SIGTERM", true)}, false,
			[]string{"after SIGTERM, which it does not handle: open requests are cut"}},
		{"not told", agent.Rehearsal{Ready: true, StopSignal: "SIGTERM", StopMS: 100, Exit: exited("SIGTERM", true)}, false,
			[]string{"✗ killed 0.1 s after SIGTERM, without having been told"}},
		{"never", agent.Rehearsal{Ready: true, StopSignal: "SIGTERM", StopMS: 35000, Exit: exited("SIGKILL", true)}, false,
			[]string{"✗ still running 35.0 s after SIGTERM; Render waits 30.0 s"}},
		{"late", agent.Rehearsal{Ready: true, StopSignal: "SIGTERM", StopMS: 31000, Exit: exited("", true)}, false,
			[]string{"✗ stopped in 31.0 s after SIGTERM; Render waits 30.0 s"}},
		{"a visit", agent.Rehearsal{Port: 5000, Ready: true}, true, []string{"✓ ready on port 5000\n  nothing to fix\n"}},
		{"a visit in vain", agent.Rehearsal{Port: 5000}, true, []string{"✗ not ready on port 5000"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var b strings.Builder
			c := &console{out: &output{w: &b}, width: func() int { return 0 }}
			(&doctorPage{console: c, m: m, r: &test.r, rehearsed: !test.here}).write()
			for _, want := range test.want {
				if !strings.Contains(b.String(), want) {
					t.Errorf("no %q in\n%s", want, b.String())
				}
			}
			if strings.Contains(b.String(), "\x1b") {
				t.Errorf("an escape in %q", b.String())
			}
		})
	}
}

func TestTheDoctorsPageFitsItsTerminal(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	c := &console{out: &output{w: &b}, width: func() int { return 60 }, color: true}
	words := strings.TrimSpace(strings.Repeat("word ", 40))
	r := &agent.Rehearsal{Port: 1, Findings: []protocol.Finding{{Code: "PORT10", Severity: protocol.SeverityWarning, Cause: words, Evidence: words, Fix: words}}}
	m, _ := platform.Mimic("cf")
	(&doctorPage{console: c, m: m, r: r, rehearsed: true}).write()
	bare := regexp.MustCompile("\x1b\\[[0-9]*m").ReplaceAllString(b.String(), "")
	if bare == b.String() {
		t.Error("no colours")
	}
	for l := range strings.Lines(bare) {
		if n := len([]rune(strings.TrimRight(l, "\n"))); n > 60 && !strings.Contains(l, "https://") {
			t.Errorf("%s columns: %q", strconv.Itoa(n), l)
		}
	}
}
