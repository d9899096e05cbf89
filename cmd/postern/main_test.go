package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/agent/platform"
)

// TestMain makes the test binary the program itself when a test asks for it.
func TestMain(m *testing.M) {
	if os.Getenv("POSTERN_TEST_AS_PROGRAM") == "1" {
		// With a token the program starts itself anew, and must find itself to be the
		// program again.
		if os.Getenv("POSTERN_TOKEN") == "" {
			os.Unsetenv("POSTERN_TEST_AS_PROGRAM")
		}
		os.Setenv(childVariable, "1")
		main()
		return
	}
	if os.Getenv(childVariable) != "" {
		fmt.Fprintln(os.Stderr, "the program has started the tests instead of itself; they would start it again, and so on")
		os.Exit(3)
	}
	os.Exit(m.Run())
}

// childVariable is in the environment of whatever the program starts.
const childVariable = "POSTERN_TEST_CHILD"

// postern runs the program with env and nothing else of the environment but PATH.
func postern(t *testing.T, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "POSTERN_TEST_AS_PROGRAM=1"}, env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

func TestExitCodesAndWhatIsSaid(t *testing.T) {
	relay := []string{"POSTERN_RELAY=https://relay.example.com", "POSTERN_TOKEN=t"}
	for _, test := range []struct {
		name   string
		env    []string
		args   string
		code   int
		stdout string
		stderr string
	}{
		{"version", nil, "--version", 0, "postern dev", ""},
		{"help", nil, "--help", 0, "postern run [flags]", ""},
		{"help of a command", nil, "run --help", 0, "--grace (POSTERN_GRACE)", ""},
		{"no command", nil, "", 2, "", "no command was given"},
		{"unknown command", nil, "serve", 2, "", `there is no command "serve"`},
		{"unknown flag", nil, "agent --bogus", 2, "", "bogus"},
		{"agent with an argument", nil, "agent 3000", 2, "", `got "3000"`},
		{"agent without an address", relay, "agent", 2, "", "--to: an address is missing"},
		{"agent with a wrong address", relay, "agent --to x", 2, "", `"x" is not an address`},
		{"agent without a relay", nil, "agent --to 3000", 2, "", "POSTERN_RELAY is not set"},
		{"agent without a token", relay[:1], "agent --to 3000", 2, "", "POSTERN_TOKEN is not set"},
		{"agent with a relay that is no URL", []string{"POSTERN_TOKEN=t", "POSTERN_RELAY=relay.example.com"}, "agent --to 3000", 2, "", "expected https://host"},
		{"agent with too many tunnels", relay, "agent --to 3000 --tunnels 17", 2, "", "expected 1 to 16"},
		{"a wrong variable", append([]string{"POSTERN_TUNNELS=many"}, relay...), "agent --to 3000", 2, "", `POSTERN_TUNNELS="many"`},
		{"a wrong log level", relay, "agent --to 3000 --log-level loud", 2, "", `--log-level "loud"`},
		{"a wrong log format", append([]string{"POSTERN_LOG_FORMAT=xml"}, relay...), "agent --to 3000", 2, "", `POSTERN_LOG_FORMAT="xml"`},
		{"http without a port", relay, "http", 2, "", "which port?"},
		{"http with a wrong port", relay, "http 70000", 2, "", "expected 1 to 65535"},
		{"run without a command", nil, "run", 2, "", "which command?"},
		{"run with a wrong port", nil, "run --port x -- true", 2, "", `port "x"`},
		{"run of what is not there", nil, "run -- /no/such/program", 127, "", "/no/such/program"},
		{"run with the child's code", nil, "run -- sh -c exit${IFS}7", 7, "", "POSTERN_RELAY is not set"},
		{"run disabled", []string{"POSTERN_DISABLE=1", "POSTERN_LOG_LEVEL=loud"}, "run -- echo untouched", 0, "untouched\n", ""},
		{"run disabled, of what is not there", []string{"POSTERN_DISABLE=1"}, "run -- /no/such/program", 127, "", "/no/such/program"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			code, stdout, stderr := postern(t, test.env, strings.Fields(test.args)...)
			if code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			if !strings.Contains(stdout, test.stdout) || !strings.Contains(stderr, test.stderr) {
				t.Errorf("said %q and %q, want %q and %q", stdout, stderr, test.stdout, test.stderr)
			}
			if test.code == 0 && test.stderr == "" && stderr != "" {
				t.Errorf("standard error has %q", stderr)
			}
		})
	}
}

func TestDisabledRunLeavesTheEnvironmentAloneButForTheToken(t *testing.T) {
	_, stdout, _ := postern(t, []string{"POSTERN_DISABLE=1", "POSTERN_TOKEN=t", "PORT=not-a-port"}, "run", "--", "env")
	for _, want := range []string{"POSTERN_DISABLE=1", "PORT=not-a-port"} {
		if !strings.Contains(stdout, want+"\n") {
			t.Errorf("the child has no %s:\n%s", want, stdout)
		}
	}
	if strings.Contains(stdout, "POSTERN_TOKEN") {
		t.Errorf("the child has the token:\n%s", stdout)
	}
}

