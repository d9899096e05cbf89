package run_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/posternhq/postern/agent/run"
)

func TestExitCodesAreTheChilds(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, script string
		want         int
	}{
		{"success", "exit 0", 0},
		{"its own code", "exit 7", 7},
		{"the highest code", "exit 255", 255},
		{"killed by TERM", "kill -TERM $$", 143},
		{"killed by KILL", "kill -KILL $$", 137},
		{"killed by INT", "kill -INT $$", 130},
		{"a code that looks like a signal", "exit 143", 143},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			code, err := (&run.Command{Args: []string{"sh", "-c", test.script}}).Run(t.Context())
			if code != test.want || err != nil {
				t.Errorf("got %d, %v; want %d", code, err, test.want)
			}
		})
	}
}

func TestAProgramThatCannotRun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	noBit := write("nobit", "#!/bin/sh\n", 0o644)
	noFormat := write("noformat", "\x00\x01 neither a binary nor a script", 0o755)
	noInterpreter := write("nointerpreter", "#!/no/such/interpreter\n", 0o755)
	path := []string{"PATH=" + filepath.Join(dir, "absent") + ":" + dir}

	for _, test := range []struct {
		name string
		cmd  run.Command
		want int
		text string
	}{
		{"not in PATH", run.Command{Args: []string{"no-such-program"}}, 127, `find "no-such-program": not in PATH`},
		{"no such path", run.Command{Args: []string{"/no/such/program"}}, 127, "no such file"},
		{"an empty name", run.Command{Args: []string{""}}, 127, `find ""`},
		{"an interpreter that is missing", run.Command{Args: []string{noInterpreter}}, 127, "start"},
		{"no permission", run.Command{Args: []string{noBit}}, 126, "permission denied"},
		{"no permission, found in PATH", run.Command{Args: []string{"nobit"}, Env: path}, 126, "permission denied"},
		{"exec format", run.Command{Args: []string{noFormat}}, 126, "start"},
		{"a folder", run.Command{Args: []string{dir}}, 126, "is a directory"},
		{"a folder, found in PATH", run.Command{Args: []string{"folder"}, Env: path}, 126, "is a directory"},
		{"a file used as a folder", run.Command{Args: []string{noBit + "/x"}}, 126, "not a directory"},
		{"a working folder that is missing", run.Command{Args: []string{"sh"}, Dir: "/no/such"}, 1, "working folder"},
		{"no command", run.Command{}, 2, "none was given"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			code, err := test.cmd.Run(t.Context())
			if code != test.want || err == nil || !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %d, %v; want %d and %q", code, err, test.want, test.text)
			}
		})
	}
}

func TestTheProgramIsFoundAsAShellWouldFindIt(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, name := range []string{"bin", "first"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// Links to the shell rather than scripts: a file just written may still be open in
	// a process that another test has forked, and such a file cannot be executed.
	shell, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(shell, filepath.Join(dir, "bin", "app")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "first", "app"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, program, path string }{
		{"in a relative entry of PATH", "app", "bin"},
		{"behind one that is not executable", "app", filepath.Join(dir, "first") + ":" + filepath.Join(dir, "bin")},
		{"by a path relative to the folder", "bin/app", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			code, err := (&run.Command{
				Args: []string{test.program, "-c", "exit 5"}, Dir: dir, Env: []string{"PATH=" + test.path},
			}).Run(t.Context())
			if code != 5 || err != nil {
				t.Errorf("got %d, %v; want 5", code, err)
			}
		})
	}
}

func TestAContextThatHasEndedStartsNothing(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	mark := filepath.Join(t.TempDir(), "mark")
	code, err := (&run.Command{Args: []string{"touch", mark}}).Run(ctx)
	if code != 1 || err == nil {
		t.Errorf("got %d, %v; want 1 and an error", code, err)
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("the command ran")
	}
}

