package agent

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/posternhq/postern/agent/doctor"
	"github.com/posternhq/postern/agent/platform"
	"github.com/posternhq/postern/agent/proc"
	"github.com/posternhq/postern/agent/run"
	"github.com/posternhq/postern/protocol"
)

// Visiting is a look at an app that somebody else has started: in a dyno, from a
// shell beside it.
type Visiting struct {
	At        platform.Platform
	ReadyPath string
	Env       []string // our own; default os.Environ()
}

// ErrNoApp says that there is nothing to look at.
var ErrNoApp = errors.New("there is no app to look at here: PORT is not set")

// Visit examines the app that runs here. Who listens on PORT is the app, else who
// listens at all, where our environment or its own says that this is a platform and
// not somebody's machine full of other programs. Its own counts before ours, since a
// shell that was opened beside an app often has another one.
func Visit(ctx context.Context, cfg Visiting) (*Rehearsal, error) {
	if cfg.Env == nil {
		cfg.Env = os.Environ()
	}
	get := lookupIn(run.ChildEnv(cfg.Env))
	value, _ := get("PORT")
	app, found := findApp(validPort(value), func(pid int) bool {
		return cfg.At.Name != "" || validPort(value) > 0 || platform.Detect(lookupIn(environOf(pid)), noHostname).Name != ""
	})
	if env := environOf(app.PID); found && env != nil {
		get = lookupIn(env)
		value, _ = get("PORT")
		cfg.At = platform.Detect(get, os.Hostname)
	}
	if !found && validPort(value) == 0 {
		return nil, ErrNoApp
	}
	place := doctor.Place{
		Platform: cfg.At.Name, Process: cfg.At.Process, Port: validPort(value), PortVar: value, Serves: true,
		BootLimit: cfg.At.BootLimit, Grace: cfg.At.Grace, Sleeps: cfg.At.Sleeps, ReadyPath: cfg.ReadyPath,
		Env: func(name string) string { v, _ := get(name); return v },
	}
	dir, _ := os.Readlink(procPath(app.PID, "cwd")) // "" is our own
	d := doctor.New(doctor.Config{Place: place, Command: app.Args, Dir: dir,
		Child: func() (int, *protocol.Exit) { return app.PID, nil }})
	ctx, cancel := context.WithTimeout(ctx, examineTime)
	defer cancel()
	seen := d.Examine(ctx)
	if err := ctx.Err(); errors.Is(err, context.Canceled) {
		return nil, err
	}
	var notes []string
	if cfg.At.Sleeps != "" {
		notes = []string{"Depending on the plan: " + cfg.At.Sleeps + ". See PORT20."}
	}
	return &Rehearsal{
		Notes:    notes,
		Platform: cfg.At.Name, Process: cfg.At.Process, Port: place.Port,
		Ready: isReady(seen), Findings: append([]protocol.Finding{}, seen.Findings.List...),
	}, nil
}

// findApp finds the app's first process: whose listener has port, else the first
// who has any and is likely, and from there up to where its process group began. A shell's job is
// a group, and so is what a wrapper starts.
func findApp(port int, likely func(pid int) bool) (proc.Process, bool) {
	sockets, err := proc.Listeners()
	if err != nil {
		return proc.Process{}, false
	}
	everybody := map[int]proc.Process{}
	for _, root := range []int{1, os.Getpid()} {
		tree, _ := proc.Tree(root) // what could be read is used
		for _, p := range tree {
			everybody[p.PID] = p
		}
	}
	ours := map[int]bool{}
	for pid := os.Getpid(); pid > 1 && !ours[pid]; pid = everybody[pid].PPID {
		ours[pid] = true
	}
	best := 0
	for _, s := range sockets {
		if s.PID == 0 || ours[s.PID] || everybody[s.PID].Name == "sshd" {
			continue
		}
		if port > 0 && int(s.Local.Port()) == port {
			best = s.PID
			break
		}
		if (best == 0 || s.PID < best) && likely(s.PID) {
			best = s.PID
		}
	}
	app, ok := everybody[best]
	for ok {
		parent, known := everybody[app.PPID]
		if !known || parent.Group != app.Group || ours[parent.PID] {
			break
		}
		app = parent
	}
	return app, ok
}

// maxEnviron is far above any environment that execve takes for one variable.
const maxEnviron = 1 << 20

// environOf is the environment that a process was started with; nil when it cannot
// be read. It is for looking up, and never shown.
func environOf(pid int) []string {
	f, err := os.Open(procPath(pid, "environ"))
	if err != nil {
		return nil
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxEnviron))
	if err != nil || len(raw) == 0 {
		return nil
	}
	return strings.Split(strings.TrimRight(string(raw), "\x00"), "\x00")
}

func procPath(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}
