package main

import (
	"context"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/posternhq/postern/protocol/api"
)

var learnVerb = eventVerb{
	name: "egress learn", about: "the smallest allow list for what an app has called, as YAML for the manifest", usage: "[flags]",
	examples: `postern egress learn --app shop --since 7d
postern egress learn --app shop --since 30d > shop-egress.yaml
postern egress learn --json | jq -r '.rules[] | select(.allowed | not).target'`,
	notes: `Run the app in mode report, or open, for as long as it takes until everything was
called once, then look at the list before you enforce it: what an intruder called is
in it too.`,
	run: learnCalls,
}

// learnDefault is how far back it looks without --since.
const learnDefault = 7 * 24 * time.Hour

// learnCalls is postern egress learn.
func learnCalls(ctx context.Context, c *console, v eventVerb, args []string) (int, error) {
	f := newCallFlags(v)
	since := f.moment(c, "since", "from the calls since `TIME`: 7d, 2026-11-21; default 7d")
	f.asJSON("print the rules, and the YAML, as the API has them")
	client, err := f.parseAlone(c, args)
	if err != nil {
		return exitUsage, err
	}
	if client.tokenApp() == "" {
		return exitUsage, usagef("whose calls? postern egress learn --app NAME")
	}
	if since.IsZero() {
		*since = c.now().Add(-learnDefault)
	}
	var l api.Learned
	query := url.Values{"since": {since.UTC().Format(time.RFC3339)}}
	if err := c.ask(ctx, client, apiRequest{path: []string{"egress", "learn"}, query: query, ofApp: true}, &l); err != nil {
		return exitFailed, err
	}
	if *f.json {
		return exitOK, c.printData(l, true)
	}
	if len(l.Rules) == 0 {
		c.say("%s has called nothing since %s", line(client.tokenApp()), since.In(c.zone).Format("2006-01-02 15:04"))
		return exitOK, nil
	}
	io.WriteString(c.out, strings.TrimRight(printable(l.YAML, "\n"), "\n")+"\n")
	c.sayIncomplete(l.Incomplete)
	fresh := 0
	for _, r := range l.Rules {
		if !r.Allowed {
			fresh++
		}
	}
	if c.errTerminal {
		c.say("%s, of which the running version does not allow %d", count(len(l.Rules), "target"), fresh)
	}
	return exitOK, nil
}

// sayIncomplete warns of an answer that left records out.
func (c *console) sayIncomplete(yes bool) {
	if yes {
		c.say("not all is in this: there are more records than the relay looks at; ask for less time, or for one app")
	}
}
