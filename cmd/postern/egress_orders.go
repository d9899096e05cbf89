package main

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/posternhq/postern/protocol/api"
)

var denyVerb = eventVerb{
	name: "egress deny", about: "refuse a host, a range or an app at once, for a time", usage: "[flags] HOST|CIDR|app:NAME",
	examples: `postern egress deny api.evil.example --for 1h --reason "key leaked, see INC-12"
postern egress deny '*.evil.example' --for 1d --reason "same people"
postern egress deny 198.51.100.0/24 --for 1h --reason "botnet"
postern egress deny app:shop --for 30m --reason "compromised"
postern egress deny --list
postern egress deny --end den_06fg3v9k2w`,
	notes: `It beats every allow line, cuts the calls that are under way, and ends by itself.
Unless --app is given it holds for all apps; POSTERN_APP is not looked at, so that
nothing narrows it unseen.`,
	run: func(ctx context.Context, c *console, v eventVerb, args []string) (int, error) {
		return runOrders(ctx, c, v, args, "deny")
	},
}

var allowVerb = eventVerb{
	name: "egress allow", about: "an exception: one more line of an app's allow list, for a time", usage: "[flags] TARGET",
	examples: `postern egress allow https://api.new.example --app shop --for 24h --owner ann --reason "trial, PR 123 follows"
postern egress allow tcp://db.partner.example:5432 --app shop --for 2h --owner ann --reason "repair"
postern egress allow --list
postern egress allow --end exc_06fg3v9k2w`,
	notes: `TARGET is https://host, http://host or tcp://host:port, as in the manifest; a host
alone is https://. It relaxes no deny and no rule about addresses. Before it ends,
postern egress status and the relay's log warn; for good it belongs in the manifest.`,
	run: func(ctx context.Context, c *console, v eventVerb, args []string) (int, error) {
		return runOrders(ctx, c, v, args, "allow")
	},
}

// orderFlags are those of deny and allow.
type orderFlags struct {
	*callFlags
	kind      string // deny, allow
	length    *time.Duration
	reason    *string
	owner     *string // nil: deny
	list, all *bool
	end       *string
}

func newOrderFlags(v eventVerb, kind string) *orderFlags {
	f := &orderFlags{callFlags: newCallFlags(v), kind: kind}
	f.length = f.span("for", "end by itself after `TIME`: 30m, 1h, 7d")
	f.reason = f.str("reason", "why, as a `TEXT` for whoever is refused or asks later")
	if kind == "allow" {
		f.owner = f.str("owner", "`WHO` is asked about it; default: whose token this is")
	} else {
		f.env["app"], f.Lookup("app").Usage = f.prefix+"DENY_APP", "only the calls of this app; default: of all"
	}
	f.list = f.yes("list", "show those in force")
	f.all = f.yes("all", "with --list: also those that are over")
	f.end = f.str("end", "end the one with this `ID` now")
	f.asJSON("print it as the API has it; with --list an array")
	return f
}

// runOrders is postern egress deny and postern egress allow.
func runOrders(ctx context.Context, c *console, v eventVerb, args []string, kind string) (int, error) {
	f := newOrderFlags(v, kind)
	if err := f.parse(c.out, args); err != nil {
		return exitUsage, err
	}
	if err := f.check(); err != nil {
		return exitUsage, err
	}
	client, err := f.api()
	if err != nil {
		return exitUsage, err
	}
	switch {
	case *f.list:
		return listOrders(ctx, c, client, f)
	case *f.end != "":
		var o api.Order
		err := c.order(ctx, client, apiRequest{method: http.MethodPost, path: []string{"egress", "orders", *f.end, "end"}}, &o)
		if err != nil {
			return exitFailed, err
		}
		return f.print(c, &o, line(o.ID)+" is over: "+c.orderWords(&o)+" no more")
	}
	req, err := f.request(client)
	if err != nil {
		return exitUsage, err
	}
	var o api.Order
	if err := c.order(ctx, client, apiRequest{method: http.MethodPost, path: []string{"egress", "orders"}, body: req}, &o); err != nil {
		return exitFailed, err
	}
	code, err := f.print(c, &o, c.madeWords(&o))
	if err == nil && !*f.json && c.errTerminal {
		c.say("to end it before: postern egress %s --end %s", kind, line(o.ID))
	}
	return code, err
}

func (f *orderFlags) print(c *console, o *api.Order, text string) (int, error) {
	if *f.json {
		return exitOK, c.printData(o, true)
	}
	fmt.Fprintln(c.out, text)
	return exitOK, nil
}

// check refuses flags that exclude one another.
func (f *orderFlags) check() error {
	makes := len(f.args) > 0 || *f.length != 0 || *f.reason != "" || f.owner != nil && *f.owner != ""
	switch {
	case *f.list && *f.end != "":
		return usagef("--list and --end exclude one another")
	case *f.all && !*f.list:
		return usagef("--all is for --list")
	case *f.list && makes:
		return usagef("--list shows what is in force; it goes with --all and --app only")
	case *f.end != "" && makes:
		return usagef("--end takes the id of one that is in force, and nothing else")
	case *f.end != "":
		return checkID(*f.end, map[string]string{"deny": "den_", "allow": "exc_"}[f.kind])
	}
	return nil
}

