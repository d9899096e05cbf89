package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/posternhq/postern/relay"
)

// files lists the names in dir.
func files(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names
}

func TestTheFirstOpenMakesOnePrivateKey(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data", "keys")
	ring := openRing(t, dir, newClock())
	keys := ring.Keys()
	if len(keys) != 1 || !keys[0].CreatedAt.Equal(start) {
		t.Fatalf("keys %+v", keys)
	}
	if got := files(t, dir); len(got) != 1 || got[0] != keys[0].ID+".pem" {
		t.Fatalf("files %v, want the key alone", got)
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, keys[0].ID+".pem"): 0o600} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", path, info.Mode().Perm(), want)
		}
	}
	again := openRing(t, dir, newClock())
	if got := again.Keys(); len(got) != 1 || got[0] != keys[0] {
		t.Fatalf("opened again: %+v, want %+v", got, keys)
	}
}

func TestManyFirstOpensAgreeOnOneKey(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "keys")
	ids := make([]string, 16)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			ring, err := openKeyring(dir, newClock().Now)
			if err != nil {
				t.Error(err)
				return
			}
			k, err := ring.signing()
			if err != nil {
				t.Error(err)
			}
			ids[i] = k.ID
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("different keys sign: %v", ids)
		}
	}
	if got := files(t, dir); len(got) != 1 {
		t.Fatalf("files %v, want one", got)
	}
}

// A process that died between claiming the first key and publishing it must
// not leave a folder that nobody can open.
func TestAnAbandonedFirstKeyIsPublished(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	id, text, err := newKeyText(start)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, firstName), string(text), 0o600)
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if got := openRing(t, dir, newClock()).Keys(); len(got) != 1 || got[0].ID != id {
		t.Fatalf("keys %+v, want %s", got, id)
	}
	if got := files(t, dir); len(got) != 1 {
		t.Fatalf("files %v, want one", got)
	}
}

// And one that died just after publishing must not leave a copy that would
// come back once the key was removed.
func TestALeftOverFirstKeyIsRemoved(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	if err := os.Link(filepath.Join(d.keys.dir, d.private(t).ID+".pem"), filepath.Join(d.keys.dir, firstName)); err != nil {
		t.Fatal(err)
	}
	openRing(t, d.keys.dir, newClock())
	if got := files(t, d.keys.dir); len(got) != 1 {
		t.Fatalf("files %v, want one", got)
	}
}

func writeFile(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
}

func TestAfterRotationTheNewKeySignsAndTheOldVerifies(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	old, _ := d.issue(t)
	oldKey := d.private(t).ID
	newKey, err := d.keys.Rotate(d.clock.Now())
	if err != nil {
		t.Fatal(err)
	}
	if got := d.private(t).ID; got != newKey || got == oldKey {
		t.Fatalf("%s signs, want the new %s", got, newKey)
	}
	fresh, _ := d.issue(t)
	for name, raw := range map[string]string{"old": old, "new": fresh} {
		if _, err := d.verifier.Verify(t.Context(), raw); err != nil {
			t.Fatalf("the %s token: %v", name, err)
		}
	}
	if err := os.Remove(filepath.Join(d.keys.dir, oldKey+".pem")); err != nil {
		t.Fatal(err)
	}
	d.clock.advance(rereadAfter)
	_, err = d.verifier.Verify(t.Context(), old)
	wantReason(t, err, TokenUnknownKey)
	if _, err := d.verifier.Verify(t.Context(), fresh); err != nil {
		t.Fatal(err)
	}
}

