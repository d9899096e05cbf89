package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// callFlags are the flags of a verb about calls or the manifest. Like those of the
// events commands, they may stand between and behind the arguments; their variables
// have the name of the verb's group: --since of egress is POSTERN_EGRESS_SINCE.
type callFlags struct {
	*eventFlags
	prefix string // of the variables
}

// newCallFlags are those of a verb that is about one app, or about all.
func newCallFlags(v eventVerb) *callFlags {
	return &callFlags{eventFlags: newAppFlags(v), prefix: groupPrefix(v)}
}

// newManifestFlags are those of a verb about the manifest, which is of all apps.
func newManifestFlags(v eventVerb) *callFlags {
	f := &eventFlags{flags: newRelayFlags(v.name, v.about), verb: v, app: new(string)}
	return &callFlags{eventFlags: f, prefix: groupPrefix(v)}
}

func groupPrefix(v eventVerb) string {
	group, _, _ := strings.Cut(v.name, " ")
	return "POSTERN_" + strings.ToUpper(group) + "_"
}

// noted gives a flag of the verb's own its variable and its place in the help.
func (f *callFlags) noted(name string) string {
	f.order = append(f.order, name)
	f.env[name] = f.prefix + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
	return name
}

func (f *callFlags) str(name, about string) *string { return f.String(f.noted(name), "", about) }

func (f *callFlags) yes(name, about string) *bool { return f.Bool(f.noted(name), false, about) }

func (f *callFlags) value(name, about string, parse func(string) error) {
	f.Func(f.noted(name), about, parse)
}

// number is a flag with a whole number from low to high; 0 when it is not given.
func (f *callFlags) number(name, about string, low, high int64) *int64 {
	n := new(int64)
	f.value(name, about, func(s string) (err error) {
		if *n, err = strconv.ParseInt(s, 10, 64); err != nil || *n < low || *n > high {
			return fmt.Errorf("expected a number from %d to %d", low, high)
		}
		return nil
	})
	return n
}

// span is a flag with a time such as 1h or 7d; 0 when it is not given.
func (f *callFlags) span(name, about string) *time.Duration {
	d := new(time.Duration)
	f.value(name, about, func(s string) (err error) {
		*d, err = timeSpan(s)
		return err
	})
	return d
}

// moment is a flag with a time in the past: how long ago, or when. It is zero when
// it is not given.
func (f *callFlags) moment(c *console, name, about string) *time.Time {
	t := new(time.Time)
	f.value(name, about, func(s string) (err error) {
		if *t, err = when(s, c.now(), c.zone); err == nil && t.After(c.now()) {
			err = errors.New("that is in the future")
		}
		return err
	})
	return t
}

// longestSpan is the relay's own limit, of orders and of looking back.
const longestSpan = 366 * 24 * time.Hour

// timeSpan reads 90s, 1h30m, 7d or 1d12h, as the manifest has it.
func timeSpan(s string) (time.Duration, error) {
	wrong := errors.New("expected a time such as 30m, 1h or 7d")
	var days time.Duration
	rest := s
	if before, after, ok := strings.Cut(s, "d"); ok {
		n, err := strconv.ParseUint(before, 10, 16)
		if err != nil {
			return 0, wrong
		}
		days, rest = time.Duration(n)*24*time.Hour, after
	}
	var d time.Duration
	if rest != "" || days == 0 {
		var err error
		if d, err = time.ParseDuration(rest); err != nil {
			return 0, wrong
		}
	}
	switch d += days; {
	case d <= 0:
		return 0, errors.New("expected a time above zero, such as 30m, 1h or 7d")
	case d > longestSpan:
		return 0, errors.New("expected at most 366 days")
	}
	return d, nil
}

// only is the only argument; what is its name in errors and example a whole command.
func (f *callFlags) only(what, example string) (string, error) {
	switch {
	case len(f.args) == 0:
		return "", usagef("which %s? %s", what, example)
	case len(f.args) > 1:
		return "", usagef("%s takes one %s, got %q besides; see postern %[1]s --help", f.Name(), what, f.args[1])
	}
	return f.args[0], nil
}

// api makes the client, after a look at --app.
func (f *callFlags) api() (*apiClient, error) {
	if err := checkApp(*f.app); err != nil {
		return nil, err
	}
	client, err := f.apiFor()
	if err == nil {
		client.about, _, _ = strings.Cut(f.Name(), " ")
	}
	return client, err
}

// parseAlone is parse of a verb that takes no arguments, and the way to the relay.
func (f *callFlags) parseAlone(c *console, args []string) (*apiClient, error) {
	if err := f.parse(c.out, args); err != nil {
		return nil, err
	}
	if err := f.none(); err != nil {
		return nil, err
	}
	return f.api()
}

// administrator adds to a refusal that the call takes a token of an administrator,
// when that is what is missing.
func (c *apiClient) administrator(err error) error {
	var refused *refusedError
	if !errors.As(err, &refused) {
		return err
	}
	const command = "postern-relay token create --scope admin\nand put it into POSTERN_TOKEN."
	scope, app := tokenClaims(c.token)
	switch {
	case refused.status == http.StatusUnauthorized:
		refused.hint = "Make a new one with: " + command
	case refused.status != http.StatusForbidden:
	case scope != "admin":
		refused.hint = "This takes an administrator's token; make one with: " + command
	case app != "":
		refused.hint = "The token is for the app " + app + " alone; make one for all with: " + command
	}
	return err
}

// ask calls the API and reads the answer into v. Ctrl-C ends it.
func (c *console) ask(ctx context.Context, client *apiClient, r apiRequest, v any) error {
	ctx, stop := c.interruptible(ctx)
	defer stop()
	var limit int64 = maxAnswer
	if r.path[0] == "manifest" {
		limit = maxVersion
	}
	return client.call(ctx, r, v, limit)
}

// order asks for what only an administrator may have done.
func (c *console) order(ctx context.Context, client *apiClient, r apiRequest, v any) error {
	return client.administrator(c.ask(ctx, client, r, v))
}

// factList is names and texts below each other; those without a text are left out.
func (c *console) factList(facts []fact) string {
	width := 0
	for _, f := range facts {
		if f.text != "" {
			width = max(width, len(f.name))
		}
	}
	var b strings.Builder
	for _, f := range facts {
		if f.text == "" {
			continue
		}
		lines := wrap(f.text, c.width()-width-4)
		for i := range lines {
			lines[i] = paint(c.color, f.color, lines[i])
		}
		fmt.Fprintf(&b, "  %s  %s\n", paint(c.color, dim, fmt.Sprintf("%-*s", width, f.name)),
			strings.Join(lines, "\n"+strings.Repeat(" ", width+4)))
	}
	return b.String()
}

// fact is one line of a page.
type fact struct{ name, text, color string }

// verdictColor is that of allow, report and deny.
func verdictColor(verdict string) string {
	switch verdict {
	case "allow":
		return green
	case "report":
		return yellow
	case "deny":
		return red
	}
	return plain
}

// volume is n bytes as people say it, of what may be very much.
func volume(n int64) string {
	switch {
	case n < 1e9:
		return size(n)
	case n < 1e12:
		return fmt.Sprintf("%.1f GB", float64(n)/1e9)
	}
	return fmt.Sprintf("%.1f TB", float64(n)/1e12)
}
