package policies

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/relay"
)

// verdictOf is what instance's policy says of a call.
func (b *bench) verdictOf(app relay.AppID, instance, call string) string {
	b.t.Helper()
	c, err := policy.ParseCall(call)
	if err != nil {
		b.t.Fatalf("ParseCall(%q): %v", call, err)
	}
	return verdict(b.Of(app, instance).Decide(c, time.Now()))
}

func (b *bench) wantVerdict(call, want string) {
	b.t.Helper()
	if got := b.verdictOf("shop", "web.1", call); got != want {
		b.t.Errorf("%s: got %s, want %s", call, got, want)
	}
}

// apply applies a text that has to be good.
func (b *bench) apply(source string) api.ManifestVersion {
	b.t.Helper()
	v, err := b.Apply(b.t.Context(), "tok_1 admin", api.ManifestRequest{Source: source})
	if err != nil {
		b.t.Fatalf("Apply: %v", err)
	}
	return v
}

// file gives the watched file a text.
func (b *bench) file(source string) {
	b.t.Helper()
	m, err := parseText([]byte(source))
	if err != nil {
		b.t.Fatalf("text of the file: %v", err)
	}
	if err := b.SetFile(b.t.Context(), []byte(source), m); err != nil {
		b.t.Fatalf("SetFile: %v", err)
	}
}

func (b *bench) wantStatuses(want string) {
	b.t.Helper()
	if got := b.store.statuses(); got != want {
		b.t.Errorf("versions:\n got %s\nwant %s", got, want)
	}
}

func TestNothingIsDeclaredAtFirst(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.wantVerdict("https://api.a.test", "deny")
	if _, err := b.Running(t.Context()); relay.CodeOf(err) != relay.NotFound {
		t.Errorf("Running: got %v, want not_found", err)
	}
}

func TestAnAppliedTextIsInForceNumberedAndAudited(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	first := b.apply(text("", "https://api.a.test"))
	if first.Number != 1 || first.Status != "running" || first.Origin != "api" || first.AppliedBy != "tok_1 admin" {
		t.Errorf("first version: %+v", first)
	}
	b.wantVerdict("https://api.a.test", "allow")
	before := b.Of("shop", "web.1").Policy()
	second := b.apply(text("", "https://api.b.test"))
	if second.Number != 2 || second.Base != 1 {
		t.Errorf("second version: %+v", second)
	}
	b.wantVerdict("https://api.a.test", "deny")
	b.wantVerdict("https://api.b.test", "allow")
	after := b.Of("shop", "web.1").Policy()
	if after.Serial <= before.Serial || before.Version != 1 || after.Version != 2 {
		t.Errorf("serial and version went from %d, %d to %d, %d", before.Serial, before.Version, after.Serial, after.Version)
	}
	b.wantStatuses("1 replaced, 2 running")
	if got, want := b.store.actions(), "manifest.apply by tok_1 admin, manifest.apply by tok_1 admin"; got != want {
		t.Errorf("audit: got %s, want %s", got, want)
	}
	if len(b.applied) != 2 {
		t.Errorf("Apply was called %d times, want 2", len(b.applied))
	}
	running, err := b.Running(t.Context())
	if err != nil || running.Source != text("", "https://api.b.test") {
		t.Errorf("Running: %+v, %v", running, err)
	}
	old, err := b.Version(t.Context(), 1)
	if err != nil || old.Source != text("", "https://api.a.test") || old.Status != "replaced" || old.EndedAt.IsZero() {
		t.Errorf("Version 1: %+v, %v", old, err)
	}
	if again := b.apply(text("", "https://api.b.test")); again.Number != 2 {
		t.Errorf("the running text again: got version %d, want 2", again.Number)
	}
}

func TestATextWithErrorsChangesNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.apply(text("", "https://api.a.test"))
	_, err := b.Apply(t.Context(), "tok_1", api.ManifestRequest{Source: "version: 1\napps:\n  shop: {egres: {}}\n"})
	var problems relay.ManifestErrors
	if relay.CodeOf(err) != relay.Invalid || !errors.As(err, &problems) || problems[0].Line != 3 {
		t.Errorf("got %v, want the problem on line 3", err)
	}
	b.wantVerdict("https://api.a.test", "allow")
	b.wantStatuses("1 running")
}

func TestATextForAnotherVersionIsAConflict(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.apply(text("", "https://api.a.test"))
	b.apply(text("", "https://api.b.test"))
	_, err := b.Apply(t.Context(), "tok_1", api.ManifestRequest{Source: text("", "https://api.c.test"), Base: 1})
	if relay.CodeOf(err) != relay.Conflict {
		t.Errorf("base 1: got %v, want conflict", err)
	}
	if _, err = b.Apply(t.Context(), "tok_1", api.ManifestRequest{Source: text("", "https://api.c.test"), Base: 2}); err != nil {
		t.Errorf("base 2: %v", err)
	}
}

func TestAStoreThatIsDownChangesNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.apply(text("", "https://api.a.test"))
	b.store.setDown(errors.New("disk full"))
	if _, err := b.Apply(t.Context(), "tok_1", api.ManifestRequest{Source: text("", "https://api.b.test")}); err == nil || relay.CodeOf(err) != "" {
		t.Errorf("Apply: got %v, want an error without a code", err)
	}
	if _, err := b.Order(t.Context(), "tok_1", api.OrderRequest{Kind: "deny", What: "api.a.test", ForMS: 1000, Reason: "r"}); err == nil {
		t.Error("Order succeeded")
	}
	b.wantVerdict("https://api.a.test", "allow")
}

