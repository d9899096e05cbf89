// Command demo shows Postern at work on one machine: it starts a relay and an
// app behind an agent, sends the app signed webhooks from outside, has the app call a
// partner through the relay, and says step by step what happened. "make demo" builds what it needs and runs it.
//
//	main → run
//	  newDemo          a temporary folder, secrets, the manifest
//	  demo.steps       one line each; the first that fails ends the demo
//	  ready            what to try, until Ctrl-C (not with --once)
//	  demo.close       agent first, relay last, the folder
//
// It uses the built binaries from outside, as anybody would, and imports nothing
// of the product.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	once := flag.Bool("once", false, "end after the last step: 0 when all worked, 1 otherwise")
	bin := flag.String("bin", "bin", "folder of the built programs")
	flag.Parse()
	// SIGPIPE too: "make demo | head" must not leave the children behind.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	os.Exit(run(ctx, *bin, *once))
}

// run returns the exit code.
func run(ctx context.Context, bin string, once bool) int {
	d, err := newDemo(bin, os.Getenv("DEMO_PORT"))
	if err != nil {
		fmt.Println("✗", err)
		return 1
	}
	defer d.close()
	fmt.Printf("\nPostern, on this machine at port %s\n\n", d.port)
	for _, s := range d.steps() {
		if err := s.run(ctx); err != nil {
			d.explain(ctx, err)
			return 1
		}
	}
	fmt.Print("\nAll steps worked.\n\n")
	if once {
		return 0
	}
	d.ready()
	return d.stay(ctx)
}

// step is one line of what the demo prints.
type step struct {
	title string
	limit time.Duration // default 10 s
	// do returns what there is to say beside the title.
	do func(ctx context.Context) (detail string, err error)
}

func (s step) run(ctx context.Context) error {
	limit := s.limit
	if limit == 0 {
		limit = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	start := time.Now()
	detail, err := s.do(ctx)
	if err != nil {
		fmt.Printf("  ✗ %s\n", s.title)
		return err
	}
	if detail != "" {
		detail = ": " + detail
	}
	fmt.Printf("  ✓ %s%s (%d ms)\n", s.title, detail, time.Since(start).Milliseconds())
	return nil
}

// steps is the whole demo; each builds on the ones before it.
func (d *demo) steps() []step {
	return []step{
		{title: "the relay runs", do: d.startRelay},
		{title: "tokens for the app were made", do: d.makeTokens},
		{title: "the app runs behind its agent, and the tunnel is open", limit: 20 * time.Second, do: d.startApp},
		{title: "Stripe's webhook is stored", do: d.sendStripe},
		{title: "GitHub's webhook is stored", do: d.sendGitHub},
		{title: "a forged webhook is turned away", do: d.sendForged},
		{title: "the app has handled both", do: d.waitHandled},
		{title: "the inbox shows what came", do: d.listEvents},
		{title: "a browser sees the app's page", do: d.fetchPage},
		{title: "the app calls its partner, through the relay", do: d.callPartner},
		{title: "a call to anybody else is refused", do: d.callStranger},
	}
}

// explain says why the demo stopped and shows the ends of the logs.
func (d *demo) explain(ctx context.Context, err error) {
	if ctx.Err() != nil {
		fmt.Println("\nStopped before the end.")
		return
	}
	fmt.Printf("\nThe demo stopped: %v\n", err)
	for _, p := range d.processes {
		fmt.Printf("\nThe last lines of %s:\n%s", p.name, p.output.tail(15))
	}
}

// ready says what to try now.
func (d *demo) ready() {
	if _, err := exec.LookPath("npm"); err != nil {
		fmt.Println("npm is not installed. Nothing is lost: the relay's own pages are one placeholder in this version.")
		fmt.Println()
	}
	fmt.Printf(`Try, in a browser:
  %[1]s/    the app, through its tunnel
  %[2]s/         the relay

or in another terminal:
  curl -i %[1]s/
  curl -i %[2]s/readyz
  curl -i -d '{}' %[2]s/hooks/shop/github      # not signed, so refused
  curl -i -d '{}' -H "X-GitHub-Delivery: $(date +%%s)" -H "X-GitHub-Event: ping" \
    -H "X-Hub-Signature-256: sha256=$(printf '{}' | openssl dgst -sha256 -hmac %[3]s -r | cut -c1-64)" \
    %[2]s/hooks/shop/github

what the inbox has, and what comes from now on:
  export POSTERN_RELAY=%[2]s POSTERN_TOKEN=$(cat %[4]s)
  bin/postern events list
  bin/postern events tail

where the app may call, and where it tried to:
  bin/postern egress explain http://%[5]s
  bin/postern egress log

What the app and the relay log from now on is below. Ctrl-C ends all of it.

`, d.url("shop."), d.url(""), githubSecret, d.file("developer.token"), strangerHost)
}

// stay shows the logs until ctx ends, or one of the processes does.
func (d *demo) stay(ctx context.Context) int {
	for _, p := range d.processes {
		p.output.follow(os.Stdout)
	}
	ended := make(chan *process, len(d.processes))
	for _, p := range d.processes {
		go func() { <-p.done; ended <- p }()
	}
	select {
	case <-ctx.Done():
		fmt.Println("\nending …")
		return 0
	case p := <-ended:
		fmt.Printf("\n✗ %s ended by itself: %v\n", p.name, p.err)
		return 1
	}
}
