package node

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/relay"
)

const (
	oneApp  = "version: 1\napps:\n  shop: {team: a}\n"
	twoApps = "version: 1\napps:\n  shop: {team: a}\n  blog: {team: b}\n"
	broken  = "version: 1\napps:\n  shop: {tem: a}\n"
)

// watched is a manifest in a folder with a watcher on it, inside a synctest
// bubble: its clock moves only when the test says so.
type watched struct {
	t       *testing.T
	path    string
	watcher *ManifestWatcher
	applied []*relay.Manifest
	log     bytes.Buffer
}

// watch runs test with a watcher that is loaded with content and running.
func watch(t *testing.T, content string, test func(*watched)) {
	t.Helper()
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := &watched{t: t, path: filepath.Join(dir, "postern.yaml")}
		w.write(content)
		w.watcher = w.build()
		if _, _, err := w.watcher.Load(); err != nil {
			t.Fatal(err)
		}
		w.run(func() { test(w) })
	})
}

func (w *watched) build() *ManifestWatcher {
	return NewManifestWatcher(WatchConfig{
		Path:   w.path,
		Apply:  func(_ []byte, m *relay.Manifest) error { w.applied = append(w.applied, m); return nil },
		Logger: slog.New(slog.NewTextHandler(&w.log, nil)),
		Options: relay.ManifestOptions{
			Env: func(string) (string, bool) { return "s3cret-value", true },
		},
	})
}

// run runs the watcher while test goes on, and waits for its end.
func (w *watched) run(test func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error)
	go func() { done <- w.watcher.Run(ctx) }()
	synctest.Wait() // the ticker counts from here
	test()
	cancel()
	if err := <-done; err != nil {
		w.t.Errorf("Run: %v", err)
	}
}

// looks lets the watcher look n times.
func (w *watched) looks(n int) {
	for range n {
		time.Sleep(defaultWatchInterval) // of the bubble's clock: returns at once
		synctest.Wait()
	}
}

