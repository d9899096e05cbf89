package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"time"
)

// eventFlags are the flags of one of the events commands. Unlike those of the
// agent, they may stand between and behind the arguments.
type eventFlags struct {
	*flags
	verb  eventVerb
	order []string // of the verb's own flags in its help
	args  []string // what is no flag

	app  *string
	json *bool // nil: the verb prints no data
}

func newEventFlags(v eventVerb) *eventFlags {
	f := &eventFlags{flags: newRelayFlags("events "+v.name, v.about), verb: v}
	f.app = f.text("app", "POSTERN_APP", "", "whose events; default: the token's app")
	return f
}

// variable is the environment variable of the flag name.
func variable(name string) string {
	return "POSTERN_EVENTS_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// own notes a flag of the verb's own.
func (f *eventFlags) own(name string) {
	f.order, f.env[name] = append(f.order, name), variable(name)
}

func (f *eventFlags) str(name, about string) *string {
	f.own(name)
	return f.String(name, "", about)
}

func (f *eventFlags) yes(name, about string) *bool {
	f.own(name)
	return f.Bool(name, false, about)
}

// value is a flag that parse reads.
func (f *eventFlags) value(name, about string, parse func(string) error) {
	f.own(name)
	f.Func(name, about, parse)
}

// asJSON gives the verb the flag --json.
func (f *eventFlags) asJSON(about string) {
	f.order, f.env["json"] = append(f.order, "json"), "POSTERN_JSON"
	f.json = f.Bool("json", false, about)
}

// parse reads args, in which flags and arguments are mixed, and the environment.
// Help goes to out.
func (f *eventFlags) parse(out io.Writer, args []string) error {
	f.Usage = func() {}
	f.SetOutput(io.Discard)
	for {
		if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
			f.printHelp(out)
			return errHelp
		} else if err != nil {
			return f.mistake(err)
		}
		rest := f.Args()
		if used := len(args) - len(rest); used > 0 && args[used-1] == "--" {
			f.args = append(f.args, rest...)
			break
		}
		if len(rest) == 0 {
			break
		}
		f.args, args = append(f.args, rest[0]), rest[1:]
	}
	return f.environment()
}

// mistake puts the flag package's error into the words of the rest.
func (f *eventFlags) mistake(err error) error {
	text := err.Error()
	see := "; see postern " + f.Name() + " --help"
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: -"); ok {
		name = strings.TrimPrefix(name, "-")
		like := ""
		f.VisitAll(func(fl *flag.Flag) {
			if like == "" && (strings.HasPrefix(fl.Name, name) || strings.HasPrefix(name, fl.Name) && len(fl.Name) > 2) {
				like = "; did you mean --" + fl.Name + "?"
			}
		})
		return usagef("there is no flag --%s%s%s", name, like, see)
	}
	if name, ok := strings.CutPrefix(text, "flag needs an argument: -"); ok {
		return usagef("--%s needs a value%s", strings.TrimPrefix(name, "-"), see)
	}
	// invalid value "x" for flag -limit: why; of a bool there is no "flag"
	text = strings.Replace(strings.Replace(text, "invalid boolean value", "invalid value", 1), `" for -`, `" for flag -`, 1)
	if rest, ok := strings.CutPrefix(text, "invalid value "); ok {
		if value, rest, ok := strings.Cut(rest, " for flag -"); ok {
			name, why, _ := strings.Cut(rest, ": ")
			why = strings.Replace(why, "parse error", "expected true or false", 1)
			return usagef("--%s %s: %s", name, value, why)
		}
	}
	return usageError{err}
}

// none refuses arguments.
func (f *eventFlags) none() error {
	if len(f.args) > 0 {
		return usagef("%s takes no arguments, got %q; see postern %[1]s --help", f.Name(), f.args[0])
	}
	return nil
}

