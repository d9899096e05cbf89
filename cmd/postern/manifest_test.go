package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol/api"
)

const someManifest = "version: 1\napps:\n  shop:\n    egress:\n      allow: [https://api.stripe.com]\n"

// manifestFile is a file with text, as it is named on the command line.
func manifestFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "postern.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func someVersion(n int64, status string) api.ManifestVersion {
	return api.ManifestVersion{
		Number: n, Status: status, Origin: "api", AppliedAt: noon.Add(-time.Duration(10-n) * time.Hour), AppliedBy: "tok_1 (admin)", Base: n - 1,
		SHA256: "8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4", KeyID: "key_1", Signature: "c2ln",
	}
}

func TestApply(t *testing.T) {
	r := newCallsAPI(t)
	file := manifestFile(t, someManifest)
	running := someVersion(8, "running")
	running.Warnings = []string{"line 9: the line ends on 2026-11-30\x1b[2J"}
	r.on("POST /manifest/apply", running)
	d := newDesk()
	if code, err := d.verb(t, "apply", "-f", file, "--note", "stripe, PR 123", "--base", "7", "--no-canary"); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	if got, want := d.screens(), "version 8 is running\n-- on standard error\nwarning: line 9: the line ends on 2026-11-30\\x1b[2J\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	var req api.ManifestRequest
	r.lastBody(t, &req)
	if req != (api.ManifestRequest{Source: someManifest, Note: "stripe, PR 123", Base: 7, NoCanary: true}) {
		t.Errorf("asked for %+v", req)
	}

	canary := someVersion(9, "canary")
	r.on("POST /manifest/apply", canary)
	d = newDesk().terminal(80, "")
	d.in = strings.NewReader(someManifest)
	if code, err := d.verb(t, "apply", "-f", "-"); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	if got := d.screens(); !strings.HasPrefix(got, "version 9 is a canary: a part of the instances has it, the rest has version 8\n") || !strings.Contains(got, "postern manifest promote gives it to all") {
		t.Errorf("printed %q", got)
	}
	d = newDesk()
	if code, err := d.verb(t, "apply", "--file="+file, "--json"); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	var v api.ManifestVersion
	if err := json.Unmarshal([]byte(d.stdout.String()), &v); err != nil || v.Number != 9 || v.Signature == "" {
		t.Errorf("%v in %s", err, d.stdout)
	}
}

// Problems are shown as a compiler's: one a line, in the user's own file.
func TestApplyOfATextWithMistakes(t *testing.T) {
	r := newCallsAPI(t)
	file := manifestFile(t, someManifest)
	refuses := func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, 400, "invalid", "manifest:4:7: apps.shop.egress.allow[0]: expected a target\x1b[2J\nmanifest:9:5: egress.tests[0]: expected allow for https://x.example, the text gives deny")
	}
	r.handle("POST /manifest/apply", refuses)
	r.handle("POST /manifest/diff", refuses)
	want := "the relay refuses the manifest, and the running version stays:\n" +
		file + ":4:7: apps.shop.egress.allow[0]: expected a target\\x1b[2J\n" +
		file + ":9:5: egress.tests[0]: expected allow for https://x.example, the text gives deny"
	for _, args := range [][]string{{"apply"}, {"apply", "--dry-run"}, {"manifest", "diff"}, {"apply", "--json"}} {
		d := newDesk()
		if code, err := d.verb(t, append(args, "-f", file)...); code != exitFailed || err == nil || err.Error() != want || d.screens() != "" {
			t.Errorf("%q: %d, %v, %s", args, code, err, d.screens())
		}
	}
	r.handle("POST /manifest/apply", func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, 409, "conflict", "version 9 is running, not version 7")
	})
	if code, err := newDesk().verb(t, "apply", "-f", file, "--base", "7"); code != exitFailed || !strings.Contains(err.Error(), "version 9 is running, not version 7 (request req_1)\nLook at what changed") {
		t.Errorf("%d, %v", code, err)
	}
	r.handle("POST /manifest/apply", func(w http.ResponseWriter, _ *http.Request) { refuse(w, 400, "invalid", "the note is too long") })
	if code, err := newDesk().verb(t, "apply", "-f", file); code != exitFailed || err.Error() != "the note is too long (request req_1)" {
		t.Errorf("%d, %v", code, err)
	}
}

func TestFilesThatAreNoManifest(t *testing.T) {
	r := newCallsAPI(t)
	for name, test := range map[string]struct{ file, want string }{
		"not there":  {filepath.Join(t.TempDir(), "none.yaml"), "the manifest cannot be read: open "},
		"a folder":   {t.TempDir(), "the manifest cannot be read"},
		"empty":      {manifestFile(t, " \n"), "is empty; a manifest begins with: version: 1"},
		"too large":  {manifestFile(t, strings.Repeat("#", maxSource+1)), "has more than 8 MiB"},
		"not a text": {manifestFile(t, "\xff\xfe"), "is not UTF-8 text"},
	} {
		for _, args := range [][]string{{"apply"}, {"manifest", "diff"}} {
			if code, err := newDesk().verb(t, append(args, "-f", test.file)...); code != exitFailed || err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: %d, %v", name, code, err)
			}
		}
	}
	if got := r.said(); len(got) != 0 {
		t.Errorf("asked %q", got)
	}
}

