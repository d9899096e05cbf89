package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/posternhq/postern/agent"
	"github.com/posternhq/postern/agent/conceal"
	"github.com/posternhq/postern/agent/platform"
	"github.com/posternhq/postern/protocol"
)

// flags is a flag.FlagSet whose flags have environment variables: a flag beats
// its variable, the variable beats the default.
type flags struct {
	*flag.FlagSet
	env  map[string]string // flag → variable
	help func()            // prints what the flags are

	// lenient: a variable with a mistake is a line in the log, not the end. What is
	// typed on the command line is seen by whoever typed it; a variable may break a
	// deploy.
	lenient bool
	faults  []error // of the variables, when lenient

	logFormat, logLevel, relay *string

	// Of an agent only.
	instance *string
	tunnels  *int
	grace    *time.Duration
	token    string

	// Of an agent with a way out only; nil otherwise.
	egressListen *string
	forward      *list
}

// errHelp says that help was asked for and printed.
var errHelp = errors.New("help was printed")

// newFlags are those of a verb that is an agent.
func newFlags(name, about string) *flags {
	f := newRelayFlags(name, about)
	f.instance = f.text("instance", "POSTERN_INSTANCE", "", "which copy of the app this is; default from the platform, else the host name")
	f.env["tunnels"] = "POSTERN_TUNNELS"
	f.tunnels = f.Int("tunnels", agent.DefaultTunnels, "connections to hold open to the relay")
	f.env["grace"] = "POSTERN_GRACE"
	f.grace = f.Duration("grace", 0, "time from SIGTERM to the platform's SIGKILL; default from the platform, else 10s")
	return f
}

// newRelayFlags are those of every verb that speaks to a relay.
func newRelayFlags(name, about string) *flags {
	f := &flags{FlagSet: flag.NewFlagSet(name, flag.ContinueOnError), env: map[string]string{}}
	f.help = func() {
		fmt.Fprintf(f.Output(), "postern %s: %s\n\nThe token comes from POSTERN_TOKEN.\n\n", name, about)
		f.VisitAll(f.describe)
	}
	f.logFormat = f.text("log-format", "POSTERN_LOG_FORMAT", "text", "text or json")
	f.logLevel = f.text("log-level", "POSTERN_LOG_LEVEL", "info", "debug, info, warn or error")
	f.relay = f.text("relay", "POSTERN_RELAY", "", "URL of the relay, https://…")
	return f
}

func (f *flags) describe(fl *flag.Flag) {
	line := "  --" + fl.Name
	if v := f.env[fl.Name]; v != "" {
		line += " (" + v + ")"
	}
	fmt.Fprintf(f.Output(), "%s\n      %s", line, fl.Usage)
	if fl.DefValue != "" && fl.DefValue != "0s" {
		fmt.Fprintf(f.Output(), "; default %s", fl.DefValue)
	}
	fmt.Fprintln(f.Output())
}

func (f *flags) text(name, env, def, about string) *string {
	f.env[name] = env
	return f.String(name, def, about)
}

// yes is a flag that is on or off.
func (f *flags) yes(name, env, about string) *bool {
	f.env[name] = env
	return f.Bool(name, false, about)
}

// list is a flag that may be given several times, or once with commas.
type list []string

func (l *list) String() string {
	if l == nil {
		return ""
	}
	return strings.Join(*l, ",")
}

// Set adds what s lists; the empty text takes everything away.
func (l *list) Set(s string) error {
	if s == "" {
		*l = nil
	}
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part != "" {
			*l = append(*l, part)
		}
	}
	return nil
}

func (f *flags) listed(name, env, about string) *list {
	f.env[name] = env
	l := new(list)
	f.Var(l, name, about)
	return l
}

// parse reads args and then the environment.
func (f *flags) parse(args []string) error {
	// Help that was asked for goes to standard output; a mistake is reported by
	// the caller, without the whole list.
	f.Usage = func() {}
	f.SetOutput(io.Discard)
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		f.SetOutput(os.Stdout)
		f.help()
		return errHelp
	} else if err != nil {
		return usageError{err}
	}
	return f.environment()
}

