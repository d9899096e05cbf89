package agent

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/posternhq/postern/agent/platform"
	"github.com/posternhq/postern/agent/proc"
)

// errTaken says that an app which is told no port cannot be rehearsed, because
// somebody else listens where it has to.
var errTaken = errors.New("port is taken")

// choosePort decides where the platform sends. A platform's fixed port may be busy
// on a developer's machine; an app that is told its port is then told another.
func (r *rehearsing) choosePort() error {
	want := r.As.Port
	if r.As.Name == platform.Fly {
		r.readFlyToml(&want)
	}
	switch {
	case want == 0 || isFree(want):
	case !r.As.GivesPort:
		return fmt.Errorf("%w: %s sends to %d and tells the app no port, and here %s listens there; end it first",
			errTaken, r.As.Says, want, ownerOf(want))
	default:
		defer func(busy int) {
			r.note("port %d, which %s gives, is taken here by %s; the app is given %d", busy, r.As.Says, ownerOf(busy), r.port)
		}(want)
		want = 0
	}
	if want == 0 {
		var err error
		if want, err = anyPort(); err != nil {
			return fmt.Errorf("find a free port: %w", err)
		}
	}
	r.port, r.result.Port = want, want
	return nil
}

// isFree reports whether nobody listens on port, on any interface.
func isFree(port int) bool {
	l, err := net.Listen("tcp", ":"+strconv.Itoa(port))
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// anyPort finds a free port: a high one, as Heroku's are, which no app has by
// chance.
func anyPort() (int, error) {
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// ownerOf names who listens on port, as far as that can be told.
func ownerOf(port int) string {
	sockets, _ := proc.Listeners() // without /proc there is nothing to say
	for _, s := range sockets {
		if int(s.Local.Port()) == port && s.PID > 0 {
			return fmt.Sprintf("%s (pid %d)", s.Process, s.PID)
		}
	}
	return "another program"
}

// maxFlyToml is far above any fly.toml.
const maxFlyToml = 256 << 10

// readFlyToml takes over what the app's own fly.toml says: internal_port, and a
// PORT that its [env] sets.
func (r *rehearsing) readFlyToml(port *int) {
	var internal int
	var env string
	if f, err := os.Open(filepath.Join(r.Dir, "fly.toml")); err == nil {
		internal, env = flyToml(io.LimitReader(f, maxFlyToml))
		f.Close()
	}
	if internal > 0 {
		*port = internal
	} else {
		r.note("no internal_port in a fly.toml here, so it is %s's default, %d", r.As.Says, *port)
	}
	if env != "" {
		r.As.Env = append(r.As.Env, "PORT="+env)
	}
}

// flyToml finds the two settings in a fly.toml without reading the rest of it as
// TOML: a line of its own each, as flyctl writes them. 0 and "" when they are not
// there.
func flyToml(file io.Reader) (internalPort int, envPort string) {
	section := ""
	for lines := bufio.NewScanner(file); lines.Scan(); {
		line, _, _ := strings.Cut(lines.Text(), "#")
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = strings.Trim(line, "[] ")
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			continue
		}
		key, value = strings.Trim(key, " \t\"'"), strings.Trim(value, " \t\"'")
		switch {
		case key == "internal_port" && internalPort == 0:
			internalPort = validPort(value)
		case section == "env" && key == "PORT" && validPort(value) > 0:
			envPort = value
		}
	}
	return internalPort, envPort
}

// validPort is the port that s names, or 0.
func validPort(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > 65535 {
		return 0
	}
	return n
}
