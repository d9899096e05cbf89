package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// The variables of the app of a drill.
const (
	drillVariable       = "E2E_DRILL_APP"    // its name: this process is the app
	drillBootVariable   = "E2E_DRILL_BOOT"   // how long it works before it listens
	drillLedgerVariable = "E2E_DRILL_LEDGER" // file that gets a line for each webhook it is done with, and for each SIGTERM
)

// drillCommand is a copy of an app that takes boot to start. It stops on SIGTERM
// as net/http's documentation says; SIGINT would end it at once.
func drillCommand(t testing.TB, name string, boot time.Duration, ledger string) rig.Command {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return rig.Command{
		Args: []string{self, "-test.run=^TestDrillAppProcess$"},
		Env:  []string{drillVariable + "=" + name, drillBootVariable + "=" + boot.String(), drillLedgerVariable + "=" + ledger},
	}
}

// TestDrillAppProcess is no test: it is the app of a drill when the binary is
// executed again.
func TestDrillAppProcess(*testing.T) {
	if name := os.Getenv(drillVariable); name != "" {
		os.Exit(drillApp(name))
	}
}

func drillApp(name string) int {
	record, closeRecord, err := openLedger(os.Getenv(drillLedgerVariable))
	if err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		return 1
	}
	defer closeRecord()
	// The tests hold the other end of our input: when they are gone, so are we.
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	boot, _ := time.ParseDuration(os.Getenv(drillBootVariable))
	<-time.After(boot)
	terms := make(chan os.Signal, 16)
	signal.Notify(terms, syscall.SIGTERM)
	l, err := net.Listen("tcp4", "0.0.0.0:"+os.Getenv("PORT"))
	if err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		return 1
	}
	s := &http.Server{Handler: drillHandler(name, record)}
	go s.Serve(l)
	<-terms
	record("SIGTERM " + name)
	go func() {
		for range terms {
			record("SIGTERM " + name)
		}
	}()
	if err := s.Shutdown(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "app: shutdown:", err)
		return 1
	}
	return 0
}

// drillHandler works for ?ms= milliseconds and answers with the copy's name. A
// webhook is in the ledger when the work is done, just before the answer.
func drillHandler(name string, record func(string)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		ms, _ := strconv.Atoi(r.URL.Query().Get("ms"))
		<-time.After(time.Duration(ms) * time.Millisecond)
		if id := r.Header.Get("Postern-Event-Id"); id != "" {
			record(id)
		}
		io.WriteString(w, name)
	})
}