// check looks at a value that its type does not.
func (f *flags) check(name string) error {
	switch {
	case name == "log-level" && new(slog.Level).UnmarshalText([]byte(*f.logLevel)) != nil:
		return errors.New("expected debug, info, warn or error")
	case name == "log-format" && *f.logFormat != "text" && *f.logFormat != "json":
		return errors.New("expected text or json")
	case name == "grace" && f.grace != nil && *f.grace < 0:
		return errors.New("expected a time that is not negative")
	case name == "forward" && f.forward != nil:
		_, err := f.namedForwards()
		return err
	case name == "tunnels" && f.tunnels != nil && (*f.tunnels < 1 || *f.tunnels > protocol.MaxTunnels):
		return fmt.Errorf("expected 1 to %d", protocol.MaxTunnels)
	}
	return nil
}

// environment sets the flags that were not given and have a variable.
func (f *flags) environment() error {
	given := map[string]bool{}
	var wrong error
	f.Visit(func(fl *flag.Flag) {
		given[fl.Name] = true
		if err := f.check(fl.Name); err != nil && wrong == nil {
			wrong = usagef("--%s %q: %w", fl.Name, fl.Value, err)
		}
	})
	if wrong != nil {
		return wrong
	}
	for name, env := range f.env {
		if v := os.Getenv(env); v != "" && !given[name] {
			err := f.Set(name, v)
			if err == nil {
				err = f.check(name)
			}
			if err != nil && f.lenient {
				fl := f.Lookup(name)
				f.Set(name, fl.DefValue)
				f.faults = append(f.faults, fmt.Errorf("%s=%q is not used: %w", env, v, err))
			} else if err != nil {
				return usagef("%s=%q: %w", env, v, err)
			}
		}
	}
	return nil
}

// logger makes the log on standard error.
func (f *flags) logger() (*slog.Logger, error) { return f.loggerTo(os.Stderr) }

func (f *flags) loggerTo(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(*f.logLevel)); err != nil {
		return nil, usagef("--log-level %q: expected debug, info, warn or error", *f.logLevel)
	}
	opts := &slog.HandlerOptions{Level: level}
	switch *f.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)).With("by", "postern"), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)).With("by", "postern"), nil
	}
	return nil, usagef("--log-format %q: expected text or json", *f.logFormat)
}

// whereFrom is the platform, with the flags' word above its own.
func (f *flags) whereFrom() platform.Platform {
	p := platform.Detect(os.LookupEnv, os.Hostname)
	if *f.instance != "" {
		p.Instance = *f.instance
	}
	if *f.grace > 0 {
		p.Grace = *f.grace
	}
	return p
}

// agentConfig is what the agent of target needs. The error says what is missing.
func (f *flags) agentConfig(target string, p platform.Platform, log *slog.Logger) (agent.Config, error) {
	switch {
	case *f.relay == "":
		return agent.Config{}, errors.New("POSTERN_RELAY is not set: which relay?")
	case f.token == "":
		return agent.Config{}, errors.New("POSTERN_TOKEN is not set; make one with: postern-relay token create --app NAME --scope agent")
	}
	if u, err := url.Parse(*f.relay); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		shown := *f.relay
		if strings.Contains(shown, "@") {
			shown = "with a user in it" // and a password
		}
		return agent.Config{}, fmt.Errorf("POSTERN_RELAY %q: expected https://host", shown)
	}
	return agent.Config{
		Relay: *f.relay, Token: f.token, Target: target, Tunnels: *f.tunnels, Env: os.Getenv, Logger: log,
		Hello: protocol.Hello{
			Agent: "postern/" + version, Instance: clean(p.Instance), BootID: platform.NewBootID(),
			Platform: clean(p.Name), Process: clean(p.Process), Release: clean(p.Release), Commit: clean(p.Commit), Region: clean(p.Region),
		},
	}, nil
}

// takeToken takes the token out of everybody's sight, which may start the program
// anew. Call it before anything else has begun.
func (f *flags) takeToken() (warning error) {
	f.token, warning = conceal.Token()
	return warning
}

// clean makes a name of the platform's fit for the protocol: printable ASCII, at
// most 128 bytes. A strange host name must not keep an app from its relay.
func clean(s string) string {
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s) && len(out) < 128; i++ {
		if s[i] >= 0x20 && s[i] < 0x7f {
			out = append(out, s[i])
		}
	}
	return string(out)
}

// stopAgent ends an agent whose app is not ours to end: nothing new, then what
// is in flight, then the tunnels.
func stopAgent(a *agent.Agent, grace time.Duration, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), max(grace-time.Second, grace/2))
	defer cancel()
	if err := a.Drain(ctx, "agent stops", grace); err != nil {
		log.Warn("relay could not be told", "err", err)
	}
	if err := a.WaitIdle(ctx); err != nil {
		log.Warn("requests cut off by the end of the grace period")
	}
	a.Close()
}
