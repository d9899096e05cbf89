package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestMain makes the test binary the program itself when a test asks for it.
func TestMain(m *testing.M) {
	if os.Getenv("POSTERN_TEST_AS_PROGRAM") == "1" {
		os.Unsetenv("POSTERN_TEST_AS_PROGRAM")
		main()
		return
	}
	os.Exit(m.Run())
}

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
		{"a wrong log format", append([]string{"POSTERN_LOG_FORMAT=xml"}, relay...), "agent --to 3000", 2, "", `--log-format "xml"`},
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

func TestDisabledRunLeavesTheEnvironmentAlone(t *testing.T) {
	env := []string{"POSTERN_DISABLE=1", "POSTERN_TOKEN=t", "PORT=not-a-port"}
	_, stdout, _ := postern(t, env, "run", "--", "env")
	for _, want := range env {
		if !strings.Contains(stdout, want+"\n") {
			t.Errorf("the child has no %s:\n%s", want, stdout)
		}
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

func TestChildIsToldItsPortWhereItWasNot(t *testing.T) {
	for _, test := range []struct{ name, outside, flag, target string }{
		{"by the platform", "5000", "5000", "127.0.0.1:5000"},
		{"by a flag", "", "6000", "127.0.0.1:6000"},
		{"by a flag against the platform", "5000", "6000", "127.0.0.1:6000"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("PORT", test.outside)
			env, target, err := childPort(test.flag)
			if err != nil || target != test.target {
				t.Fatalf("target %q, %v; want %q", target, err, test.target)
			}
			last := ""
			for _, v := range env {
				if port, ok := strings.CutPrefix(v, "PORT="); ok {
					last = port
				}
			}
			if last != test.flag {
				t.Errorf("the child is told PORT=%s, want %s", last, test.flag)
			}
		})
	}
	t.Run("a free one", func(t *testing.T) {
		t.Setenv("PORT", "")
		env, target, err := childPort("")
		if err != nil || env[len(env)-1] != "PORT="+strings.TrimPrefix(target, "127.0.0.1:") {
			t.Errorf("target %q, %s, %v", target, env[len(env)-1], err)
		}
	})
	for _, wrong := range []string{"0", "65536", "x", "-1"} {
		if _, _, err := childPort(wrong); !errors.As(err, new(usageError)) {
			t.Errorf("port %q: %v, want a usage error", wrong, err)
		}
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