func TestTheSignatureIsOverWhatSigningTextSays(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.apply(text("", "https://api.a.test"))
	v, err := b.store.Manifest(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("postern manifest version\nnumber: 1\nsha256: %s\norigin: api\napplied_at: %s\napplied_by: \"tok_1 admin\"\n",
		digestOf(v.Source), v.AppliedAt.UTC().Format("2006-01-02T15:04:05.000Z"))
	if got := string(SigningText(v)); got != want {
		t.Errorf("signing text:\n%s\nwant\n%s", got, want)
	}
	signature, err := base64.StdEncoding.DecodeString(v.Signature)
	if err != nil || v.KeyID != "key1" || !ed25519.Verify(b.key.Public().(ed25519.PublicKey), SigningText(v), signature) {
		t.Errorf("signature %q by %q does not verify (%v)", v.Signature, v.KeyID, err)
	}
	v.AppliedBy = "somebody else"
	if ed25519.Verify(b.key.Public().(ed25519.PublicKey), SigningText(v), signature) {
		t.Error("the signature verifies for another author")
	}
	// A crash between the two steps of a version: the next start signs it.
	b.store.versions[0].Signature = ""
	newBench(t, b.store)
	if b.store.versions[0].Signature == "" {
		t.Error("a running version without a signature was not signed at the start")
	}
}

func TestARestartGoesOnWithWhatRan(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.apply(text("", "https://api.a.test"))
	b.apply(text("", "https://api.b.test"))
	if _, err := b.Order(t.Context(), "tok_1", api.OrderRequest{Kind: "deny", What: "api.b.test", ForMS: 3600_000, Reason: "leak"}); err != nil {
		t.Fatal(err)
	}
	serial := b.Of("shop", "web.1").Policy().Serial
	again := newBench(t, b.store)
	again.wantVerdict("https://api.b.test", "deny")
	got := again.Of("shop", "web.1").Policy()
	if got.Version != 2 || got.Serial <= serial || len(got.Emergency) != 1 {
		t.Errorf("after the restart: version %d, serial %d (before: %d), %d emergency denies", got.Version, got.Serial, serial, len(got.Emergency))
	}
	if len(again.applied) != 1 {
		t.Errorf("Apply was called %d times at the start, want 1", len(again.applied))
	}
}

func TestTheFileIsAVersionOnlyWhenItsTextIsNew(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	old, byAPI := text("", "https://api.file.test"), text("", "https://api.api.test")
	b.file(old)
	b.wantStatuses("1 running")
	b.apply(byAPI)
	b.file(old) // the watcher looks again
	b.wantVerdict("https://api.api.test", "allow")

	// A restart with the same file undoes nothing.
	b = newBench(t, b.store)
	b.file(old)
	b.wantVerdict("https://api.api.test", "allow")
	b.wantStatuses("1 replaced, 2 running")

	// A new text in the file takes over, and a rollback of it stays one.
	b.file(text("", "https://api.new.test"))
	b.wantVerdict("https://api.new.test", "allow")
	if _, err := b.Rollback(t.Context(), "tok_1", api.RollbackRequest{}); err != nil {
		t.Fatal(err)
	}
	b.wantVerdict("https://api.api.test", "allow")
	b = newBench(t, b.store)
	b.file(text("", "https://api.new.test"))
	b.wantVerdict("https://api.api.test", "allow")
	b.wantStatuses("1 replaced, 2 replaced, 3 rolled_back, 4 running")

	// The text of the very first version is new to the file by now.
	b.file(old)
	b.wantVerdict("https://api.file.test", "allow")
	if v := b.store.versions[4]; v.Origin != "file" || v.AppliedBy != "file" {
		t.Errorf("version 5: origin %q by %q", v.Origin, v.AppliedBy)
	}
}

// A secret's file has changed: the watcher parses the same text anew.
func TestTheSameTextReadAgainIsAppliedWhereItRuns(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.file(text("", "https://api.a.test"))
	b.file(text("", "https://api.a.test"))
	if len(b.applied) != 2 || b.applied[0] == b.applied[1] {
		t.Errorf("Apply got %d manifests, want the second reading too", len(b.applied))
	}
	b.wantStatuses("1 running")
	b.apply(text("", "https://api.b.test"))
	b.file(text("", "https://api.a.test"))
	if len(b.applied) != 3 {
		t.Errorf("Apply got %d manifests, want none of a text that does not run", len(b.applied))
	}
}

func TestARunningVersionThatCannotBeReadAnyMore(t *testing.T) {
	t.Parallel()
	store := &fakeStore{}
	newBench(t, store).file(text("", "https://api.a.test"))
	store.versions[0].Source = []byte("version: 2\n")
	b := unloaded(t, store)
	err := b.Load(t.Context())
	var problems relay.ManifestErrors
	if !errors.As(err, &problems) {
		t.Fatalf("Load: got %v, want ManifestErrors", err)
	}
	b.wantVerdict("https://api.a.test", "deny")
	if w := b.Status("").Warnings; len(w) != 1 || !strings.Contains(w[0], "cannot be read") {
		t.Errorf("warnings: %q", w)
	}
	// The file has another text: that is the way out.
	b.file(text("", "https://api.b.test"))
	b.wantVerdict("https://api.b.test", "allow")
	b.wantStatuses("1 replaced, 2 running")
}

func TestRollbackGoesBackFurtherEachTime(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	for _, host := range []string{"a", "b", "c"} {
		b.apply(text("", "https://api."+host+".test"))
	}
	back := func(to int64) (api.ManifestVersion, error) {
		return b.Rollback(t.Context(), "tok_2", api.RollbackRequest{To: to, Note: "it broke"})
	}
	v, err := back(0)
	if err != nil || v.Number != 4 || v.Origin != "rollback" || v.Base != 3 {
		t.Fatalf("first: %+v, %v", v, err)
	}
	b.wantVerdict("https://api.b.test", "allow")
	if note := b.store.versions[2].Note; note != "it broke" {
		t.Errorf("note of the version that was taken back: %q", note)
	}
	if _, err = back(0); err != nil {
		t.Fatal(err)
	}
	b.wantVerdict("https://api.a.test", "allow")
	if _, err = back(0); relay.CodeOf(err) != relay.Conflict {
		t.Errorf("third: got %v, want conflict: there is nothing before", err)
	}
	if _, err = back(3); err != nil {
		t.Fatal(err)
	}
	b.wantVerdict("https://api.c.test", "allow")
	b.wantStatuses("1 replaced, 2 replaced, 3 rolled_back, 4 rolled_back, 5 rolled_back, 6 running")
	if _, err = back(6); relay.CodeOf(err) != relay.Conflict {
		t.Errorf("to the running one: got %v, want conflict", err)
	}
	if _, err = back(77); relay.CodeOf(err) != relay.NotFound {
		t.Errorf("to none: got %v, want not_found", err)
	}
	if want := "manifest.rollback by tok_2"; !strings.HasSuffix(b.store.actions(), want) {
		t.Errorf("audit: %s", b.store.actions())
	}
}

func TestAPolicyThatAgentsCannotBeToldIsRefused(t *testing.T) {
	t.Parallel()
	m := &relay.Manifest{Apps: map[relay.AppID]relay.App{"shop": {ID: "shop", Egress: relay.Egress{Declared: true}}}}
	app := m.Apps["shop"]
	for i := range protocol.MaxPolicy / 1000 {
		app.Egress.Allow = append(app.Egress.Allow, policy.Rule{Scheme: policy.HTTPS, Port: 443,
			Host: fmt.Sprintf("h%d.test", i), Owner: strings.Repeat("x", 1000)})
	}
	m.Apps["shop"] = app
	b := newBench(t, nil)
	if err := b.SetFile(t.Context(), []byte("big"), m); relay.CodeOf(err) != relay.TooLarge {
		t.Errorf("got %v, want too_large", err)
	}
	b.wantStatuses("")
}

// A text of 100 000 lines is in force, compiled and ready to be sent within two
// seconds, and an emergency deny over it sooner. Where the machine is busy, reading the
// text alone, which is not this package's work, tells by how much.
func TestManyRulesApplyFast(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	b := newBench(t, nil)
	hosts := make([]string, 100_000)
	for i := range hosts {
		hosts[i] = fmt.Sprintf("https://h%d.example.test", i)
	}
	source := text("", hosts...)
	start := time.Now()
	if _, err := parseText([]byte(source)); err != nil {
		t.Fatal(err)
	}
	reading := time.Since(start)
	ready := func() {
		if _, err := b.state.Load().entry("shop", "web.1").message(); err != nil {
			t.Fatal(err)
		}
	}
	start = time.Now()
	b.apply(source)
	b.wantVerdict("https://h99999.example.test", "allow")
	ready()
	applying := time.Since(start)
	start = time.Now()
	if _, err := b.Order(t.Context(), "tok_1", api.OrderRequest{Kind: "deny", What: "h7.example.test", ForMS: 60_000, Reason: "r"}); err != nil {
		t.Fatal(err)
	}
	b.wantVerdict("https://h7.example.test", "deny")
	ready()
	denying := time.Since(start)
	t.Logf("reading the text %v, applying it %v, an emergency deny %v", reading, applying, denying)
	if goal := max(2*time.Second, 3*reading); applying > goal || denying > goal/2 {
		t.Errorf("applying took %v, an emergency deny %v, want at most %v and half of it", applying, denying, goal)
	}
}

func TestChangesOfTheRelaysAddresses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil)
		b.apply(text("", "https://203.0.113.7"))
		b.run()
		b.wantVerdict("https://203.0.113.7", "deny") // a documentation address
		b.apply(text("", "https://93.184.216.34"))
		b.wantVerdict("https://93.184.216.34", "allow")
		own := addrs("93.184.216.34")
		b.own.Store(&own)
		time.Sleep(11 * time.Second)
		synctest.Wait()
		b.wantVerdict("https://93.184.216.34", "deny")
	})
}
