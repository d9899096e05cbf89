package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/posternhq/postern/agent"
	"github.com/posternhq/postern/agent/platform"
	"github.com/posternhq/postern/protocol"
)

// doctorFlags are those of a verb that speaks to no relay.
type doctorFlags struct {
	*flags
	as, readyPath *string
	wait          *time.Duration
	json, strict  *bool
}

func newDoctorFlags() *doctorFlags {
	f := &doctorFlags{flags: &flags{FlagSet: flag.NewFlagSet("doctor", flag.ContinueOnError), env: map[string]string{}}}
	f.help = func() {
		fmt.Fprint(f.Output(), doctorHelp)
		f.VisitAll(f.describe)
	}
	f.as = f.text("as", "POSTERN_DOCTOR_AS", "", "the platform to behave like: "+strings.Join(platform.Mimics(), ", ")+"; default the one it is run on, else heroku")
	f.readyPath = f.text("ready-path", "POSTERN_READY_PATH", "", "a path that must answer 2xx or 3xx; default: listening is enough")
	f.env["wait"] = "POSTERN_DOCTOR_WAIT"
	f.wait = f.Duration("wait", 0, "how long the app may take to be ready; default the platform's limit, at most 5m")
	f.env["json"] = "POSTERN_JSON"
	f.json = f.Bool("json", false, "print one JSON object")
	f.env["strict"] = "POSTERN_DOCTOR_STRICT"
	f.strict = f.Bool("strict", false, "fail on warnings, too")
	return f
}

const doctorHelp = `postern doctor: find out why a deploy does not come up, before it does or while it does not

  postern doctor -- node server.js               run the app once as a platform would
  postern doctor --as fly -- ./server            … as that platform would
  postern doctor                                 look at the app that runs here, as in a dyno

The app's output goes to standard error, the report to standard output. The exit
code is 0 when the app is ready and there is no error, else 1; 2 for wrong usage.
What the codes mean: ` + doctorDocs + `

`

// doctorDocs is where every code has its section.
const doctorDocs = "https://github.com/posternhq/postern/blob/main/docs/doctor.md"

// runDoctor rehearses a deploy, or looks at the app that runs here.
func runDoctor(ctx context.Context, args []string) (int, error) {
	f := newDoctorFlags()
	if err := f.parse(args); err != nil {
		return exitUsage, err
	}
	if *f.wait < 0 {
		return exitUsage, usagef("--wait %s: expected a time above zero, such as 30s", *f.wait)
	}
	if *f.readyPath != "" && !strings.HasPrefix(*f.readyPath, "/") {
		return exitUsage, usagef("--ready-path %q: expected a path, such as /healthz", *f.readyPath)
	}
	here := platform.Detect(os.LookupEnv, os.Hostname)
	m, err := f.mimicry(here)
	if err != nil {
		return exitUsage, err
	}
	// Nothing of a rehearsal may stay behind, however it ends.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	c := newConsole(nil)
	r, err := f.examine(ctx, c, m, here)
	switch {
	case ctx.Err() != nil:
		return 128 + int(syscall.SIGINT), errors.New("interrupted; the app is gone")
	case errors.Is(err, agent.ErrNoApp):
		return exitUsage, usagef("%w. To run one: postern doctor -- node server.js", err)
	case err != nil:
		return exitFailed, err
	}
	if *f.json {
		e := json.NewEncoder(c.out)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		e.Encode(r) // its error is in c.out
	} else {
		(&doctorPage{console: c, m: m, r: r, rehearsed: f.NArg() > 0}).write()
	}
	if err := c.out.Err(); err != nil && !c.out.gone() {
		return exitFailed, err
	}
	if !r.Ready || r.Has(protocol.SeverityError) || *f.strict && r.Has(protocol.SeverityWarning) {
		return exitFailed, nil
	}
	return exitOK, nil
}

// mimicry is the platform to behave like.
func (f *doctorFlags) mimicry(here platform.Platform) (platform.Mimicry, error) {
	name := *f.as
	if name != "" && f.NArg() == 0 {
		return platform.Mimicry{}, usagef("--as %s needs a command to run: postern doctor --as %s -- node server.js", name, name)
	}
	if name == "" {
		name = here.Name
	}
	if name == "" {
		name = platform.Heroku
	}
	m, ok := platform.Mimic(name)
	if !ok {
		return m, usagef("--as %q: expected one of %s", name, strings.Join(platform.Mimics(), ", "))
	}
	return m, nil
}

// examine does what the command line asks for.
func (f *doctorFlags) examine(ctx context.Context, c *console, m platform.Mimicry, here platform.Platform) (*agent.Rehearsal, error) {
	say := func(text string) { c.say("%s", paint(c.errColor, dim, "postern: "+line(text))) }
	if f.NArg() == 0 {
		return agent.Visit(ctx, agent.Visiting{At: here, ReadyPath: *f.readyPath})
	}
	say(fmt.Sprintf("running %s as %s would", f.Arg(0), m.Says))
	return agent.Rehearse(ctx, agent.Rehearsing{
		As: m, Command: f.Args(), Wait: *f.wait, ReadyPath: *f.readyPath, Output: c.errs, Said: say,
	})
}
