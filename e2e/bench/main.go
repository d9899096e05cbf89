// Command bench measures the tunnel against going without one and against the plainest
// thing that does the same work, in one run on one machine, and prints the
// ratios beside the bars that the product is required to reach.
//
// Four targets lead to the same app: direct; proxy1 and proxy2, one and two
// hops of the standard library's reverse proxy; postern, a relay and an agent.
// The app, every hop and every load generator is a process of its own; the
// harness starts itself again for those that are not the product. All talk over
// loopback, without TLS. The targets stay up together and take turns measure by
// measure, so a ratio compares neighbours in time.
//
// The load is a closed loop over keep-alive connections with one request under
// way on each: rates and latencies are those of clients that wait. It says
// nothing about wide-area networks, and on a machine with few cores the load
// generator and the app compete with what is measured; compare ratios, not
// absolute numbers. Every answer is checked. A run with errors is marked and
// its row not judged.
//
// The webhook inbox (-only inbox) has baselines of its own, measured right before
// or after: single-row commits of the same SQLite driver, an HTTP server that
// keeps nothing, an fsync, the same relay with an empty store. Its relays' data
// must be on a disk; the report says on which file system it was. The store with
// a million events is made of copies of one that the relay itself has stored.
//
// The outbound calls (-only connect,tunnelbulk,firstbyte) have baselines too: a CONNECT
// proxy of one hop, made of the standard library; requests of the web that move as much
// in the same direction through the same relay and agent; and two round trips to the
// relay and three to the destination, over lines that hold back what they carry.
//
// CPU and memory come from /proc, so those measures need Linux.
//
//	go run ./bench               five runs, about fifteen minutes
//	go run ./bench -quick        a smoke run
//	go run ./bench -only inbox   webhooks: accepting and delivering, about four minutes
//	go run ./bench -only connect,tunnelbulk,firstbyte   outbound calls
//	go run ./bench -only small -targets proxy2,postern -cpuprofile /tmp/profiles
//
// It exits with 0 also when a bar is missed, 1 when something could not be
// measured, 2 on wrong usage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	if role := os.Getenv(roleVariable); role != "" {
		if err := playRole(role, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the harness without its process; it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parseOptions(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 2
	}
	b := bench{options: o, log: slog.New(slog.NewTextHandler(stderr, nil))}
	rep, err := b.run(ctx)
	if err == nil {
		err = rep.print(stdout)
	}
	if err == nil {
		err = rep.write(o.json, o.markdown)
	}
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	if !rep.complete() {
		return 1
	}
	return 0
}