func TestANewKeySignsThoughTheClockWentBack(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	id, err := d.keys.Rotate(start.Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if got := d.private(t).ID; got != id {
		t.Fatalf("%s signs, want the new %s", got, id)
	}
}

// `keys rotate` and `token create` run beside a live relay.
func TestAnotherProcessesKeyIsNoticed(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	old, _ := d.issue(t)
	if _, err := d.verifier.Verify(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	beside := openRing(t, d.keys.dir, d.clock)
	if _, err := beside.Rotate(d.clock.Now()); err != nil {
		t.Fatal(err)
	}
	issuer := NewIssuer(IssuerConfig{Keys: beside, Tokens: d.store})
	raw, _, err := issuer.Issue(t.Context(), IssueRequest{App: "shop", Scope: relay.ScopeAgent, Now: start})
	if err != nil {
		t.Fatal(err)
	}
	d.clock.advance(rereadAfter)
	if _, err := d.verifier.Verify(t.Context(), raw); err != nil {
		t.Fatalf("the other process's token: %v", err)
	}
	if _, err := d.verifier.Verify(t.Context(), old); err != nil {
		t.Fatalf("the old token: %v", err)
	}
}

// The folder's time tells of a change at once; that a reading is due after a
// second is for file systems whose time does not.
func TestAChangedFolderIsReadAtOnceAndAnUnchangedOneOnceASecond(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	before := d.keys.current.Load()
	if d.keys.fresh() != before {
		t.Fatal("read again although nothing changed")
	}
	later := before.changed.Add(time.Minute)
	if err := os.Chtimes(d.keys.dir, later, later); err != nil {
		t.Fatal(err)
	}
	second := d.keys.fresh()
	if second == before {
		t.Fatal("not read again although the folder changed")
	}
	if _, err := d.keys.Public("unknown"); relay.CodeOf(err) != relay.NotFound {
		t.Fatal(err)
	}
	if d.keys.current.Load() != second {
		t.Fatal("an unknown key had the folder read again within the second")
	}
	d.clock.advance(rereadAfter)
	third := d.keys.fresh()
	if third == second {
		t.Fatal("not read again after a second")
	}
	d.clock.advance(-time.Hour) // a clock set back says nothing of the reading's age
	if d.keys.fresh() == third {
		t.Fatal("not read again after the clock went back")
	}
}

func TestAnUnreadableFolderLeavesTheKnownKeysInForce(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	raw, _ := d.issue(t)
	if err := os.RemoveAll(d.keys.dir); err != nil {
		t.Fatal(err)
	}
	d.clock.advance(rereadAfter)
	if _, err := d.verifier.Verify(t.Context(), raw); err != nil {
		t.Fatalf("a known key: %v", err)
	}
	unknown := d.ours(t, d.header(t, object{"kid": "unknown"}), d.payload(t, nil))
	_, err := d.verifier.Verify(t.Context(), unknown)
	if relay.CodeOf(err) != relay.Unavailable || ReasonOf(err) != "" {
		t.Fatalf("an unknown key: %v, want unavailable: nobody can know", err)
	}
	if _, err := d.keys.Rotate(d.clock.Now()); err == nil {
		t.Fatal("rotated in a folder that is gone")
	}
}

func TestUnsafeOrBrokenKeysAreRefusedWithAnAdvice(t *testing.T) {
	t.Parallel()
	_, good, err := newKeyText(start)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ecDER, err := x509.MarshalPKCS8PrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	ecPEM := string(pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: ecDER}))
	for name, row := range map[string]struct {
		file, text string
		mode       os.FileMode
		want       string
	}{
		"readable by the group": {"a.pem", string(good), 0o640, "run: chmod 600 "},
		"readable by all":       {"a.pem", string(good), 0o604, "run: chmod 600 "},
		"empty":                 {"a.pem", "", 0o600, "no PEM block"},
		"another kind of PEM":   {"a.pem", strings.ReplaceAll(string(good), pemType, "CERTIFICATE"), 0o600, "no PEM block"},
		"not PKCS 8":            {"a.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", 0o600, "not a PKCS #8 key"},
		"a key of another type": {"a.pem", ecPEM, 0o600, "not Ed25519"},
		"a bad time":            {"a.pem", "created: soon\n" + string(good), 0o600, "created line"},
		"a name with a dot":     {"a.b.pem", string(good), 0o600, "rename or remove it"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "keys")
			openRing(t, dir, newClock())
			writeFile(t, filepath.Join(dir, row.file), row.text, row.mode)
			_, err := openKeyring(dir, newClock().Now)
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Fatalf("error %v, want %q", err, row.want)
			}
			if strings.Contains(err.Error(), "AAAA") {
				t.Fatalf("the error quotes the key: %v", err)
			}
		})
	}
	t.Run("a folder that others may write", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		_, err := openKeyring(dir, newClock().Now)
		if err == nil || !strings.Contains(err.Error(), "run: chmod 700 "+dir) {
			t.Fatalf("error %v", err)
		}
	})
}

// openssl genpkey -algorithm ed25519 writes no time: such a key verifies and
// signs only when there is no other. Files that are no keys do no harm.
func TestAKeyWithoutATimeIsTheOldest(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "keys")
	ours := openRing(t, dir, newClock()).Keys()[0]
	_, text, err := newKeyText(start)
	if err != nil {
		t.Fatal(err)
	}
	_, bare, _ := strings.Cut(string(text), "\n")
	writeFile(t, filepath.Join(dir, "imported.pem"), bare, 0o600)
	writeFile(t, filepath.Join(dir, "README"), "hello", 0o644)
	keys := openRing(t, dir, newClock()).Keys()
	if len(keys) != 2 || keys[0] != ours || keys[1].ID != "imported" {
		t.Fatalf("keys %+v", keys)
	}
}

func TestWithoutAnyKeyNothingIsSigned(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	if err := os.Remove(filepath.Join(d.keys.dir, d.private(t).ID+".pem")); err != nil {
		t.Fatal(err)
	}
	d.clock.advance(rereadAfter)
	_, _, err := d.issuer.Issue(t.Context(), IssueRequest{App: "shop", Scope: relay.ScopeAgent, Now: start})
	if err == nil || !strings.Contains(err.Error(), "postern-relay keys rotate") {
		t.Fatalf("error %v", err)
	}
}
