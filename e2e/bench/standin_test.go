package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/pprof"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

// TestMain lets the test binary play the bench's roles and, under the product's
// names, stand in for the product: enough of it to check that the harness
// starts, addresses and ends it as it should.
func TestMain(m *testing.M) {
	var err error
	switch role := os.Getenv(roleVariable); {
	case role != "":
		err = playRole(role, os.Args[1:])
	case filepath.Base(os.Args[0]) == "postern-relay":
		err = standInRelay(os.Args[1:])
	case filepath.Base(os.Args[0]) == "postern":
		err = standInAgent(os.Args[1:])
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// standIns makes a folder with binaries that stand in for the product. A file
// named broken beside them has the relay answer some requests wrong, one named
// dead has the agent end at once, one named dying has the relay end under load.
func standIns(t *testing.T, defects ...string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"postern", "postern-relay"} {
		if err := os.Symlink(self, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, defect := range defects {
		if err := os.WriteFile(filepath.Join(dir, defect), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func hasDefect(name string) bool {
	_, err := os.Stat(filepath.Join(filepath.Dir(os.Args[0]), name))
	return err == nil
}

// standInRelay proxies to the address that the agent registered last.
func standInRelay(args []string) error {
	data := os.Getenv("POSTERN_DATA")
	if strings.Join(args, " ") == "token create --app bench --scope agent" {
		fmt.Println("token-of-" + filepath.Base(data))
		return nil
	}
	if !slices.Equal(args, []string{"serve"}) || data == "" || os.Getenv("POSTERN_APPS_DOMAIN") != "localhost" {
		return fmt.Errorf("relay started as %q", args)
	}
	var app atomic.Value
	var requests atomic.Int64
	inbox, err := openStandInInbox(data)
	if err != nil {
		return err
	}
	defer inbox.close()
	broken, dying := hasDefect("broken"), hasDefect("dying")
	front := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proxy, up := app.Load().(http.Handler)
		switch {
		case r.Host == "bench.localhost" && !up:
			http.Error(w, "no agent", http.StatusServiceUnavailable)
		case dying && requests.Add(1) > 50:
			fmt.Fprintln(os.Stderr, "the relay has had enough")
			os.Exit(3)
		case broken && requests.Add(1)%50 == 0:
			http.Error(w, "broken", http.StatusBadGateway)
		case r.Host == "bench.localhost":
			proxy.ServeHTTP(w, r)
		case r.URL.Path == hookPath:
			inbox.take(w, r)
		case r.URL.Path == "/register" && r.FormValue("token") == "token-of-"+filepath.Base(data):
			app.Store(newProxy(r.FormValue("to")))
			inbox.connect(r.FormValue("to"))
		case r.URL.Path != "/readyz":
			http.NotFound(w, r)
		}
	})
	admin := http.NewServeMux()
	admin.HandleFunc("/debug/pprof/profile", pprof.Profile)
	failed := make(chan error, 2)
	go func() { failed <- http.ListenAndServe(os.Getenv("POSTERN_LISTEN"), front) }()
	go func() { failed <- http.ListenAndServe(os.Getenv("POSTERN_ADMIN_LISTEN"), admin) }()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

// standInAgent registers its app with the relay and stays.
func standInAgent(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if len(args) != 3 || args[0] != "agent" || args[1] != "--to" {
		return fmt.Errorf("agent started as %q", args)
	}
	if hasDefect("dead") {
		return errors.New("the agent does not feel like it")
	}
	url := fmt.Sprintf("%s/register?to=%s&token=%s", os.Getenv("POSTERN_RELAY"), args[2], os.Getenv("POSTERN_TOKEN"))
	if err := ready(ctx, url); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
