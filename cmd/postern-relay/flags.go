package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
)

// flags is a flag.FlagSet whose flags have environment variables: a flag beats
// its variable, the variable beats the default.
type flags struct {
	*flag.FlagSet
	env  map[string]string // flag → variable
	help func()            // prints what the flags are

	logFormat, logLevel *string
}

func newFlags(name, about string) *flags {
	f := &flags{FlagSet: flag.NewFlagSet(name, flag.ContinueOnError), env: map[string]string{}}
	f.help = func() {
		fmt.Fprintf(f.Output(), "postern-relay %s: %s\n\n", name, about)
		f.VisitAll(f.describe)
	}
	f.logFormat = f.text("log-format", "POSTERN_LOG_FORMAT", "text", "text or json")
	f.logLevel = f.text("log-level", "POSTERN_LOG_LEVEL", "info", "debug, info, warn or error")
	return f
}

func (f *flags) describe(fl *flag.Flag) {
	line := "  --" + fl.Name
	if v := f.env[fl.Name]; v != "" {
		line += " (" + v + ")"
	}
	fmt.Fprintf(f.Output(), "%s\n      %s", line, fl.Usage)
	if fl.DefValue != "" && fl.DefValue != "0" && fl.DefValue != "0s" {
		fmt.Fprintf(f.Output(), "; default %s", fl.DefValue)
	}
	fmt.Fprintln(f.Output())
}

func (f *flags) text(name, env, def, about string) *string {
	f.env[name] = env
	return f.String(name, def, about)
}

// errHelp says that help was asked for and printed.
var errHelp = errors.New("help was printed")

// parse reads args and then the environment, and allows exactly rest further
// arguments, -1 for any number.
func (f *flags) parse(args []string, rest int) error {
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
	given := map[string]bool{}
	f.Visit(func(fl *flag.Flag) { given[fl.Name] = true })
	for name, env := range f.env {
		v, ok := os.LookupEnv(env)
		if env == "" || !ok || v == "" || given[name] {
			continue
		}
		if err := f.Set(name, v); err != nil {
			return usagef("%s=%q: %w", env, v, err)
		}
	}
	if rest >= 0 && f.NArg() != rest {
		return usagef("%s takes %d arguments, got %d: %s", f.Name(), rest, f.NArg(), strings.Join(f.Args(), " "))
	}
	return nil
}

// logger makes the log on standard error.
func (f *flags) logger() (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(*f.logLevel)); err != nil {
		return nil, usagef("--log-level %q: expected debug, info, warn or error", *f.logLevel)
	}
	opts := &slog.HandlerOptions{Level: level}
	switch *f.logFormat {
	case "text":
		return slog.New(slog.NewTextHandler(os.Stderr, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(os.Stderr, opts)), nil
	}
	return nil, usagef("--log-format %q: expected text or json", *f.logFormat)
}