// one is the only argument, the id of an event.
func (f *eventFlags) one() (string, error) {
	switch {
	case len(f.args) == 0:
		return "", usagef("which event? postern %s evt_…; postern events list has their ids", f.Name())
	case len(f.args) > 1:
		return "", usagef("%s takes one event, got %q besides", f.Name(), f.args[1])
	}
	return f.args[0], checkID(f.args[0], "evt_")
}

// checkID refuses what cannot be an id, before it becomes part of a URL.
func checkID(id string, prefixes ...string) error {
	for _, prefix := range prefixes {
		if rest, ok := strings.CutPrefix(id, prefix); ok && rest != "" && strings.Trim(rest, "0123456789abcdefghijklmnopqrstuvwxyz") == "" {
			return nil
		}
	}
	return usagef("%q is not an id; expected %s…", id, strings.Join(prefixes, "… or "))
}

// printHelp is short: what it does, examples, flags.
func (f *eventFlags) printHelp(w io.Writer) {
	var b strings.Builder
	fmt.Fprintf(&b, "postern %s: %s\n\nUsage: postern %s %s\n\n%s\n", f.Name(), f.verb.about, f.Name(), f.verb.usage, indent(f.verb.examples, "  "))
	if f.verb.notes != "" {
		fmt.Fprintf(&b, "\n%s\n", f.verb.notes)
	}
	b.WriteString("\nFlags:\n")
	for _, name := range f.order {
		behind := ""
		if f.env[name] != variable(name) {
			behind = " (" + f.env[name] + ")"
		}
		f.describeShort(&b, name, behind)
	}
	b.WriteString("\nConnection; the token comes from POSTERN_TOKEN:\n")
	for _, name := range []string{"relay", "app", "log-level", "log-format"} {
		if f.Lookup(name) == nil {
			continue // the manifest is of all apps
		}
		f.describeShort(&b, name, " ("+f.env[name]+")")
	}
	if first := f.order[0]; f.env[first] == variable(first) {
		fmt.Fprintf(&b, "\nEvery other flag has a variable too: --%s is %s.\n", first, f.env[first])
	}
	io.WriteString(w, b.String())
}

func (f *eventFlags) describeShort(b *strings.Builder, name, behind string) {
	fl := f.Lookup(name)
	value, about := flag.UnquoteUsage(fl)
	left := "--" + name
	if name == "output" {
		left = "-o, --output"
	}
	if _, isBool := fl.Value.(interface{ IsBoolFlag() bool }); !isBool {
		if named := map[string]string{"relay": "URL", "app": "NAME", "log-level": "LEVEL", "log-format": "FORMAT"}[name]; named != "" {
			value = named
		}
		left += " " + value
	}
	if fl.DefValue != "" && fl.DefValue != "false" {
		about += "; default " + fl.DefValue
	}
	fmt.Fprintf(b, "  %-19s  %s\n", left, strings.Join(wrap(about+behind, 57), "\n"+strings.Repeat(" ", 23)))
}

func indent(text, by string) string {
	return by + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n"+by)
}

// when reads a moment: a time as RFC 3339, "2026-11-21", "2026-11-21 15:04", or
// how long ago it was: 90s, 1h, 7d.
func when(s string, now time.Time, zone *time.Location) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	for _, layout := range []string{"2006-01-02", "2006-01-02 15:04", "2006-01-02 15:04:05", "2006-01-02T15:04", "2006-01-02T15:04:05"} {
		if t, err := time.ParseInLocation(layout, s, zone); err == nil {
			return t, nil
		}
	}
	ago := s
	unit := time.Duration(1)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		ago, unit = days+"h", 24
	}
	// The longest duration is 292 years; unit must not carry it past that.
	if d, err := time.ParseDuration(ago); err == nil && d >= 0 && d < 100*365*24*time.Hour/unit {
		return now.Add(-d * unit), nil
	}
	return time.Time{}, errors.New("expected how long ago (1h, 7d) or a time (2026-11-21, 2026-11-21T15:04:05Z)")
}
