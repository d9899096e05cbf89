package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/posternhq/postern/relay"
)

// WatchConfig says which manifest to watch and what to do with it.
type WatchConfig struct {
	Path     string        // of the manifest
	Interval time.Duration // between two looks; default 500ms
	// Options go to relay.ParseManifest. ReadFile defaults to reading a regular
	// file of at most relay.MaxManifestSize.
	Options relay.ManifestOptions
	// Apply gets each new version with its text, from Run's goroutine. When it fails, it
	// gets it again at the next look. Default: nothing.
	Apply  func(source []byte, m *relay.Manifest) error
	Logger *slog.Logger // default: discards
}

const (
	defaultWatchInterval = 500 * time.Millisecond

	// settleTime is for how long an unchanged stat is not believed. Two writes
	// within one tick of the file system's clock leave the same size and time;
	// the coarsest clocks in use (FAT, some network file systems) tick every
	// two seconds.
	settleTime = 2 * time.Second
)

// ManifestWatcher keeps the relay's manifest what its file says. Load reads the
// file once, for the start; Run then applies every later version. A version
// with errors is refused whole and the running one stays.
//
// It polls. Change notifications (inotify, kqueue) watch an inode or a
// directory, and the ways in which manifests really change are just those that
// they miss: Kubernetes swaps a symlink two directories up, editors and deploy
// tools rename a new file over the old one, network and overlay file systems
// report nothing of what another machine wrote. Polling sees what the path
// leads to, whatever way it got there, and costs a few stat calls a second:
//
//	Run, each Interval
//	└── look
//	    ├── unchanged     stat of the manifest and of the files its secrets are in
//	    ├── read          their content, as one hash
//	    └── judge         once two looks in a row saw the same new content
//	        ├── Apply     a good one
//	        └── log       a bad one, once
//
// A secret's file counts as part of the manifest, so that a rotated secret is
// taken up without anybody touching the manifest. Environment variables cannot
// change under a running process.
type ManifestWatcher struct {
	cfg WatchConfig

	// All below belongs to Load, and after it to Run: the two never overlap.

	secrets []string               // files that the last parsed content refers to
	stats   map[string]fs.FileInfo // of all files at the last look; nil: not there
	settled time.Duration          // for how long stats are unchanged

	seen    digest // content at the last look
	judged  digest // content that was last applied or refused
	running digest // content that was last applied

	unused []string // of the running manifest, to warn once
}

// digest is a hash over the content of all files, or over the reason why the
// manifest cannot be read. The zero digest is of nothing.
type digest [sha256.Size]byte

// NewManifestWatcher makes a watcher and starts nothing.
func NewManifestWatcher(cfg WatchConfig) *ManifestWatcher {
	if cfg.Interval <= 0 {
		cfg.Interval = defaultWatchInterval
	}
	if cfg.Options.ReadFile == nil {
		cfg.Options.ReadFile = readRegular
	}
	if cfg.Apply == nil {
		cfg.Apply = func([]byte, *relay.Manifest) error { return nil }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &ManifestWatcher{cfg: cfg}
}

// Load reads the manifest for the start. It does not call Apply, and its error
// is not logged: relay.ManifestErrors for the content, or why the file cannot be
// read. Run goes on from what Load saw, whether it was good or not. Load
// must not be called while Run runs.
func (w *ManifestWatcher) Load() ([]byte, *relay.Manifest, error) {
	w.unchanged()
	data, err := readRegular(w.cfg.Path)
	m, sum, err := w.parse(data, err)
	w.seen, w.judged = sum, sum
	if err != nil {
		return nil, nil, fmt.Errorf("load manifest: %w", err)
	}
	w.running = sum
	w.warnUnused(m)
	return data, m, nil
}

// Run watches until ctx is done and then returns nil.
func (w *ManifestWatcher) Run(ctx context.Context) error {
	ticker := time.NewTicker(w.cfg.Interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			w.look()
		}
	}
}

// look is one round of Run.
func (w *ManifestWatcher) look() {
	// While anything is wrong every look reads, since not every repair shows in
	// a stat.
	well := w.seen == w.running && w.judged == w.running
	if w.unchanged() && w.settled > settleTime && well {
		return
	}
	data, err := readRegular(w.cfg.Path)
	sum := hash(data, err, w.readSecrets())
	if sum != w.seen {
		// Perhaps half written: the beginning of a manifest can be a good
		// manifest with fewer apps. The next look tells.
		w.seen = sum
		return
	}
	if sum != w.judged {
		w.judge(data, err)
	}
}