func (w *watched) write(content string) {
	w.t.Helper()
	if err := os.WriteFile(w.path, []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// wantApplied fails unless exactly these lists of apps were applied so far.
func (w *watched) wantApplied(want ...string) {
	w.t.Helper()
	var got []string
	for _, m := range w.applied {
		var apps []string
		for id := range m.Apps {
			apps = append(apps, string(id))
		}
		slices.Sort(apps)
		got = append(got, strings.Join(apps, "+"))
	}
	if !slices.Equal(got, want) {
		w.t.Errorf("applied %q, want %q", got, want)
	}
}

// wantLogged fails unless the log has text in exactly n lines.
func (w *watched) wantLogged(n int, text string) {
	w.t.Helper()
	got := 0
	for line := range strings.Lines(w.log.String()) {
		if strings.Contains(line, text) {
			got++
		}
	}
	if got != n {
		w.t.Errorf("%q is in %d lines, want %d:\n%s", text, got, n, w.log.String())
	}
}

func TestAnUnchangedManifestIsNotAppliedAgain(t *testing.T) {
	watch(t, oneApp, func(w *watched) {
		w.looks(20)
		w.wantApplied()
		w.wantLogged(0, "manifest")
	})
}

func TestANewVersionIsApplied(t *testing.T) {
	watch(t, oneApp, func(w *watched) {
		w.looks(20) // long settled
		w.write(twoApps)
		w.looks(2)
		w.wantApplied("blog+shop")
		w.looks(20)
		w.wantApplied("blog+shop")
	})
}

func TestAFileRenamedOverIsApplied(t *testing.T) {
	watch(t, oneApp, func(w *watched) {
		w.looks(20)
		next := w.path + ".new"
		if err := os.WriteFile(next, []byte(twoApps), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, w.path); err != nil {
			t.Fatal(err)
		}
		w.looks(2)
		w.wantApplied("blog+shop")
	})
}

// A Kubernetes volume shows postern.yaml -> ..data/postern.yaml and
// ..data -> ..2026_01, and an update swaps ..data alone.
func TestASwappedFolderLinkIsApplied(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(parts ...string) string { return filepath.Join(append([]string{dir}, parts...)...) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for version, content := range map[string]string{"..1": oneApp, "..2": twoApps} {
		must(os.Mkdir(at(version), 0o700))
		must(os.WriteFile(at(version, "postern.yaml"), []byte(content), 0o600))
	}
	must(os.Symlink("..1", at("..data")))
	must(os.Symlink("..data/postern.yaml", at("postern.yaml")))

	synctest.Test(t, func(t *testing.T) {
		w := &watched{t: t, path: at("postern.yaml")}
		w.watcher = w.build()
		if _, _, err := w.watcher.Load(); err != nil {
			t.Fatal(err)
		}
		w.run(func() {
			w.looks(20)
			must(os.Symlink("..2", at("..next")))
			must(os.Rename(at("..next"), at("..data")))
			w.looks(2)
			w.wantApplied("blog+shop")
		})
	})
}

// The first half of a manifest is often a good manifest with fewer apps.
// Applied, it would make the relay forget the others.
func TestAHalfWrittenFileIsNotApplied(t *testing.T) {
	watch(t, twoApps, func(w *watched) {
		full := twoApps + "  wiki: {team: c}\n"
		for n := len(oneApp); n <= len(full); n += 4 { // one write between two looks
			w.write(full[:n])
			w.looks(1)
		}
		w.wantApplied()
		w.write(full)
		w.looks(2)
		w.wantApplied("blog+shop+wiki")
		w.wantLogged(0, "refused")
	})
}

func TestABrokenFileIsLoggedOnceAndTheRunningVersionStays(t *testing.T) {
	watch(t, oneApp, func(w *watched) {
		w.write(broken)
		w.looks(20)
		w.wantApplied()
		w.wantLogged(1, "level=ERROR")
		w.wantLogged(1, "postern.yaml:3:10: apps.shop: unknown key")
		w.wantLogged(1, "line=3 column=10")

		// Touched without a change: still the same broken content.
		if err := os.Chtimes(w.path, time.Time{}, time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		w.looks(20)
		w.wantLogged(1, "level=ERROR")

		w.write(broken + "foo: 1\n")
		w.looks(20)
		w.wantLogged(2, "level=ERROR")

		w.write(twoApps)
		w.looks(2)
		w.wantApplied("blog+shop")
	})
}

func TestAFileWithManyErrorsIsOneLogLine(t *testing.T) {
	watch(t, oneApp, func(w *watched) {
		w.write(broken + "foo: 1\nbar: 2\n")
		w.looks(2)
		if n := strings.Count(w.log.String(), "\n"); n != 1 {
			t.Errorf("%d log lines, want 1:\n%s", n, w.log.String())
		}
		w.wantLogged(1, "errors=3")
	})
}

func TestARepairToTheRunningVersionAppliesNothing(t *testing.T) {
	watch(t, oneApp, func(w *watched) {
		w.write(broken)
		w.looks(2)
		w.write(oneApp)
		w.looks(20)
		w.wantApplied()
		w.wantLogged(1, "manifest is the running version again")

		w.write(broken) // the same mistake again is news again
		w.looks(2)
		w.wantLogged(2, "level=ERROR")
	})
}

func TestAMissingFileIsLoggedOnceAndComesBack(t *testing.T) {
	watch(t, oneApp, func(w *watched) {
		if err := os.Remove(w.path); err != nil {
			t.Fatal(err)
		}
		w.looks(20)
		w.wantLogged(1, "no such file")
		w.wantApplied()
		w.write(twoApps)
		w.looks(2)
		w.wantApplied("blog+shop")
	})
}

func TestAFileThatIsAwayForOneLookIsNotWorthALine(t *testing.T) {
	watch(t, oneApp, func(w *watched) {
		if err := os.Remove(w.path); err != nil {
			t.Fatal(err)
		}
		w.looks(1)
		w.write(oneApp)
		w.looks(20)
		w.wantApplied()
		if w.log.Len() > 0 {
			t.Errorf("logged %s", w.log.String())
		}
	})
}

func TestAFolderInPlaceOfTheFileIsRefused(t *testing.T) {
	watch(t, oneApp, func(w *watched) {
		if err := errors.Join(os.Remove(w.path), os.Mkdir(w.path, 0o700)); err != nil {
			t.Fatal(err)
		}
		w.looks(2)
		w.wantLogged(1, "is not a regular file")
	})
}

// Two writes within one tick of the file system's clock leave the same size
// and time behind; a stat alone would never show the second.
func TestASecondWriteWithTheSameStatIsSeen(t *testing.T) {
	watch(t, oneApp, func(w *watched) {
		stamp := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		rewrite := func(content string) {
			w.write(content)
			if err := os.Chtimes(w.path, stamp, stamp); err != nil {
				t.Fatal(err)
			}
		}
		rewrite(strings.Replace(twoApps, "blog", "wiki", 1))
		w.looks(2)
		rewrite(twoApps)
		w.looks(2)
		w.wantApplied("shop+wiki", "blog+shop")
	})
}

// Deploy tools that keep times ("cp -p", unpacked archives) rename another file
// of the same size and time into place.
func TestAnotherFileWithTheSameSizeAndTimeIsSeen(t *testing.T) {
	watch(t, oneApp, func(w *watched) {
		info, err := os.Stat(w.path)
		if err != nil {
			t.Fatal(err)
		}
		w.looks(20) // long settled: only the stat is looked at
		next := w.path + ".new"
		err = errors.Join(
			os.WriteFile(next, []byte(strings.Replace(oneApp, "shop", "wiki", 1)), info.Mode()),
			os.Chtimes(next, info.ModTime(), info.ModTime()),
			os.Rename(next, w.path))
		if err != nil {
			t.Fatal(err)
		}
		w.looks(2)
		w.wantApplied("wiki")
	})
}

// An interval longer than the time in which a stat is not believed must not
// skip the second look.
func TestASlowWatcherAppliesToo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := &watched{t: t, path: filepath.Join(dir, "postern.yaml")}
		w.write(oneApp)
		w.watcher = w.build()
		w.watcher.cfg.Interval = time.Minute
		w.run(func() {
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			w.wantApplied("shop")
			w.write(twoApps)
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			w.wantApplied("shop", "blog+shop")
		})
	})
}

func TestARotatedSecretFileIsTakenUp(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	writeKey := func(content string) {
		t.Helper()
		if err := os.WriteFile(key, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	writeKey("first\n")
	synctest.Test(t, func(t *testing.T) {
		w := &watched{t: t, path: filepath.Join(dir, "postern.yaml")}
		w.write("version: 1\napps:\n  shop: {endpoints: {e: {provider: github, secrets: [{file: " + key + "}]}}}\n")
		w.watcher = w.build()
		if _, _, err := w.watcher.Load(); err != nil {
			t.Fatal(err)
		}
		w.run(func() {
			w.looks(20)
			w.wantApplied()

			writeKey("other\n") // as long as the first: only the bytes differ
			w.looks(2)
			w.wantApplied("shop")
			e, _ := w.applied[0].Endpoint("shop", "e")
			if e.Secrets[0].Reveal() != "other" {
				t.Error("the applied version has the old secret")
			}

			if err := os.Remove(key); err != nil {
				t.Fatal(err)
			}
			w.looks(20)
			w.wantLogged(1, "does not exist")
			w.wantApplied("shop")

			writeKey("third\n") // repaired without touching the manifest
			w.looks(2)
			w.wantApplied("shop", "shop")
			for _, value := range []string{"first", "other", "third"} {
				w.wantLogged(0, value)
			}
		})
	})
}

func TestSectionsWithoutEffectAreWarnedAboutOnce(t *testing.T) {
	const withDebug = "version: 1\napps:\n  shop: {debug: {approval: none}}\n"
	watch(t, withDebug, func(w *watched) {
		w.wantLogged(1, "sections=[apps.shop.debug]")
		w.write(withDebug + "  blog:\n")
		w.looks(2)
		w.wantApplied("blog+shop")
		w.wantLogged(1, "level=WARN")
		w.write(withDebug + "  blog: {debug: {}}\n")
		w.looks(2)
		w.wantLogged(1, `sections="[apps.blog.debug apps.shop.debug]"`)
	})
}

func TestNoSecretIsLogged(t *testing.T) {
	const manifest = "version: 1\napps:\n  shop: {endpoints: {e: {provider: github, secrets: [{env: A}]}}}\n"
	watch(t, manifest, func(w *watched) {
		for _, next := range []string{
			manifest + "  blog:\n",
			manifest + "foo: 1\n",
			strings.Replace(manifest, "{env: A}", "s3cret-value", 1),
			strings.Replace(manifest, "{env: A}", "{env: s3cret-value}", 1),
		} {
			w.write(next)
			w.looks(2)
		}
		w.wantApplied("blog+shop")
		w.wantLogged(3, "level=ERROR")
		w.wantLogged(0, "s3cret-value")
	})
}

func TestLoadTellsWhatIsWrongAndRunGoesOnFromThere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := &watched{t: t, path: filepath.Join(dir, "postern.yaml")}
		w.watcher = w.build()
		if _, _, err := w.watcher.Load(); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Load without a file: %v", err)
		}
		w.write(broken)
		_, _, err := w.watcher.Load()
		var list relay.ManifestErrors
		if !errors.As(err, &list) || list[0].Line != 3 || list[0].File != w.path {
			t.Errorf("Load of a broken file: %v", err)
		}
		w.run(func() {
			w.looks(20)
			w.wantLogged(0, "level=ERROR") // Load's caller has it already
			w.write(oneApp)
			w.looks(2)
			w.wantApplied("shop")
		})
	})
}

func TestAWatcherWithoutOptionsWorks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := &watched{t: t, path: filepath.Join(dir, "postern.yaml")}
		w.write(oneApp)
		w.watcher = NewManifestWatcher(WatchConfig{Path: w.path})
		w.run(func() {
			w.looks(3)
			w.write(broken)
			w.looks(3)
		})
	})
}
