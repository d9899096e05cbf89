package run

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// defaultPath is searched when PATH is not set, as execvp(3) does.
const defaultPath = "/bin:/usr/bin"

// errNoCommand is why an empty argument list is refused.
const errNoCommand = constError("start the command: none was given")

// constError is an error that can be a constant.
type constError string

func (e constError) Error() string { return string(e) }

// Exec replaces the agent by the program, which gets ChildEnv: what POSTERN_DISABLE
// asks for. It returns only when that failed, with the exit code to leave with.
func Exec(args []string) (int, error) {
	if len(args) == 0 {
		return codeUsage, errNoCommand
	}
	env := ChildEnv(os.Environ())
	path, err := lookup(args[0], "", env)
	if err != nil {
		err = fmt.Errorf("find %q: %w", args[0], err)
		return startCode(err), err
	}
	err = fmt.Errorf("exec %q: %w", args[0], syscall.Exec(path, args, env))
	return startCode(err), err
}

// lookup finds the file to execute as execvp(3) would, with the PATH of environ.
// It is not exec.LookPath, which refuses a match in a relative entry of PATH (they
// are common: Ruby apps have "bin" there) and calls a file without permission not
// found. A name with a slash is taken as it is, relative to dir. Errors carry the
// errno that startCode looks for.
func lookup(name, dir string, environ []string) (string, error) {
	if name == "" {
		return "", syscall.ENOENT
	}
	if strings.Contains(name, "/") {
		return name, executable(name, dir)
	}
	refused := fmt.Errorf("not in PATH: %w", syscall.ENOENT)
	for _, entry := range filepath.SplitList(searchPath(environ)) {
		if entry == "" {
			entry = "." // POSIX: an empty entry is the working folder
		}
		candidate := entry + "/" + name
		err := executable(candidate, dir)
		if err == nil {
			return candidate, nil
		}
		if errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EISDIR) {
			refused = err // remembered, and a later entry may still have a better one
		}
	}
	return "", refused
}

// executable reports why path, relative to dir, cannot be executed, as far as that
// can be told without trying.
func executable(path, dir string) error {
	if dir != "" && !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return &os.PathError{Op: "execute", Path: path, Err: syscall.EISDIR}
	}
	// Any other answer than "no" (a sandbox may forbid the question) is left to execve.
	if errors.Is(unix.Access(path, unix.X_OK), syscall.EACCES) {
		return &os.PathError{Op: "execute", Path: path, Err: syscall.EACCES}
	}
	return nil
}

// searchPath is PATH in environ. The first one counts, as for getenv(3).
func searchPath(environ []string) string {
	for _, entry := range environ {
		if value, ok := strings.CutPrefix(entry, "PATH="); ok {
			return value
		}
	}
	return defaultPath
}
