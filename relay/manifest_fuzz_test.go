package relay

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// slow is far above what a manifest takes on a busy machine under the race
// detector, and below what a reader of quadratic effort takes.
const slow = time.Minute

func FuzzParseManifest(f *testing.F) {
	files, err := filepath.Glob("testdata/manifest/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, s := range []string{
		"", "\xef\xbb\xbfversion: 1", "version: 1\napps: {a: &x [*x]}", "a: [b", "? [a]\n: b", "- - - -",
		"version: 1\napps: &a {<<: [*a, {}]}", "%YAML 1.2\n---\n", "version: 1\n\tapps: x", "a: |\n  b\n c",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		start := time.Now()
		m, err := ParseManifest("m.yaml", data, ManifestOptions{Env: testEnv, ReadFile: secretFiles})
		if took := time.Since(start); took > slow {
			t.Errorf("took %v", took)
		}
		if err != nil {
			checkPositions(t, data, err)
			return
		}
		for _, app := range m.Apps {
			checkApp(t, m, app)
		}
	})
}

// checkPositions fails when an error does not point into data, or does not
// print as one line.
func checkPositions(t *testing.T, data []byte, err error) {
	t.Helper()
	var list ManifestErrors
	if !errors.As(err, &list) || len(list) == 0 || len(list) > maxManifestErrors {
		t.Fatalf("error is %T %q", err, err)
	}
	// The YAML reader also breaks lines at CR, NEL, LS and PS.
	lines := 1 + strings.Count(string(data), "\n") + strings.Count(string(data), "\r") +
		strings.Count(string(data), "\u0085") + strings.Count(string(data), "\u2028") + strings.Count(string(data), "\u2029")
	for _, e := range list {
		if e.Line < 1 || e.Line > lines || e.Column < 1 || e.Column > len(data)+1 {
			t.Errorf("%v is outside of a file of %d lines", e, lines)
		}
		if strings.ContainsAny(e.Message, "\n\r") || !utf8.ValidString(e.Message) {
			t.Errorf("message %q is not one line", e.Message)
		}
	}
}

// checkApp fails when an accepted app breaks what other packages rely on.
func checkApp(t *testing.T, m *Manifest, app App) {
	t.Helper()
	for _, host := range app.Ingress.Hosts {
		if owner, ok := m.AppByHost(host); !ok || owner.ID != app.ID {
			t.Errorf("host %q of %q belongs to %q", host, app.ID, owner.ID)
		}
	}
	if b := app.Ingress.Basic; b != nil && (b.User == "" || b.Password == "") {
		t.Errorf("app %q has an empty user or password", app.ID)
	}
	for name, e := range app.Endpoints {
		if e.Name != name || e.App != app.ID || e.MaxInFlight < 1 || e.MaxBody < 1 || e.Rate < 0 || !strings.HasPrefix(e.Path, "/") {
			t.Errorf("endpoint %+v", e)
		}
		if e.Mode != ModeStore && e.Mode != ModeSync && e.Mode != ModeHybrid {
			t.Errorf("mode %q", e.Mode)
		}
		checkWebhookKeys(t, e)
		for _, s := range e.Secrets {
			if s == "" {
				t.Errorf("endpoint %q has an empty secret", name)
			}
		}
		if e.Provider != providerNone && len(e.Secrets) == 0 {
			t.Errorf("endpoint %q has provider %q and no secret", name, e.Provider)
		}
	}
}

// checkWebhookKeys fails when an accepted endpoint breaks what the inbox and the
// providers rely on.
func checkWebhookKeys(t *testing.T, e Endpoint) {
	t.Helper()
	if k := e.Retention; k.Bodies <= 0 || k.Bodies > k.Events {
		t.Errorf("retention %+v", k)
	}
	if e.Deadline < 0 || e.Tolerance < 0 || e.Breaker.Failures < 0 || e.Breaker.Pause <= 0 {
		t.Errorf("endpoint %+v", e)
	}
	if (e.HMAC != nil) != (e.Provider == providerHMAC) {
		t.Errorf("provider %q has the scheme %+v", e.Provider, e.HMAC)
	}
	if h := e.HMAC; h != nil && (h.Header == "" || !strings.Contains(h.Signed, "{body}")) {
		t.Errorf("scheme %+v", h)
	}
	for i, d := range e.Destinations {
		if found, ok := e.Destination(d.Name); !ok || found.URL != d.URL || d.Name == "" || d.MaxInFlight < 1 || d.Breaker.Pause <= 0 {
			t.Errorf("destination %d is %+v", i, d)
		}
		if u, err := url.Parse(d.URL); err != nil || u.Host == "" || u.User != nil {
			t.Errorf("destination %q has a bad URL", d.Name)
		}
		if _, err := ParseFilter(d.Filter.String()); err != nil && len(d.Filter.String()) <= maxFilterText {
			t.Errorf("filter %q: %v", d.Filter, err)
		}
	}
}

// Large and hostile files must not stall the relay: the reader of a running
// relay parses whatever an operator's pipeline wrote.
func TestLargeFilesAreReadInReasonableTime(t *testing.T) {
	t.Parallel()
	fill := func(s string) string { return strings.Repeat(s, MaxManifestSize/8/len(s)) }
	var apps strings.Builder
	apps.WriteString("version: 1\napps:\n")
	for i := range 2000 {
		fmt.Fprintf(&apps, "  app-%d:\n    endpoints:\n      e: {provider: none}\n", i)
	}
	tests := []struct{ name, data string }{
		{"thousands of unknown keys", "version: 1\napps: {}\n" + fill("kkkkkk: 1\n")},
		{"a deep nest of lists", fill("[")},
		{"a deep nest of mappings", fill("{a: ")},
		{"an endless quote", "version: 1\napps: \"" + fill("x\n")},
		{"an endless list", "version: 1\napps: [" + fill("x,\n")},
		{"a bad last line", "version: 1\napps:\n" + fill("  a:\n") + " b: 1\n"},
		{"anchors without end", "a: [" + fill("&a a, ") + "]"},
		{"one long key", fill("k")},
		{"comments", fill("# x\n")},
		{"question marks", fill("? ")},
		{"dashes", fill("- ")},
		{"one unknown anchor after many stars", "a: " + fill("x*y ") + "\nb: *y\n"},
		{"an ordinary file", apps.String()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Now()
			_, err := ParseManifest("m.yaml", []byte(tt.data), ManifestOptions{})
			if err != nil {
				checkPositions(t, []byte(tt.data), err)
			}
			if took := time.Since(start); took > slow {
				t.Errorf("took %v", took)
			}
		})
	}
}
