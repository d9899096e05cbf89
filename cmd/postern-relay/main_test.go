package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestMain makes the test binary the program itself when a test asks for it.
func TestMain(m *testing.M) {
	if os.Getenv("POSTERN_TEST_AS_PROGRAM") == "1" {
		main()
		return
	}
	os.Exit(m.Run())
}

// postern runs the program in dir, with env and nothing else of the environment.
func postern(t *testing.T, dir string, env []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Dir, cmd.Env = dir, append([]string{"POSTERN_TEST_AS_PROGRAM=1"}, env...)
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
	for _, test := range []struct {
		name   string
		env    []string
		args   string
		code   int
		stdout string
		stderr string
	}{
		{"version", nil, "--version", 0, "postern-relay dev", ""},
		{"help", nil, "--help", 0, "postern-relay serve", ""},
		{"help of a command", nil, "serve --help", 0, "--public-url (POSTERN_PUBLIC_URL)", ""},
		{"help of a command of two words", nil, "token create --help", 0, "--app", ""},
		{"no command", nil, "", 2, "", "no command was given"},
		{"unknown command", nil, "start", 2, "", `there is no command "start"`},
		{"unknown second word", nil, "token make", 2, "", `there is no command "token make"`},
		{"half a command", nil, "token", 2, "", `there is no command "token"`},
		{"unknown flag", nil, "serve --bogus", 2, "", "bogus"},
		{"serve with an argument", nil, "serve now", 2, "", "takes 0 arguments, got 1: now"},
		{"serve with a wrong URL", nil, "serve --public-url x", 2, "", `public URL "x"`},
		{"serve with a wrong variable", []string{"POSTERN_PARK=soon"}, "serve", 2, "", `POSTERN_PARK="soon"`},
		{"serve with a wrong log level", nil, "serve --log-level loud", 2, "", `--log-level "loud"`},
		{"a token for nobody", nil, "token create", 2, "", "--app is missing"},
		{"a token of no scope", nil, "token create --app shop --scope root", 2, "", `--scope "root"`},
		{"a token for what is no app", nil, "token create --app Shop_1", 2, "", "Shop_1"},
		{"a token that nobody made", nil, "token revoke tok_x", 1, "", "there is no token tok_x"},
		{"revoke without an id", nil, "token revoke", 2, "", "takes 1 arguments"},
		{"validate without a file", nil, "manifest validate", 2, "", "takes 1 arguments"},
		{"validate what is not there", nil, "manifest validate none.yaml", 1, "", "none.yaml"},
		{"migrate", nil, "migrate", 0, "up to date", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			code, stdout, stderr := postern(t, t.TempDir(), test.env, strings.Fields(test.args)...)
			if code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			if !strings.Contains(stdout, test.stdout) || !strings.Contains(stderr, test.stderr) {
				t.Errorf("said %q and %q, want %q and %q", stdout, stderr, test.stdout, test.stderr)
			}
		})
	}
}

func TestTokenIsPrintedAloneListedAndRevoked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	env := []string{"POSTERN_DATA=" + filepath.Join(dir, "data")}
	code, stdout, stderr := postern(t, dir, env, "token", "create", "--app", "shop", "--scope", "agent", "--ttl", "1h")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	if !regexp.MustCompile(`^[\w-]+\.[\w-]+\.[\w-]+\n$`).MatchString(stdout) {
		t.Errorf("printed %q, want a JWT and nothing else", stdout)
	}
	if info, err := os.Stat(filepath.Join(dir, "data")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the data folder is %v, %v; want it private", info.Mode(), err)
	}
	_, stdout, _ = postern(t, dir, env, "token", "list", "--json")
	id := regexp.MustCompile(`tok_\w+`).FindString(stdout)
	if id == "" || !strings.Contains(stdout, `"app":"shop"`) || !strings.Contains(stdout, `"state":"valid"`) {
		t.Fatalf("listed %s", stdout)
	}
	if code, _, stderr := postern(t, dir, env, "token", "revoke", id); code != 0 {
		t.Errorf("revoke: exit code %d: %s", code, stderr)
	}
	if _, stdout, _ = postern(t, dir, env, "token", "list"); !strings.Contains(stdout, id) || !strings.Contains(stdout, "revoked") {
		t.Errorf("listed %s", stdout)
	}
}

func TestManifestIsValidatedWithThePlaceOfEachFault(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, test := range []struct {
		name, manifest string
		code           int
		want           string
	}{
		{"good.yaml", "version: 1\napps:\n  shop:\n    endpoints:\n      stripe: {provider: stripe, secrets: [{env: NOT_SET_HERE}]}\n", 0, "good.yaml: good, 1 apps, 1 webhook endpoints"},
		{"key.yaml", "version: 1\napps:\n  shop:\n    tem: a\n", 1, "key.yaml:4:5: "},
		{"type.yaml", "version: one\napps: {}\n", 1, "type.yaml:1:10: "},
		{"syntax.yaml", "version: 1\napps: [\n", 1, "syntax.yaml:"},
	} {
		if err := os.WriteFile(filepath.Join(dir, test.name), []byte(test.manifest), 0o600); err != nil {
			t.Fatal(err)
		}
		code, stdout, stderr := postern(t, dir, nil, "manifest", "validate", test.name)
		said := stdout
		if test.code != 0 {
			said = stderr
		}
		if code != test.code || !strings.Contains(said, test.want) {
			t.Errorf("%s: exit code %d, said %q, want %d with %q", test.name, code, said, test.code, test.want)
		}
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "postern-data")); files != nil {
		t.Error("a data folder was made for a check")
	}
}

func TestFlagBeatsItsVariableAndThatTheDefault(t *testing.T) {
	for _, test := range []struct {
		name, env string
		args      []string
		want      string
	}{
		{"neither", "", nil, "./postern-data"},
		{"variable", "/from/env", nil, "/from/env"},
		{"both", "/from/env", []string{"--data", "/from/flag"}, "/from/flag"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("POSTERN_DATA", test.env)
			f := newFlags("migrate", "")
			data := dataFlag(f)
			if err := f.parse(test.args, 0); err != nil {
				t.Fatal(err)
			}
			if *data != test.want {
				t.Errorf("data folder %q, want %q", *data, test.want)
			}
		})
	}
}
