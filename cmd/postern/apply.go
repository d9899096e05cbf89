package main

import (
	"context"

	"github.com/posternhq/postern/protocol/api"
)

var applyVerb = eventVerb{
	name: "apply", about: "put a new version of the manifest in force", usage: "[flags] -f FILE",
	examples: `postern apply -f postern.yaml --dry-run
postern apply -f postern.yaml --note "stripe for the shop, PR 123"
postern apply -f postern.yaml --base 7
postern apply -f postern.yaml --no-canary --note "repairs the outage"`,
	notes: `-f is --file. A text with a mistake, or one whose own tests fail, is refused whole,
and the running version stays. Where the manifest has a rollout, a part of the instances
gets the new version first.`,
	run: applyManifest,
}

// runApply is postern apply.
func runApply(ctx context.Context, args []string) (int, error) {
	return runAppVerb(ctx, applyVerb, args)
}

// applyManifest is postern apply.
func applyManifest(ctx context.Context, c *console, v eventVerb, args []string) (int, error) {
	f := newManifestFlags(v)
	file := f.fileFlag()
	note := f.str("note", "what changes and why, as a `TEXT` for the history")
	base := f.number("base", "only when version `N` is the running one, so that nobody else's change is lost", 1, 1<<53)
	noCanary := f.yes("no-canary", "at once for all instances, whatever the rollout says")
	dryRun := f.yes("dry-run", "apply nothing, show what would change: postern manifest diff")
	f.asJSON("print the new version as the API has it; with --dry-run the difference")
	if err := f.parse(c.out, longNames(args, map[string]string{"-f": "--file"})); err != nil {
		return exitUsage, err
	}
	if err := f.none(); err != nil {
		return exitUsage, err
	}
	if *dryRun {
		return c.diff(ctx, f, *file, 0, false)
	}
	if *file == "" {
		_, err := c.readSource(f, "")
		return exitUsage, err
	}
	client, err := f.api()
	if err != nil {
		return exitUsage, err
	}
	text, err := c.readSource(f, *file)
	if err != nil {
		return exitFailed, err
	}
	code, err := c.change(ctx, client, "apply", api.ManifestRequest{Source: text.text, Note: *note, Base: *base, NoCanary: *noCanary}, *f.json)
	return code, text.explain(err)
}
