// Command go is a web server, as people write it in Go. See ../README.md for
// its mistakes.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	if os.Getenv("APP_TETHER") != "" {
		go func() {
			io.Copy(io.Discard, os.Stdin)
			os.Exit(1)
		}()
	}
	mistake := ""
	if len(os.Args) > 1 {
		mistake = os.Args[1]
	}
	if err := serve(mistake); err != nil {
		log.Fatal(err)
	}
}

// serve listens as mistake says, until SIGTERM.
func serve(mistake string) error {
	fixed, port := os.Getenv("APP_PORT"), os.Getenv("PORT")
	if port == "" || mistake == "fixed" {
		port = fixed
	}
	network, host := "tcp4", "0.0.0.0"
	switch mistake {
	case "", "fixed", "lost", "tls":
	case "loopback":
		host = "127.0.0.1"
	case "ipv6":
		network, host = "tcp6", "::"
	case "hostname":
		host = os.Getenv("HOSTNAME")
	case "debugger":
		go http.ListenAndServe("0.0.0.0:"+fixed, http.NotFoundHandler())
	case "mute":
		log.Print("waiting for the database")
		select {}
	case "crash":
		log.Print("DATABASE_URL is not set")
		os.Exit(3)
	default:
		return fmt.Errorf("no such mistake: %s", mistake)
	}
	l, err := net.Listen(network, net.JoinHostPort(host, port))
	if err != nil {
		return err
	}
	log.Print("listening on ", l.Addr())
	return serveOn(l, mistake)
}

func serveOn(l net.Listener, mistake string) error {
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, "hello from go\n")
	})}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		if mistake == "tls" {
			dir := os.Getenv("APP_TLS")
			ended <- s.ServeTLS(l, filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
			return
		}
		ended <- s.Serve(l)
	}()
	if mistake == "lost" {
		lose := time.AfterFunc(2500*time.Millisecond, func() { s.Close() })
		defer lose.Stop()
		<-ctx.Done()
		return nil
	}
	select {
	case <-ctx.Done():
		return s.Shutdown(context.Background())
	case err := <-ended:
		return errors.Join(errors.New("serve"), err)
	}
}