func TestAddressOfAnApp(t *testing.T) {
	for in, want := range map[string]string{
		"3000": "127.0.0.1:3000", ":3000": "127.0.0.1:3000", "web:3000": "web:3000", "[::1]:3000": "[::1]:3000",
		"1": "127.0.0.1:1", "65535": "127.0.0.1:65535",
		"": "", "0": "", "65536": "", "-1": "", "web": "", "web:": "", "web:http": "", "::1:3000": "", "http://web:3000": "",
	} {
		got, err := address(in)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("address(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestWhereTheAppIsAndWhatItIsTold(t *testing.T) {
	const free = -1 // any port
	for _, test := range []struct {
		name, outside string
		platform      platform.Platform
		args          []string
		port          int
		told          string // "free": the same as port; "": nothing
		front         int
		serves        bool
	}{
		{"by the platform", "5000", platform.Platform{Name: "heroku", GivesPort: true}, nil, 5000, "5000", 0, true},
		{"by a flag", "", platform.Platform{}, []string{"--port", "6000"}, 6000, "6000", 0, true},
		{"by a flag against the platform", "5000", platform.Platform{}, []string{"--port", "6000"}, 6000, "6000", 0, true},
		{"nobody says on a plain machine", "", platform.Platform{}, nil, free, "free", 0, true},
		{"a worker", "", platform.Platform{Name: "heroku"}, nil, 0, "", 0, false},
		{"a web process that was not told", "", platform.Platform{Name: "render", GivesPort: true}, nil, 0, "", 0, true},
		{"a platform that tells nobody", "", platform.Platform{Name: "fly"}, nil, 0, "", 0, true},
		{"a worker by its flag", "5000", platform.Platform{Name: "heroku"}, []string{"--no-port"}, 0, "5000", 0, false},
		{"nonsense from the platform", "x", platform.Platform{Name: "heroku", GivesPort: true}, nil, 0, "x", 0, true},
		{"in front", "5000", platform.Platform{Name: "heroku", GivesPort: true}, []string{"--front"}, free, "free", 5000, true},
		{"in front of nothing", "", platform.Platform{Name: "render", GivesPort: true}, []string{"--front"}, 0, "", 0, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("PORT", test.outside)
			f := newRunFlags()
			if err := f.parse(test.args); err != nil {
				t.Fatal(err)
			}
			where, err := f.ports(test.platform, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			if where.port != test.port && (test.port != free || where.port == 0) || where.front != test.front || where.serves != test.serves {
				t.Errorf("port %d, in front of it %d, serves %v", where.port, where.front, where.serves)
			}
			told := test.told
			if told == "free" {
				told = strconv.Itoa(where.port)
			}
			if got := lookup(where.env)("PORT"); got != told {
				t.Errorf("the child is told PORT=%s, want %q", got, told)
			}
		})
	}
	for _, wrong := range []string{"0", "65536", "x", "-1"} {
		t.Setenv("PORT", "5000")
		f := newRunFlags()
		if err := f.parse([]string{"--port", wrong}); err != nil {
			t.Fatal(err)
		}
		if _, err := f.ports(platform.Platform{}, slog.New(slog.DiscardHandler)); !errors.As(err, new(usageError)) {
			t.Errorf("port %q: %v, want a usage error", wrong, err)
		}
	}
}

// What somebody typed is refused; a variable must not keep an app from running.
func TestAVariableWithAMistakeIsALineAndAFlagIsAnError(t *testing.T) {
	for _, name := range []string{"POSTERN_TUNNELS", "POSTERN_GRACE", "POSTERN_FRONT", "POSTERN_LOG_LEVEL", "POSTERN_LOG_FORMAT"} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(name, "nonsense")
			f := newRunFlags()
			if err := f.parse(nil); err != nil || len(f.faults) != 1 || !strings.Contains(f.faults[0].Error(), name) {
				t.Errorf("%v, faults %v; want one", err, f.faults)
			}
			if _, err := f.logger(); err != nil {
				t.Errorf("no log: %v", err)
			}
			if err := newFlags("agent", "").parse(nil); (err == nil) != (name == "POSTERN_FRONT") {
				t.Errorf("another verb with the same variable: %v", err)
			}
		})
	}
	if err := newRunFlags().parse([]string{"--tunnels", "nonsense"}); !errors.As(err, new(usageError)) {
		t.Errorf("a flag: %v, want a usage error", err)
	}
}

func TestNamesAreMadeFitForTheProtocol(t *testing.T) {
	for in, want := range map[string]string{
		"web.1": "web.1", "": "", "a b": "a b", "tab\there\n": "tabhere", "mülle\x7fr": "mller",
		strings.Repeat("é", 200) + strings.Repeat("x", 200): strings.Repeat("x", 128),
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestFlagBeatsItsVariableAndThatTheDefault(t *testing.T) {
	for _, test := range []struct {
		name, env string
		args      []string
		want      time.Duration
	}{
		{"neither", "", nil, 0},
		{"variable", "7s", nil, 7 * time.Second},
		{"both", "7s", []string{"--grace", "9s"}, 9 * time.Second},
		{"a flag at its default, and a variable", "7s", []string{"--grace=0s"}, 0},
		{"a flag beside a wrong variable", "x", []string{"--grace", "9s"}, 9 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("POSTERN_GRACE", test.env)
			f := newFlags("run", "")
			if err := f.parse(test.args); err != nil {
				t.Fatal(err)
			}
			if *f.grace != test.want {
				t.Errorf("grace %v, want %v", *f.grace, test.want)
			}
		})
	}
}
