package storetest

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/posternhq/postern/relay"
)

func manifestTests() []test {
	return []test{
		{"an empty store has no manifest", func(f *fixture) {
			_, err := f.store.Manifest(f.ctx, 1)
			f.wantCode(err, relay.NotFound)
			f.wantManifests(0)
		}},
		{"a manifest comes back as it was, with the number that it got", func(f *fixture) {
			full := newManifest("version: 1\n\xff\x00 \u2028")
			full.Number = 77 // not the caller's to choose
			full.EndedAt, full.Note, full.Base = later(time.Hour), "caf\u00e9", 3
			full.Signature, full.KeyID = "c2lnbmF0dXJl", "key_1"
			if n := f.addManifest(full); n != 1 {
				f.Fatalf("the first version has the number %d", n)
			}
			full.Number = 1
			wantEqual(f, "manifest", f.manifest(1), full)
			bare := relay.ManifestVersion{AppliedAt: start(), Status: relay.ManifestCanary}
			bare.Number = f.addManifest(bare)
			wantEqual(f, "manifest", f.manifest(2), bare)
		}},
		{"they are listed newest first, without their text", func(f *fixture) {
			for n := range 103 {
				f.addManifest(newManifest(fmt.Sprint("text ", n)))
			}
			f.wantManifests(3, "103 running", "102 running", "101 running")
			all, err := f.store.Manifests(f.ctx, 0)
			f.must(err)
			if len(all) != 100 || all[99].Number != 4 {
				f.Fatalf("%d are listed unless asked for more, the last is %d", len(all), all[len(all)-1].Number)
			}
			all, err = f.store.Manifests(f.ctx, 1000)
			f.must(err)
			if len(all) != 103 || all[0].Source != nil || all[102].Source != nil {
				f.Fatalf("%d are listed, or with their text", len(all))
			}
			if got := string(f.manifest(5).Source); got != "text 4" {
				f.Fatalf("version 5 is %q", got)
			}
		}},
		{"a new one ends others in the same transaction", func(f *fixture) {
			first := newManifest("a")
			first.Note, first.Signature = "kept", "kept, too"
			first.Number = f.addManifest(first)
			gone := relay.ManifestVersion{Number: first.Number, Status: relay.ManifestReplaced, EndedAt: later(time.Hour), Note: "not this"}
			if n := f.addManifest(newManifest("b"), gone); n != 2 {
				f.Fatalf("the second version has the number %d", n)
			}
			first.Status, first.EndedAt = gone.Status, gone.EndedAt
			wantEqual(f, "the first", f.manifest(1), first)
		}},
		{"one that ends what is not there is not stored, and takes no number", func(f *fixture) {
			f.addManifest(newManifest("a"))
			replaced := func(n int64) relay.ManifestVersion {
				return relay.ManifestVersion{Number: n, Status: relay.ManifestReplaced, EndedAt: start()}
			}
			_, err := f.store.AddManifest(f.ctx, newManifest("b"), replaced(1), replaced(9))
			f.wantCode(err, relay.NotFound)
			f.wantManifests(10, "1 running")
			if n := f.addManifest(newManifest("c"), replaced(1)); n != 2 {
				f.Fatalf("the second version has the number %d", n)
			}
		}},
	}
}

func manifestChangeTests() []test {
	return []test{
		{"numbers have no gaps, whoever adds at once", func(f *fixture) { f.addManifestsAtOnce(8, 12) }},
		{"an update changes what becomes of versions, and not what they are", func(f *fixture) {
			one, two := newManifest("a"), newManifest("b")
			one.Number, two.Number = f.addManifest(one), f.addManifest(two)
			change := func(v relay.ManifestVersion) relay.ManifestVersion {
				v.Status, v.EndedAt, v.Note = relay.ManifestRolledBack, later(time.Minute), "refusals grew"
				v.Signature, v.KeyID = "s", "k"
				return v
			}
			update := change(one)
			update.Source, update.SHA256, update.Origin, update.AppliedBy = []byte("x"), "x", "x", "x"
			update.AppliedAt, update.Base = later(time.Hour), 99
			two.EndedAt, two.Note = later(time.Second), "a note"
			f.must(f.store.UpdateManifests(f.ctx, update, two))
			wantEqual(f, "the first", f.manifest(1), change(one))
			wantEqual(f, "the second", f.manifest(2), two)
			two.EndedAt, two.Note = time.Time{}, "" // it runs again
			f.must(f.store.UpdateManifests(f.ctx, two))
			wantEqual(f, "the second", f.manifest(2), two)
		}},
		{"an update of several is all or none", func(f *fixture) {
			one := newManifest("a")
			one.Number = f.addManifest(one)
			changed := one
			changed.Status = relay.ManifestReplaced
			f.wantCode(f.store.UpdateManifests(f.ctx, changed, relay.ManifestVersion{Number: 2}), relay.NotFound)
			wantEqual(f, "the first", f.manifest(1), one)
		}},
		{"a text may be as long as a manifest may be", func(f *fixture) {
			long := newManifest(strings.Repeat("x", relay.MaxManifestSize))
			if got := f.manifest(f.addManifest(long)); string(got.Source) != string(long.Source) {
				f.Fatalf("%d bytes came back", len(got.Source))
			}
		}},
	}
}

// newManifest is a running version with the text. Its hash says nothing here.
func newManifest(text string) relay.ManifestVersion {
	return relay.ManifestVersion{Source: []byte(text), SHA256: "sha of " + text[:1], Origin: "api", AppliedAt: start(),
		AppliedBy: "tok_1 admin", Status: relay.ManifestRunning}
}

func (f *fixture) addManifest(v relay.ManifestVersion, ended ...relay.ManifestVersion) int64 {
	f.Helper()
	n, err := f.store.AddManifest(f.ctx, v, ended...)
	f.must(err)
	return n
}

func (f *fixture) manifest(n int64) relay.ManifestVersion {
	f.Helper()
	v, err := f.store.Manifest(f.ctx, n)
	f.must(err)
	return v
}

func (f *fixture) wantManifests(limit int, want ...string) {
	f.Helper()
	all, err := f.store.Manifests(f.ctx, limit)
	f.must(err)
	var got []string
	for _, v := range all {
		got = append(got, fmt.Sprint(v.Number, " ", v.Status))
	}
	wantEqual(f, "manifests", got, want)
}

// addManifestsAtOnce has several callers add versions, some of which fail.
func (f *fixture) addManifestsAtOnce(callers, each int) {
	f.Helper()
	var all sync.WaitGroup
	var mu sync.Mutex
	texts := make(map[int64]string) // by number; guarded by mu
	for caller := range callers {
		all.Go(func() {
			for i := range each {
				text := fmt.Sprint("text ", caller, " ", i)
				if i%3 == 0 {
					missing := relay.ManifestVersion{Number: 1 << 40}
					if _, err := f.store.AddManifest(f.ctx, newManifest("lost"), missing); relay.CodeOf(err) != relay.NotFound {
						f.Errorf("ending what is not there: %v", err)
					}
				}
				n, err := f.store.AddManifest(f.ctx, newManifest(text))
				if err != nil {
					f.Error(err)
					return
				}
				mu.Lock()
				if texts[n] != "" {
					f.Errorf("two versions have the number %d", n)
				}
				texts[n] = text
				mu.Unlock()
			}
		})
	}
	all.Wait()
	for n := int64(1); n <= int64(callers*each) && !f.Failed(); n++ {
		if got := string(f.manifest(n).Source); got != texts[n] {
			f.Fatalf("version %d is %q, want %q", n, got, texts[n])
		}
	}
}
