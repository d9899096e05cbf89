package node

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// soon bounds every wait for what should happen at once.
const soon = 20 * time.Second

// startNode runs a node on free ports. stop ends it and returns Run's error.
func startNode(t *testing.T, cfg Config) (url string, stop func() error) {
	t.Helper()
	ready := make(chan net.Addr, 1)
	cfg.Listen, cfg.AdminListen = "127.0.0.1:0", "127.0.0.1:0"
	cfg.Ready = func(a net.Addr) { ready <- a }
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	stop = func() error {
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(soon):
			t.Fatal("Run does not end")
			return nil
		}
	}
	select {
	case a := <-ready:
		return "http://" + a.String(), stop
	case err := <-ended:
		t.Fatalf("not started: %v", err)
	case <-time.After(soon):
		t.Fatal("not ready")
	}
	return "", stop
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

func TestNodeStartsServesAndStopsInOrder(t *testing.T) {
	before := runtime.NumGoroutine()
	var log bytes.Buffer
	data := filepath.Join(t.TempDir(), "data")
	url, stop := startNode(t, Config{Data: data, Grace: 5 * time.Second, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/nothing": 404, "/hooks/shop/stripe": 404, "/v1/tunnel": 401} {
		if status, body := get(t, url+path); status != want {
			t.Errorf("%s: %d %s, want %d", path, status, body, want)
		}
	}
	if err := stop(); err != nil {
		t.Errorf("Run returned %v", err)
	}
	at := 0
	for _, line := range []string{"relay ready", "relay stops", "relay stopped"} {
		i := strings.Index(log.String()[at:], line)
		if i < 0 {
			t.Fatalf("%q is not in its place in the log:\n%s", line, &log)
		}
		at += i
	}
	if _, err := net.Dial("tcp", strings.TrimPrefix(url, "http://")); err == nil {
		t.Error("the listener is open after Run")
	}
	for deadline := time.Now().Add(soon); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, stacks[:runtime.Stack(stacks, true)])
		}
	}
	if info, err := os.Stat(data); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the data folder is %v, %v; want it private", info, err)
	}
}

func TestNodeKeepsItsNameOverARestart(t *testing.T) {
	data := t.TempDir()
	var names []string
	for range 2 {
		_, stop := startNode(t, Config{Data: data, Logger: slog.New(slog.DiscardHandler)})
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		name, err := os.ReadFile(filepath.Join(data, "node"))
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, string(name))
	}
	if names[0] != names[1] || !strings.HasPrefix(names[0], "node-") {
		t.Errorf("names %q", names)
	}
}

func TestNodeThatCannotStartSaysWhyAndLeavesNothingOpen(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte(broken), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"a taken port", Config{Listen: taken.Addr().String(), AdminListen: "off"}, "public listener"},
		{"a taken port for operators", Config{Listen: "127.0.0.1:0", AdminListen: taken.Addr().String()}, "POSTERN_ADMIN_LISTEN"},
		{"a manifest with a fault", Config{Listen: "127.0.0.1:0", AdminListen: "off", Manifest: bad}, "bad.yaml:3:"},
		{"a data folder that is a file", Config{Listen: "127.0.0.1:0", AdminListen: "off", Data: bad}, "data folder"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.cfg.Logger = slog.New(slog.DiscardHandler)
			if test.cfg.Data == "" {
				test.cfg.Data = t.TempDir()
			}
			n, err := New(test.cfg)
			if err != nil {
				t.Fatal(err)
			}
			if err := n.Run(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
