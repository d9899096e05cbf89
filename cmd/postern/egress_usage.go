package main

import (
	"context"
	"net/url"
	"strconv"
	"time"

	"github.com/posternhq/postern/protocol/api"
)

var usageVerb = eventVerb{
	name: "egress usage", about: "calls and bytes by app, target and rule", usage: "[flags]",
	examples: `postern egress usage --since 24h
postern egress usage --app shop --since 30d
postern egress usage --json | jq '[.usage[] | select(.team == "payments").up] | add'`,
	notes: "The largest come first. The relay adds up by the hour, so the first hour counts whole.",
	run:   showUsage,
}

const usageDefault = 24 * time.Hour

// showUsage is postern egress usage.
func showUsage(ctx context.Context, c *console, v eventVerb, args []string) (int, error) {
	f := newCallFlags(v)
	since := f.moment(c, "since", "calls since `TIME`: 24h, 7d, 2026-11-21; default 24h")
	f.asJSON("print it as the API has it")
	client, err := f.parseAlone(c, args)
	if err != nil {
		return exitUsage, err
	}
	if since.IsZero() {
		*since = c.now().Add(-usageDefault)
	}
	var list api.UsageList
	query := url.Values{"since": {since.UTC().Format(time.RFC3339)}}
	if err := c.ask(ctx, client, apiRequest{path: []string{"egress", "usage"}, query: query, ofApp: true}, &list); err != nil {
		return exitFailed, err
	}
	if *f.json {
		return exitOK, c.printData(list, true)
	}
	if len(list.Usage) == 0 {
		c.say("no calls since %s", since.In(c.zone).Format("2006-01-02 15:04"))
		return exitOK, nil
	}
	c.usageTable(list.Usage).write(c.out, c.width(), c.color)
	c.sayIncomplete(list.Incomplete)
	return exitOK, nil
}

func (c *console) usageTable(list []api.Usage) *table {
	t := &table{columns: []column{
		{title: "APP", min: 5}, {title: "TEAM", min: 4, drop: 3}, {title: "TARGET", min: 16}, {title: "VERDICT"}, {title: "CALLS", right: true},
		{title: "FAILED", right: true, drop: 2}, {title: "UP", right: true}, {title: "DOWN", right: true}, {title: "RULE", min: 8, drop: 1},
	}}
	number := func(n int64) cell { return cell{strconv.FormatInt(n, 10), plain} }
	for _, u := range list {
		t.add(cell{line(u.App), plain}, cell{orDash(line(u.Team)), plain}, cell{line(u.Target), plain}, cell{line(u.Verdict), verdictColor(u.Verdict)},
			number(u.Calls), number(u.Failed), cell{volume(u.Up), plain}, cell{volume(u.Down), plain}, cell{orDash(line(u.Rule)), plain})
	}
	return t
}
