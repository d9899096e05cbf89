// Command shop is a small complete app to put behind Postern: it listens on
// PORT, shows a page, takes webhooks of Stripe and GitHub, and ends in order on
// SIGTERM. It uses the standard library only and knows nothing of Postern but a
// few headers, without which it works as well.
package main

import (
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	log.SetFlags(0) // the platform's log has the time
	log.SetPrefix("shop: ")
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

// run serves until ctx ends.
func run(ctx context.Context) error {
	port := os.Getenv("PORT")
	if port == "" {
		port = "3000"
	}
	shop := &shop{stripeSecret: os.Getenv("STRIPE_WHSEC"), githubSecret: os.Getenv("GITHUB_SECRET"), ratesURL: os.Getenv("RATES_URL")}
	// All addresses, because the routers of most platforms look for that. Where
	// only the agent is to reach the app, HOST is 127.0.0.1.
	l, err := net.Listen("tcp", net.JoinHostPort(os.Getenv("HOST"), port))
	if err != nil {
		return err
	}
	server := &http.Server{Handler: shop.routes(), ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	log.Println("listening on", l.Addr())
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	log.Println("finishing what is in flight")
	// Less than a platform's grace period, of which Heroku's is 30 s.
	grace, cancel := context.WithTimeout(context.Background(), 8*time.Second)
	defer cancel()
	if err := server.Shutdown(grace); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	log.Println("done")
	return nil
}
