package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/url"
	"strconv"

	"github.com/posternhq/postern/protocol/api"
)

var historyVerb = eventVerb{
	name: "manifest history", about: "the versions that were applied, newest first", usage: "[flags]",
	examples: `postern manifest history
postern manifest history --limit 5
postern manifest history --json | jq -r '.[] | select(.status == "running").number'`,
	run: listVersions,
}

var sourceVerb = eventVerb{
	name: "manifest show", about: "the text of a version", usage: "[flags] [N]",
	examples: `postern manifest show > postern.yaml
postern manifest show 7
postern manifest show 7 --json | jq -r .signature`,
	notes: "Without N it is the running version. The text goes to standard output as it was applied.",
	run:   showVersion,
}

var rollbackVerb = eventVerb{
	name: "manifest rollback", about: "end a canary, or go back to an earlier version", usage: "[flags] [N]",
	examples: `postern manifest rollback
postern manifest rollback 7 --note "version 8 refuses the bank"`,
	notes: `Without N, a canary is taken back when there is one, and otherwise it goes back to the
version before the running one. An earlier text becomes a new version, in force at once
and for all instances.`,
	run: rollBack,
}

var promoteVerb = eventVerb{
	name: "manifest promote", about: "give a canary to all instances now", usage: "[flags]",
	examples: `postern manifest promote`,
	run:      promote,
}

// Limits of a list of versions.
const (
	versionsDefault = 20
	versionsMost    = 1000
)

// version is the only argument, a number; 0 when there is none.
func (f *callFlags) version() (int64, error) {
	if len(f.args) == 0 {
		return 0, nil
	}
	if len(f.args) > 1 {
		return 0, usagef("%s takes one version, got %q besides", f.Name(), f.args[1])
	}
	n, err := strconv.ParseInt(f.args[0], 10, 64)
	if err != nil || n < 1 {
		return 0, usagef("%q is not the number of a version; postern manifest history has them", f.args[0])
	}
	return n, nil
}

// parseVersion is parse of a verb that may name a version, and the way to the relay.
func (f *callFlags) parseVersion(c *console, args []string) (int64, *apiClient, error) {
	if err := f.parse(c.out, args); err != nil {
		return 0, nil, err
	}
	n, err := f.version()
	if err != nil {
		return 0, nil, err
	}
	client, err := f.api()
	return n, client, err
}

// listVersions is postern manifest history.
func listVersions(ctx context.Context, c *console, v eventVerb, args []string) (int, error) {
	f := newManifestFlags(v)
	limit := f.number("limit", fmt.Sprintf("at most `N` versions; default %d", versionsDefault), 1, versionsMost)
	f.asJSON("print a JSON array, as the API has it")
	client, err := f.parseAlone(c, args)
	if err != nil {
		return exitUsage, err
	}
	query := url.Values{"limit": {strconv.FormatInt(cmp.Or(*limit, versionsDefault), 10)}}
	var list api.ManifestList
	if err := c.order(ctx, client, apiRequest{path: []string{"manifest", "versions"}, query: query}, &list); err != nil {
		return exitFailed, err
	}
	if *f.json {
		return exitOK, c.printData(append([]api.ManifestVersion{}, list.Versions...), true)
	}
	if len(list.Versions) == 0 {
		c.say("no manifest was applied yet; postern apply -f FILE applies one")
		return exitOK, nil
	}
	c.versionTable(list.Versions).write(c.out, c.width(), c.color)
	return exitOK, nil
}

func (c *console) versionTable(list []api.ManifestVersion) *table {
	t := &table{columns: []column{
		{title: "VERSION", right: true}, {title: "STATUS"}, {title: "APPLIED"}, {title: "BY", min: 8, drop: 1},
		{title: "FROM"}, {title: "SHA-256", drop: 2}, {title: "NOTE", min: 8},
	}}
	for _, v := range list {
		t.add(cell{strconv.FormatInt(v.Number, 10), plain}, cell{line(v.Status), statusColor(v.Status)}, cell{c.clock(v.AppliedAt), plain},
			cell{orDash(line(v.AppliedBy)), plain}, cell{line(v.Origin), plain}, cell{line(v.SHA256[:min(len(v.SHA256), 12)]), plain}, cell{orDash(line(v.Note)), plain})
	}
	return t
}

// showVersion is postern manifest show.
func showVersion(ctx context.Context, c *console, v eventVerb, args []string) (int, error) {
	f := newManifestFlags(v)
	f.asJSON("print the version as the API has it, its text in it")
	n, client, err := f.parseVersion(c, args)
	if err != nil {
		return exitUsage, err
	}
	path := []string{"manifest"}
	if n != 0 {
		path = append(path, "versions", strconv.FormatInt(n, 10))
	}
	var version api.ManifestVersion
	if err := c.order(ctx, client, apiRequest{path: path}, &version); err != nil {
		return exitFailed, err
	}
	if *f.json {
		return exitOK, c.printData(version, true)
	}
	if c.errTerminal {
		c.say("%s, applied %s by %s", standingWords(&version), version.AppliedAt.In(c.zone).Format("2006-01-02 15:04 MST"), line(version.AppliedBy))
	}
	text := version.Source
	if c.outTerminal {
		text = printable(text, "\n\t")
	}
	_, err = io.WriteString(c.out, text)
	return exitOK, err
}

// rollBack is postern manifest rollback.
func rollBack(ctx context.Context, c *console, v eventVerb, args []string) (int, error) {
	f := newManifestFlags(v)
	note := f.str("note", "why, as a `TEXT` for the history")
	f.asJSON("print the version that runs now as the API has it")
	n, client, err := f.parseVersion(c, args)
	if err != nil {
		return exitUsage, err
	}
	return c.change(ctx, client, "rollback", api.RollbackRequest{To: n, Note: *note}, *f.json)
}

// promote is postern manifest promote.
func promote(ctx context.Context, c *console, v eventVerb, args []string) (int, error) {
	f := newManifestFlags(v)
	f.asJSON("print the version that runs now as the API has it")
	client, err := f.parseAlone(c, args)
	if err != nil {
		return exitUsage, err
	}
	return c.change(ctx, client, "promote", nil, *f.json)
}