// request is the order that the flags ask for. The errors say what is missing.
func (f *orderFlags) request(client *apiClient) (*api.OrderRequest, error) {
	example := "postern egress deny api.evil.example --for 1h --reason TEXT"
	what := "host, range or app"
	if f.kind == "allow" {
		example, what = "postern egress allow https://api.example.com --app NAME --for 24h --owner WHO --reason TEXT", "target"
	}
	target, err := f.only(what, example)
	if err != nil {
		return nil, err
	}
	if f.kind == "allow" {
		target, err = callURL(target)
	} else {
		err = checkDeny(target, *f.app)
	}
	if err != nil {
		return nil, err
	}
	req := &api.OrderRequest{Kind: f.kind, App: *f.app, What: target, ForMS: f.length.Milliseconds(), Reason: strings.TrimSpace(*f.reason)}
	switch {
	case *f.length == 0:
		return nil, usagef("for how long? --for 1h; it ends by itself")
	case req.Reason == "":
		return nil, usagef("why? --reason TEXT; it is shown to whoever is concerned, and kept")
	case f.owner == nil:
		return req, nil
	}
	req.Owner = strings.TrimSpace(*f.owner)
	if req.App = client.tokenApp(); req.App == "" {
		return nil, usagef("for which app? --app NAME; an exception is for one app")
	}
	return req, nil
}

// checkDeny catches what is likely to be meant otherwise. All else is the relay's
// to judge.
func checkDeny(what, app string) error {
	if name, ok := strings.CutPrefix(what, "app:"); ok {
		if name == "" {
			return usagef("which app? postern egress deny app:NAME …")
		}
		if app != "" && app != name {
			return usagef("app:%s and --app %s name different apps", line(name), app)
		}
		return checkApp(name)
	}
	if _, rest, ok := strings.Cut(what, "://"); ok {
		host, _, _ := strings.Cut(rest, "/")
		host = host[strings.LastIndex(host, "@")+1:] // what stands before it may be a password
		return usagef("deny takes a host, a range or app:NAME, and no URL: postern egress deny %s …", line(host))
	}
	if _, err := netip.ParseAddr(what); err == nil || !strings.Contains(what, "/") {
		return nil
	}
	prefix, err := netip.ParsePrefix(what)
	switch {
	case err != nil:
		return usagef("%q is neither a host nor a range such as 198.51.100.0/24", what)
	case prefix != prefix.Masked():
		return usagef("%s has bits below its mask: %s or %s?", prefix, prefix.Masked(), prefix.Addr())
	}
	return nil
}

// listOrders is --list.
func listOrders(ctx context.Context, c *console, client *apiClient, f *orderFlags) (int, error) {
	query := url.Values{}
	if *f.all {
		query.Set("all", "true")
	}
	var list api.OrderList
	if err := c.ask(ctx, client, apiRequest{path: []string{"egress", "orders"}, query: query}, &list); err != nil {
		return exitFailed, err
	}
	orders := []api.Order{}
	for _, o := range list.Orders {
		if o.Kind == f.kind && (*f.app == "" || o.App == "" || o.App == *f.app) {
			orders = append(orders, o)
		}
	}
	if *f.json {
		return exitOK, c.printData(orders, true)
	}
	if len(orders) == 0 {
		name := map[string]string{"deny": "emergency deny", "allow": "exception"}[f.kind]
		c.say("no %s is in force%s", name, map[bool]string{true: ", and the relay knows of none before", false: ""}[*f.all])
		return exitOK, nil
	}
	c.orderTable(orders).write(c.out, c.width(), c.color)
	return exitOK, nil
}

func (c *console) orderTable(orders []api.Order) *table {
	t := &table{columns: []column{
		{title: "ID"}, {title: "WHAT", min: 12}, {title: "APP", min: 5}, {title: "STATE"}, {title: "SINCE", drop: 2},
		{title: "BY", min: 6, drop: 3}, {title: "OWNER", min: 5, drop: 1}, {title: "REASON", min: 12},
	}}
	for _, o := range orders {
		state, color := "over", dim
		switch {
		case o.Live:
			state, color = span(max(o.Until.Sub(c.now()), 0))+" left", green
		case !o.EndedAt.IsZero():
			state = "ended " + c.clock(o.EndedAt)
		case !o.Until.IsZero():
			state = "over since " + c.clock(o.Until)
		}
		t.add(cell{line(o.ID), plain}, cell{line(o.What), plain}, cell{appWords(&o), plain}, cell{state, color}, cell{c.clock(o.CreatedAt), plain},
			cell{orDash(line(o.By)), plain}, cell{orDash(line(o.Owner)), plain}, cell{line(o.Reason), plain})
	}
	return t
}

func appWords(o *api.Order) string {
	if o.App == "" {
		return "all"
	}
	return line(o.App)
}

// orderWords is what o says.
func (c *console) orderWords(o *api.Order) string {
	what := line(o.What)
	whose := "all apps"
	if o.App != "" {
		whose = line(o.App)
	}
	switch {
	case o.Kind == "allow":
		return whose + " may call " + what
	case strings.HasPrefix(o.What, "app:"):
		return "all calls of " + strings.TrimPrefix(what, "app:") + " are refused"
	}
	return "calls of " + whose + " to " + what + " are refused"
}

// madeWords says what was just made.
func (c *console) madeWords(o *api.Order) string {
	text := fmt.Sprintf("%s: %s for %s, until %s", line(o.ID), c.orderWords(o),
		span(o.Until.Sub(o.CreatedAt).Round(time.Second)), o.Until.In(c.zone).Format("2006-01-02 15:04:05 MST"))
	if o.Kind == "deny" {
		switch o.Cut {
		case 0:
			text += "; none was under way"
		case 1:
			text += "; 1 that was under way was cut"
		default:
			text += fmt.Sprintf("; %d that were under way were cut", o.Cut)
		}
	}
	return text
}