func TestArgumentsArriveVerbatim(t *testing.T) {
	t.Parallel()
	args := []string{"two words", "", "--", "-x=1", "héllo → 世界", "$HOME", `a"b'c\d`, "*", "tab\tnew\nline", "\xff\xfe", ""}
	a := launch(t, &run.Command{}, append([]string{"args"}, args...)...)
	if code := a.wait(); code != 0 {
		t.Fatalf("code %d", code)
	}
	want, _ := json.Marshal(args) // the bytes that are no UTF-8 are replaced on both sides
	if got := strings.Join(a.seen, "\n"); got != string(want) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestTheTokenIsNotInTheChildsEnvironment(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	env := []string{"POSTERN_TOKEN=secret-1", "B=2", "A=1", "B=3", "POSTERN_RELAY=https://r", "POSTERN_TOKEN=secret-2",
		"POSTERN_TOKEN_NOT=kept", helperVariable + "=app", atOnce}
	code, err := (&run.Command{Args: []string{os.Args[0], "environ"}, Env: env, Stdout: &out}).Run(t.Context())
	if code != 0 || err != nil {
		t.Fatalf("got %d, %v", code, err)
	}
	got := strings.Split(strings.TrimSuffix(out.String(), "\x00"), "\x00")
	want := []string{"B=2", "A=1", "B=3", "POSTERN_RELAY=https://r", "POSTERN_TOKEN_NOT=kept", helperVariable + "=app", atOnce}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// Not parallel: it sets a variable of this process.
func TestTheTokenIsRemovedFromTheAgentsOwnEnvironmentToo(t *testing.T) {
	t.Setenv("POSTERN_TOKEN", "secret")
	t.Setenv("KEPT", "yes")
	code, err := (&run.Command{Args: []string{"sh", "-c", `test -z "${POSTERN_TOKEN+set}" && test "$KEPT" = yes`}}).Run(t.Context())
	if code != 0 || err != nil {
		t.Errorf("got %d, %v", code, err)
	}
}

func TestChildEnv(t *testing.T) {
	t.Parallel()
	environ := []string{"A=1", "POSTERN_TOKEN=x", "DROP=1", "POSTERN_TOKEN", "DROPPED=2", "=odd", "EMPTY=", "A=2", "drop=3"}
	before := slices.Clone(environ)
	got := run.ChildEnv(environ, "DROP", "ABSENT")
	if want := []string{"A=1", "DROPPED=2", "=odd", "EMPTY=", "A=2", "drop=3"}; !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if !slices.Equal(environ, before) {
		t.Errorf("the argument was changed: %q", environ)
	}
}

func TestStdinPassesThrough(t *testing.T) {
	t.Parallel()
	stdin, feed := pipe(t)
	var out bytes.Buffer
	text := strings.Repeat("line of input\n", 50_000)
	go func() {
		defer feed.Close()
		feed.WriteString(text)
	}()
	code, err := (&run.Command{Args: []string{"cat"}, Stdin: stdin, Stdout: &out}).Run(t.Context())
	if code != 0 || err != nil || out.String() != text {
		t.Errorf("got %d, %v and %d bytes; want %d", code, err, out.Len(), len(text))
	}
}

func TestLargeOutputIsNotLost(t *testing.T) {
	t.Parallel()
	const size = 16 << 20
	flood := []string{os.Args[0], "flood", fmt.Sprint(size)}
	t.Run("through a pipe of ours", func(t *testing.T) {
		t.Parallel()
		var out bytes.Buffer
		code, err := (&run.Command{Args: flood, Env: appEnv(), Stdout: &out}).Run(t.Context())
		if code != 0 || err != nil || out.Len() != size {
			t.Errorf("got %d, %v and %d bytes", code, err, out.Len())
		}
	})
	t.Run("into a file", func(t *testing.T) {
		t.Parallel()
		file, err := os.Create(filepath.Join(t.TempDir(), "out"))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		code, err := (&run.Command{Args: flood, Env: appEnv(), Stdout: file}).Run(t.Context())
		info, _ := file.Stat()
		if code != 0 || err != nil || info.Size() != size {
			t.Errorf("got %d, %v and %d bytes", code, err, info.Size())
		}
	})
	t.Run("when its reader fails, the app still ends well", func(t *testing.T) {
		t.Parallel()
		code, err := (&run.Command{Args: flood, Env: appEnv(), Stdout: brokenWriter{}}).Run(t.Context())
		if code != 0 || err != nil {
			t.Errorf("got %d, %v", code, err)
		}
	})
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestStdoutAndStderrStayApart(t *testing.T) {
	t.Parallel()
	var out, errs bytes.Buffer
	code, err := (&run.Command{
		Args: []string{"sh", "-c", "echo to stdout; echo to stderr >&2"}, Stdout: &out, Stderr: &errs,
	}).Run(t.Context())
	if code != 0 || err != nil || out.String() != "to stdout\n" || errs.String() != "to stderr\n" {
		t.Errorf("got %d, %v, %q and %q", code, err, &out, &errs)
	}
}

func TestTheChildLeadsAGroupOfItsOwn(t *testing.T) {
	t.Parallel()
	a := launch(t, &run.Command{}, "listen", "child")
	var pid, group int
	if _, err := fmt.Sscanf(a.expect("child ready"), "child ready %d %d", &pid, &group); err != nil {
		t.Fatal(err)
	}
	if group != pid || group == syscall.Getpgrp() {
		t.Errorf("the child %d is in group %d, we are in %d", pid, group, syscall.Getpgrp())
	}
	a.stdin.Close()
	a.wait()
}
