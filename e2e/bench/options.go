package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// options are the flags, checked.
type options struct {
	Runs    int           `json:"runs"`
	Targets []string      `json:"targets"`
	Only    []string      `json:"only"`
	Warmup  time.Duration `json:"warmup_ns"`
	Window  time.Duration `json:"window_ns"`
	Inbox   inboxSizes    `json:"inbox"`

	root       string // the product's module
	bin        string // prebuilt binaries; empty builds them
	dir        string // parent of all files; empty is the system's folder for temporary ones
	cpuProfile string // folder for the relay's profile; empty takes none
	json       string
	markdown   string
	timeout    time.Duration
}

// parseOptions reads args; messages about them go to out.
func parseOptions(args []string, out io.Writer) (options, error) {
	var o options
	var quick bool
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(out)
	flags.IntVar(&o.Runs, "runs", 5, "repetitions; the report has their medians")
	flags.BoolVar(&quick, "quick", false, "a smoke run of about half a minute: one run, short windows")
	only := flags.String("only", strings.Join(allGroups, ","), "groups of measures to take")
	targets := flags.String("targets", strings.Join(allTargets, ","), "targets to measure")
	flags.DurationVar(&o.Window, "window", 2*time.Second, "time measured per load")
	flags.DurationVar(&o.Warmup, "warmup", 500*time.Millisecond, "time under load before that")
	flags.IntVar(&o.Inbox.Stored, "stored", fullSizes.Stored, "events in the inbox's full store")
	flags.IntVar(&o.Inbox.Waiting, "waiting", fullSizes.Waiting, "deliveries that wait in the inbox")
	flags.IntVar(&o.Inbox.Drained, "drained", fullSizes.Drained, "deliveries that are timed in the inbox")
	flags.StringVar(&o.dir, "dir", "", "folder on a real disk for the relays' data; the default is the system's for temporary files")
	flags.StringVar(&o.root, "root", "..", "folder of the product's module, to build its binaries from")
	flags.StringVar(&o.bin, "bin", "", "folder with postern and postern-relay, instead of building them")
	flags.StringVar(&o.cpuProfile, "cpuprofile", "", "folder to put CPU profiles of the relay into, under small requests and, with the group inbox, webhooks")
	flags.StringVar(&o.json, "json", "", "file to write everything to, single runs too")
	flags.StringVar(&o.markdown, "md", "", "file to write the table to as Markdown")
	flags.DurationVar(&o.timeout, "timeout", 40*time.Minute, "gives up after this time")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if quick {
		o.Inbox = quickSizes
		o.Runs, o.Warmup, o.Window = 1, 100*time.Millisecond, 250*time.Millisecond
	}
	o.Only, o.Targets = strings.Split(*only, ","), strings.Split(*targets, ",")
	return o, o.check(flags.Args())
}

func (o *options) check(rest []string) error {
	if len(rest) > 0 {
		return fmt.Errorf("unexpected argument %q", rest[0])
	}
	if o.Runs < 1 || o.Window <= 0 || o.Warmup < 0 || min(o.Inbox.Stored, o.Inbox.Waiting) < 1 || o.Inbox.Drained < 16 {
		return errors.New("-runs, -window, -stored and -waiting must be positive, and -drained at least 16")
	}
	for _, group := range o.Only {
		if !slices.Contains(allGroups, group) {
			return fmt.Errorf("-only: no group %q; there are %s", group, strings.Join(allGroups, ", "))
		}
	}
	for _, target := range o.Targets {
		if !slices.Contains(allTargets, target) {
			return fmt.Errorf("-targets: no target %q; there are %s", target, strings.Join(allTargets, ", "))
		}
	}
	if o.cpuProfile != "" {
		if !slices.Contains(o.Targets, targetPostern) {
			return errors.New("-cpuprofile needs the target postern")
		}
		if err := os.MkdirAll(o.cpuProfile, 0o755); err != nil {
			return err
		}
	}
	var err error
	if o.dir != "" {
		if o.dir, err = filepath.Abs(o.dir); err != nil {
			return err
		}
	}
	if o.bin != "" {
		o.bin, err = filepath.Abs(o.bin)
	}
	return err
}

func (o options) String() string {
	return fmt.Sprintf("%d runs, %v per load after %v of warm-up, targets interleaved", o.Runs, o.Window, o.Warmup)
}