// judge applies or refuses what two looks in a row saw.
func (w *ManifestWatcher) judge(data []byte, err error) {
	m, sum, err := w.parse(data, err)
	w.seen, w.judged = sum, sum
	if err != nil {
		w.logRefusal(err)
		return
	}
	if sum == w.running {
		w.cfg.Logger.Info("manifest is the running version again", "file", w.cfg.Path)
		return
	}
	if err := w.cfg.Apply(data, m); err != nil {
		w.judged = w.running // as if it had not been read
		w.cfg.Logger.Error("manifest not applied, the running version stays", "file", w.cfg.Path, "err", err)
		return
	}
	w.running = sum
	w.cfg.Logger.Info("manifest applied", "file", w.cfg.Path, "apps", len(m.Apps))
	w.warnUnused(m)
}

func (w *ManifestWatcher) logRefusal(err error) {
	attrs := []any{"file", w.cfg.Path, "error", err.Error()}
	var list relay.ManifestErrors
	if errors.As(err, &list) && len(list) > 0 {
		attrs = append(attrs, "errors", len(list), "line", list[0].Line, "column", list[0].Column)
	}
	w.cfg.Logger.Error("manifest refused, the running version stays", attrs...)
}

// warnUnused says once which sections are without effect, and again only when
// they change.
func (w *ManifestWatcher) warnUnused(m *relay.Manifest) {
	if len(m.Unused) > 0 && !slices.Equal(m.Unused, w.unused) {
		w.cfg.Logger.Warn("manifest has sections that this version does not act on", "sections", m.Unused)
	}
	w.unused = m.Unused
}

// unchanged reports whether the stat of every file is what it was at the last
// look, and counts for how long. os.Stat follows symlinks, so a swapped link
// shows as another file.
func (w *ManifestWatcher) unchanged() bool {
	stats := map[string]fs.FileInfo{}
	for _, path := range append([]string{w.cfg.Path}, w.secrets...) {
		info, err := os.Stat(path)
		if err != nil {
			info = nil
		}
		stats[path] = info
	}
	same := maps.EqualFunc(w.stats, stats, sameFile)
	w.stats = stats
	if !same {
		w.settled = 0
		return false
	}
	w.settled += w.cfg.Interval
	return true
}

// sameFile compares the mode too: a file that became readable has not changed
// in any other way.
func sameFile(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) && a.Mode() == b.Mode()
}

// parse parses what was read, and notes which files its secrets are in. The
// hash is over the very bytes that went into m. Each file is read once, so that
// a secret that changes meanwhile is either old everywhere or new everywhere.
func (w *ManifestWatcher) parse(data []byte, readErr error) (*relay.Manifest, digest, error) {
	files := map[string]secretFile{}
	if readErr != nil {
		return nil, hash(data, readErr, w.readSecrets()), readErr
	}
	opts := w.cfg.Options
	opts.ReadFile = func(path string) ([]byte, error) {
		f, ok := files[path]
		if !ok {
			f.data, f.err = w.cfg.Options.ReadFile(path)
			files[path] = f
		}
		return f.data, f.err
	}
	m, err := relay.ParseManifest(w.cfg.Path, data, opts)
	w.secrets = slices.Sorted(maps.Keys(files))
	return m, hash(data, nil, files), err
}

// secretFile is what reading a secret's file gave.
type secretFile struct {
	data []byte
	err  error
}

// readSecrets reads the files that the last parsed content refers to.
func (w *ManifestWatcher) readSecrets() map[string]secretFile {
	files := map[string]secretFile{}
	for _, path := range w.secrets {
		data, err := w.cfg.Options.ReadFile(path)
		files[path] = secretFile{data, err}
	}
	return files
}

// hash is over a manifest, or the reason why it cannot be read, together with
// the files its secrets are in.
func hash(data []byte, readErr error, files map[string]secretFile) digest {
	h := sha256.New()
	if readErr != nil {
		fmt.Fprintf(h, "unreadable %q\n", readErr)
	}
	fmt.Fprintf(h, "manifest %d\n", len(data))
	h.Write(data)
	for _, path := range slices.Sorted(maps.Keys(files)) {
		f := files[path]
		fmt.Fprintf(h, "file %q %d %t\n", path, len(f.data), f.err == nil)
		h.Write(f.data)
	}
	return digest(h.Sum(nil))
}

// readRegular reads at most one byte more than a manifest may have, so that the
// parser can say that it is too large.
func readRegular(path string) ([]byte, error) {
	// Opening a pipe would block, and a device might never end.
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, relay.MaxManifestSize+1))
}
