package instances

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// Limits of a Tracker.
const (
	defaultGrace = 30 * time.Second
	maxPerApp    = 256             // records, of at most 128 KiB each
	saveTime     = 5 * time.Second // for one try to save
	saveTries    = 3
	saveAgain    = time.Second // between two tries
)

// saveCount bounds the saves of one app.
type saveCount struct {
	bucket
	refusing bool // the last one was too many
}

// Config is what a Tracker needs. Save and Instances are required.
type Config struct {
	// Save keeps how an instance ended: relay.LastWordsStore's SaveLastWords.
	Save func(context.Context, relay.LastWords) error
	// Instances lists the instances of an app that have a tunnel: the tunnel
	// registry's. It is called without a lock of the Tracker's.
	Instances func(relay.AppID) []relay.Instance

	Grace  time.Duration    // how long a lost agent may take to come back; default 30 s
	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default discards
}

// Tracker knows what the instances say of themselves. All methods are safe for
// concurrent use.
type Tracker struct {
	cfg Config

	mu      sync.Mutex
	records map[key]*record            // guarded by mu
	perApp  map[relay.AppID]int        // guarded by mu; of records
	saves   map[relay.AppID]*saveCount // guarded by mu; see savesRate
	stopped bool                       // guarded by mu; Run has ended: lost streams mean nothing
}

// New makes a Tracker and starts nothing. It panics when a required field of cfg
// is missing.
func New(cfg Config) *Tracker {
	if cfg.Save == nil || cfg.Instances == nil {
		panic("instances: Config lacks a required field")
	}
	cfg.Grace = cmp.Or(cfg.Grace, defaultGrace)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Tracker{cfg: cfg, records: map[key]*record{}, perApp: map[relay.AppID]int{}, saves: map[relay.AppID]*saveCount{}}
}

// Run judges the instances that were lost, until ctx ends; then it saves what is
// still open, which takes seconds at most. See the package's comment for when to
// end ctx.
func (t *Tracker) Run(ctx context.Context) {
	look := time.NewTicker(t.cfg.Grace / 10)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			t.stop()
			return
		case <-look.C:
			t.judge(ctx)
		}
	}
}

// judge saves those that were lost for longer than Grace and have no tunnel.
func (t *Tracker) judge(ctx context.Context) {
	now := t.cfg.Now()
	for _, r := range t.waiting(func(r *record) bool { return now.Sub(r.lost) >= t.cfg.Grace }) {
		if ctx.Err() != nil {
			return // stop does the others
		}
		if t.connected(r.key) {
			t.mu.Lock()
			r.lost = now // its tunnel is there: it may report again at any time
			t.mu.Unlock()
			continue
		}
		if w, ok := t.take(r, ""); ok {
			t.save(context.WithoutCancel(ctx), w)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for app, c := range t.saves {
		if c.left(savesRate, savesBurst, now) == savesBurst {
			delete(t.saves, app)
		}
	}
}

// stop saves those that were lost already.
func (t *Tracker) stop() {
	t.mu.Lock()
	t.stopped = true
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 2*saveTime)
	defer cancel()
	for _, r := range t.waiting(func(*record) bool { return true }) {
		if t.connected(r.key) {
			continue
		}
		if w, ok := t.take(r, addStopped); ok {
			t.save(ctx, w)
		}
	}
}

// waiting lists the lost records that due selects, in the order they were lost.
func (t *Tracker) waiting(due func(*record) bool) []*record {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []*record
	for _, r := range t.records {
		if r.serving == nil && due(r) {
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b *record) int { return a.lost.Compare(b.lost) })
	return all
}

// take forgets a lost record and gives its last words; false when its agent has
// come back meanwhile.
func (t *Tracker) take(r *record, add string) (relay.LastWords, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.records[r.key] != r || r.serving != nil {
		return relay.LastWords{}, false
	}
	t.forgetLocked(r)
	return r.words(r.heard, nil, r.lostReason()+add), true
}

func (t *Tracker) forgetLocked(r *record) {
	if t.records[r.key] != r {
		return
	}
	delete(t.records, r.key)
	if t.perApp[r.app]--; t.perApp[r.app] == 0 {
		delete(t.perApp, r.app)
	}
}

// save stores w; what goes wrong is logged. False: it should have been kept and
// was not.
func (t *Tracker) save(ctx context.Context, w relay.LastWords) bool {
	log := t.cfg.Logger.With("app", w.App, "instance", w.Instance, "release", w.Release)
	kept, first := t.maySave(w.App)
	if !kept {
		if first {
			log.Warn("last words not kept: too many instances of the app end")
		}
		return true
	}
	level := slog.LevelWarn
	if w.Exit != nil && orderly(*w.Exit) {
		level = slog.LevelInfo
	}
	log.Log(ctx, level, "instance ended", "reason", w.Reason)
	var err error
	for try := range saveTries {
		if try > 0 && pause(ctx, saveAgain) != nil {
			break
		}
		once, cancel := context.WithTimeout(ctx, saveTime)
		err = t.cfg.Save(once, w)
		cancel()
		if err == nil {
			return true
		}
	}
	log.Error("last words not kept", "err", err)
	return false
}

// maySave counts one save of app, or says whether it is the first that is too many.
func (t *Tracker) maySave(app relay.AppID) (may, first bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.saves[app]
	if c == nil {
		c = &saveCount{}
		t.saves[app] = c
	}
	if c.left(savesRate, savesBurst, t.cfg.Now()) < 1 {
		first, c.refusing = !c.refusing, true
		return false, first
	}
	c.used++
	c.refusing = false
	return true, false
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// tunnelOf finds the instance of k among those that have a tunnel.
func (t *Tracker) tunnelOf(k key) (relay.Instance, bool) {
	for _, i := range t.cfg.Instances(k.app) {
		if i.Name == k.instance && i.BootID == k.boot {
			return i, true
		}
	}
	return relay.Instance{}, false
}

func (t *Tracker) connected(k key) bool {
	_, ok := t.tunnelOf(k)
	return ok
}

// Fill sets Findings and Vitals of those in list that report.
func (t *Tracker) Fill(list []relay.Instance) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range list {
		at := &list[i]
		if r := t.records[key{at.App, at.Name, at.BootID}]; r != nil {
			at.Findings, at.Vitals = r.findings, r.vitals
		}
	}
}

// severities in the order in which they are shown.
var severities = []protocol.Severity{protocol.SeverityError, protocol.SeverityWarning, protocol.SeverityNote}

// Findings are those of all instances of app that report now, worst first, each
// code once.
func (t *Tracker) Findings(app relay.AppID) []protocol.Finding {
	t.mu.Lock()
	var all []protocol.Finding
	for _, r := range t.records {
		if r.app == app && r.serving != nil {
			all = append(all, r.findings...)
		}
	}
	t.mu.Unlock()
	rank := func(f protocol.Finding) int {
		if i := slices.Index(severities, f.Severity); i >= 0 {
			return i
		}
		return len(severities)
	}
	slices.SortFunc(all, func(a, b protocol.Finding) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Evidence, b.Evidence))
	})
	all = slices.CompactFunc(all, func(a, b protocol.Finding) bool { return a.Code == b.Code })
	return all[:min(len(all), protocol.MaxFindings)]
}
