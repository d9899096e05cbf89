package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/posternhq/postern/relay/selftest"
)

// selftestKill tries on the user's own disk whether the relay keeps its promise.
func selftestKill(ctx context.Context, args []string) error {
	f := newFlags("selftest", "kill a relay again and again under load, and check that it loses nothing")
	data := f.text("data", "POSTERN_DATA", "./postern-data", "folder on the disk to try; a new folder is made in it and deleted afterwards")
	kill := f.Bool("kill", false, "do it; there is no other test yet")
	length := f.Duration("for", time.Minute, "how long the load lasts")
	rate := f.Float64("rate", 200, "events a second")
	senders := f.Int("senders", 8, "how many send at the same time")
	patience := f.Duration("patience", 30*time.Second, "what has not come after so long a silence is lost")
	seed := f.Uint64("seed", 0, "repeat the moments of the kills of another run; 0 picks one")
	asJSON := f.Bool("json", false, "print JSON")
	if err := f.parse(args, 0); err != nil {
		return ignoreHelp(err)
	}
	switch {
	case !*kill:
		return usagef("which test? --kill kills a relay of its own, again and again; a relay that runs already is left alone")
	case *length <= 0 || *rate <= 0 || *senders <= 0 || *patience <= 0:
		return usagef("--for, --rate, --senders and --patience must be more than 0")
	}
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	if *seed == 0 {
		*seed = rand.Uint64N(1<<32) + 1
	}
	cfg := selftest.Config{
		Binary: binary, Data: *data, For: *length, Rate: *rate, Senders: *senders, Seed: *seed,
		Quiet: *patience, Stop: ctx.Done(),
	}
	done := func() {}
	if !*asJSON {
		fmt.Printf("killing a relay of its own in %s for %v, %v events a second, seed %d\n", *data, *length, *rate, *seed)
		cfg.Progress, done = progressOn(os.Stderr)
	}
	running, cancel := abortable(ctx)
	defer cancel()
	report, err := selftest.Run(running, cfg)
	done()
	if errors.Is(err, context.Canceled) {
		return errors.New("stopped before the end: nothing is proved")
	}
	if err != nil {
		return err
	}
	if *asJSON {
		err = json.NewEncoder(os.Stdout).Encode(report)
	} else {
		printSelftest(os.Stdout, report)
	}
	return errors.Join(err, verdictOf(report))
}

// verdictOf is nil when the report proves something good.
func verdictOf(r *selftest.Report) error {
	switch {
	case len(r.Violations) > 0:
		return fmt.Errorf("the promise was broken %d times", len(r.Violations))
	case r.Acknowledged == 0:
		return fmt.Errorf("nothing was acknowledged (%d webhooks answered 503, %d not at all), so nothing is proved",
			r.Unavailable, r.Unanswered)
	}
	return nil
}

// abortable is a context for work that ctx only asks to come to its end: it is
// cancelled by the next signal after ctx.
func abortable(ctx context.Context) (context.Context, context.CancelFunc) {
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	again := make(chan os.Signal, 1)
	go func() {
		select {
		case <-ctx.Done():
		case <-running.Done():
			return
		}
		fmt.Fprintln(os.Stderr, "\nstopping: what was acknowledged is waited for; once more to give up")
		signal.Notify(again, syscall.SIGINT, syscall.SIGTERM)
		defer signal.Stop(again)
		select {
		case <-again:
			cancel()
		case <-running.Done():
		}
	}()
	return running, cancel
}

// progressOn shows how far it is, on one line of a terminal and nowhere else.
func progressOn(w *os.File) (show func(selftest.Progress), done func()) {
	if !isTerminal(w) {
		return nil, func() {}
	}
	show = func(p selftest.Progress) {
		doing := "under load"
		if p.Settling {
			doing = "waiting for the rest"
		}
		fmt.Fprintf(w, "\r\x1b[K%4.0fs %s: acknowledged %s, delivered %s, killed %d times",
			p.Elapsed.Seconds(), doing, thousands(p.Acknowledged), thousands(p.Delivered), p.Kills)
	}
	return show, func() { fmt.Fprint(w, "\r\x1b[K") }
}

// isTerminal reports whether somebody looks at f. A character device is near
// enough: what is wrongly taken for one is /dev/null.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// maxListed is how many violations are printed; the rest is counted.
const maxListed = 20

func printSelftest(w io.Writer, r *selftest.Report) {
	if len(r.Violations) == 0 {
		fmt.Fprintf(w, "acknowledged %s, delivered all of them (%s twice), relay killed %d times: nothing lost\n",
			thousands(r.Acknowledged), thousands(r.Twice), r.Kills)
	} else {
		fmt.Fprintf(w, "acknowledged %s, delivered %s of them (%s twice), relay killed %d times: NOT AS PROMISED\n",
			thousands(r.Acknowledged), thousands(r.Delivered), thousands(r.Twice), r.Kills)
		for _, v := range r.Violations[:min(maxListed, len(r.Violations))] {
			fmt.Fprintln(w, "  "+v.String())
		}
		if more := len(r.Violations) - maxListed; more > 0 {
			fmt.Fprintf(w, "  and %s more\n", thousands(more))
		}
		fmt.Fprintln(w, "the relay's data and log are kept in", r.Kept)
	}
	fmt.Fprintf(w, "fsync on this disk: %v as a rule, %v at worst\n",
		r.Disk.Median.Round(time.Microsecond), r.Disk.Slowest.Round(time.Microsecond))
	if r.Disk.Suspicious() {
		fmt.Fprintln(w, "  no disk is that fast: it answers before the bytes are safe, or this folder is in memory")
	}
	fmt.Fprintln(w, "A killed process leaves what it wrote to the kernel. What a power cut takes, this cannot show:\n"+
		"there the relay relies on fsync, and on a disk that does what fsync asks for.")
}

// thousands prints n in groups of three digits.
func thousands(n int) string {
	digits := strconv.Itoa(n)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + " " + digits[i:]
	}
	return digits
}