func someDiff() api.ManifestDiff {
	return api.ManifestDiff{
		Base: 7, Since: noon.Add(-24 * time.Hour), Calls: 1204,
		Lines: []string{"--- version 7", "+++ candidate", "@@ -4,3 +4,3 @@", "   egress:", "-    allow: [https://api.stripe.com]", "+    allow: [https://api.bank.example]\x1b[2J"},
		Flips: []api.Flip{
			{App: "shop", Target: "https://api.stripe.com", Calls: 1200, LastSeen: noon, From: "allow", To: "deny", Rule: "default", Reason: "no line allows a tunnel to api.stripe.com:443"},
			{App: "shop", Target: "http://api.bank.example", Method: "GET", Calls: 3, LastSeen: noon.Add(-time.Hour), From: "deny", To: "allow", Rule: "apps.shop.egress.allow[0]", Line: 5, Reason: "a line of the allow list names it"},
		},
	}
}

func TestManifestDiff(t *testing.T) {
	r := newCallsAPI(t)
	file := manifestFile(t, someManifest)
	r.on("POST /manifest/diff", someDiff())
	d := newDesk()
	if code, err := d.verb(t, "manifest", "diff", "-f", file, "--since", "7d"); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	text := d.screens()
	var req api.ManifestRequest
	r.lastBody(t, &req)
	if req != (api.ManifestRequest{Source: someManifest, SinceMS: 7 * 24 * 3600_000}) {
		t.Errorf("asked for %+v", req)
	}
	d = newDesk()
	if code, err := d.verb(t, "apply", "--dry-run", "-f", file); code != 0 || err != nil || d.screens() != text {
		t.Errorf("a dry run: %d, %v, %s", code, err, d.screens())
	}
	if got := r.said(); !slices.Equal(got, []string{"POST /manifest/diff", "POST /manifest/diff"}) {
		t.Errorf("asked %q", got)
	}
	d = newDesk()
	if code, err := d.verb(t, "manifest", "diff", "-f", file, "--check"); code != exitFailed || err != errWouldRefuse || d.screens() != text {
		t.Errorf("--check: %d, %v, %s", code, err, d.screens())
	}

	same := api.ManifestDiff{Base: 7, Since: noon.Add(-24 * time.Hour), Calls: 1}
	r.on("POST /manifest/diff", same)
	d = newDesk()
	d.in = strings.NewReader(someManifest)
	if code, err := d.verb(t, "manifest", "diff", "-f", "-", "--check"); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	golden(t, "manifest-diff.txt", text+"\n"+d.screens())
}

func TestManifestVersions(t *testing.T) {
	r := newCallsAPI(t)
	old := someVersion(7, "replaced")
	old.Origin, old.AppliedBy, old.Source = "file", "file", someManifest+"# \x1b[2J\n"
	back := someVersion(8, "rolled_back")
	back.Note = "the share of refusals grew 4x\x07"
	running := someVersion(9, "running")
	running.Origin, running.Source = "rollback", someManifest
	r.on("GET /manifest/versions", api.ManifestList{Versions: []api.ManifestVersion{running, back, old}})
	r.on("GET /manifest", running)
	r.on("GET /manifest/versions/7", old)
	r.on("POST /manifest/rollback", running)
	r.on("POST /manifest/promote", someVersion(9, "running"))

	d := newDesk()
	if code, err := d.verb(t, "manifest", "history"); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	golden(t, "manifest-history.txt", d.screens())

	d = newDesk()
	if code, err := d.verb(t, "manifest", "show"); code != 0 || err != nil || d.screens() != someManifest {
		t.Errorf("%d, %v, %q", code, err, d.screens())
	}
	d = newDesk()
	if code, err := d.verb(t, "manifest", "show", "7"); code != 0 || err != nil || d.screens() != old.Source {
		t.Errorf("a file gets the text byte by byte: %d, %v, %q", code, err, d.screens())
	}
	d = newDesk().terminal(80, "")
	if code, err := d.verb(t, "manifest", "show", "7"); code != 0 || err != nil || strings.Contains(d.stdout.String(), "\x1b") ||
		d.stderr.String() != "version 7 was replaced, applied 2026-11-21 09:00 UTC by file\n" {
		t.Errorf("a terminal: %d, %v, %q", code, err, d.screens())
	}
	d = newDesk()
	if code, err := d.verb(t, "manifest", "rollback", "7", "--note", "the bank"); code != 0 || err != nil || d.screens() != "version 9 is running\n" {
		t.Errorf("%d, %v, %q", code, err, d.screens())
	}
	d = newDesk()
	if code, err := d.verb(t, "manifest", "promote"); code != 0 || err != nil || d.screens() != "version 9 is running\n" {
		t.Errorf("%d, %v, %q", code, err, d.screens())
	}
	if code, err := newDesk().verb(t, "manifest", "rollback"); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	want := []string{"", "", "", "", `{"to":7,"note":"the bank"}`, "", "{}"}
	if !slices.Equal(r.bodies, want) {
		t.Errorf("sent %q, want %q", r.bodies, want)
	}
	if got := r.said()[0]; got != "GET /manifest/versions?limit=20" {
		t.Errorf("asked %q", got)
	}
	r.on("GET /manifest/versions", api.ManifestList{})
	d = newDesk()
	if code, err := d.verb(t, "manifest", "history"); code != 0 || err != nil || d.stderr.String() != "no manifest was applied yet; postern apply -f FILE applies one\n" {
		t.Errorf("%d, %v, %s", code, err, d.screens())
	}
	d = newDesk()
	if code, err := d.verb(t, "manifest", "history", "--json"); code != 0 || err != nil || d.screens() != "[]\n" {
		t.Errorf("%d, %v, %s", code, err, d.screens())
	}
}
