package relay

import (
	"errors"
	"io/fs"
	"strings"
)

// maxSecretSize bounds a secret's file: a key file is small, a wrong path may
// be anything.
const maxSecretSize = 64 << 10

// secretSource says where a secret comes from.
type secretSource struct {
	place place  // of the value that names it
	kind  string // "env" or "file"
	name  string // variable or path
}

// readSecret reads {env: NAME} or {file: /path} and gives the value.
//
// Whoever writes a secret into the manifest by mistake must not find it in the
// relay's log, so nothing that stands where a secret belongs is ever shown,
// except a variable's name and a file's path.
func (r *manifestReader) readSecret(p place) Secret {
	p.secret = true
	if !r.isSecretMapping(p) {
		return ""
	}
	source, ok := r.readSource(p, r.fields(p, secretKinds...))
	if !ok || r.opts.SkipSecrets {
		return ""
	}
	return r.resolve(source)
}

var secretKinds = []string{"env", "file", "sealed", "vault"}

func (r *manifestReader) isSecretMapping(p place) bool {
	if kind := kindOf(p.node); kind != "a mapping" {
		r.fail(p, "expected {env: NAME} or {file: /path}, found %s; a secret itself is never written here", kind)
		return false
	}
	return true
}

// readSource checks that f names exactly one source, and one that this version
// knows.
func (r *manifestReader) readSource(p place, f map[string]place) (secretSource, bool) {
	var sources []string
	for _, kind := range secretKinds {
		if f[kind].given() {
			sources = append(sources, kind)
		}
	}
	if len(sources) != 1 {
		found := "none"
		if len(sources) > 1 {
			found = strings.Join(sources, " and ")
		}
		r.fail(p, "expected exactly one of env and file, found %s", found)
		return secretSource{}, false
	}
	s := secretSource{place: f[sources[0]], kind: sources[0]}
	var ok bool
	switch s.kind {
	case "env":
		s.name, ok = parsed(r, s.place, expectedVariable, parseVariable)
	case "file":
		s.name, ok = parsed(r, s.place, expectedFile, parseFile)
	default:
		r.failAt(s.place.key, p.path, "secrets that are %s are not supported by this version; expected env or file", s.kind)
	}
	return s, ok
}

const (
	expectedVariable = "the name of an environment variable"
	expectedFile     = "the path of a file, beginning with /"
)

func parseVariable(s string) (string, string) {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_"
	if s == "" || len(s) > 255 || !allOf(s, letters+"0123456789") || !allOf(s[:1], letters) {
		return "", expectedVariable
	}
	return s, ""
}

func parseFile(s string) (string, string) {
	if !strings.HasPrefix(s, "/") || len(s) > 4096 || strings.ContainsFunc(s, func(c rune) bool { return c < ' ' }) {
		return "", expectedFile
	}
	return s, ""
}

// resolve gives the value. An empty one is refused: to verify a signature with
// an empty key is to accept everybody's.
func (r *manifestReader) resolve(s secretSource) Secret {
	var value string
	if s.kind == "env" {
		var ok bool
		if r.opts.Env != nil {
			value, ok = r.opts.Env(s.name)
		}
		if !ok {
			r.fail(s.place, "the environment variable %s is not set", s.name)
			return ""
		}
	} else {
		data, err := r.readSecretFile(s.name)
		if err != nil {
			r.fail(s.place, "the file %s %s", quote(s.name), fileProblem(err))
			return ""
		}
		// Editors and "echo" end a file with a newline that is no part of it.
		value = strings.TrimRight(string(data), "\r\n")
	}
	if value == "" {
		r.fail(s.place, "expected a secret in %s %s, found it empty", s.kind, quote(s.name))
	}
	return Secret(value)
}

func (r *manifestReader) readSecretFile(path string) ([]byte, error) {
	if r.opts.ReadFile == nil {
		return nil, fs.ErrNotExist
	}
	data, err := r.opts.ReadFile(path)
	if err == nil && len(data) > maxSecretSize {
		return nil, errSecretTooLarge
	}
	return data, err
}

var errSecretTooLarge = errors.New("secret larger than 64 KiB")

// fileProblem tells why a file cannot be read without the error's own text,
// which comes from outside this package and may say anything.
func fileProblem(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "does not exist"
	case errors.Is(err, fs.ErrPermission):
		return "may not be read by the relay"
	case errors.Is(err, errSecretTooLarge):
		return "is larger than 64 KiB"
	}
	return "cannot be read"
}
