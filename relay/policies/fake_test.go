package policies

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/posternhq/postern/relay"
)

// fakeStore is a relay.EgressStore in memory.
type fakeStore struct {
	mu       sync.Mutex
	versions []relay.ManifestVersion // by number
	orders   []relay.Order           // oldest first
	sums     []relay.FlowSum
	entries  []relay.AuditEntry // oldest first
	down     error              // every method fails with it
}

var _ relay.EgressStore = (*fakeStore)(nil)

func (f *fakeStore) setDown(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down = err
}

func (f *fakeStore) AddManifest(_ context.Context, v relay.ManifestVersion, ended ...relay.ManifestVersion) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down != nil {
		return 0, f.down
	}
	for _, e := range ended {
		if e.Number < 1 || e.Number > int64(len(f.versions)) {
			return 0, relay.Errorf(relay.NotFound, "no version %d", e.Number)
		}
	}
	for _, e := range ended {
		f.versions[e.Number-1].Status, f.versions[e.Number-1].EndedAt = e.Status, e.EndedAt
	}
	v.Number = int64(len(f.versions) + 1)
	f.versions = append(f.versions, v)
	return v.Number, nil
}

func (f *fakeStore) UpdateManifests(_ context.Context, versions ...relay.ManifestVersion) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down != nil {
		return f.down
	}
	for _, v := range versions {
		if v.Number < 1 || v.Number > int64(len(f.versions)) {
			return relay.Errorf(relay.NotFound, "no version %d", v.Number)
		}
	}
	for _, v := range versions {
		have := &f.versions[v.Number-1]
		have.Status, have.EndedAt, have.Note, have.Signature, have.KeyID = v.Status, v.EndedAt, v.Note, v.Signature, v.KeyID
	}
	return nil
}

func (f *fakeStore) Manifest(_ context.Context, number int64) (relay.ManifestVersion, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down != nil {
		return relay.ManifestVersion{}, f.down
	}
	if number < 1 || number > int64(len(f.versions)) {
		return relay.ManifestVersion{}, relay.Errorf(relay.NotFound, "no version %d", number)
	}
	return f.versions[number-1], nil
}

func (f *fakeStore) Manifests(_ context.Context, limit int) ([]relay.ManifestVersion, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down != nil {
		return nil, f.down
	}
	all := slices.Clone(f.versions)
	slices.Reverse(all)
	for i := range all {
		all[i].Source = nil
	}
	return all[:min(len(all), cmp.Or(limit, 100))], nil
}

func (f *fakeStore) CreateOrder(_ context.Context, o relay.Order) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down != nil {
		return f.down
	}
	f.orders = append(f.orders, o)
	return nil
}

func (f *fakeStore) EndOrder(_ context.Context, id string, now time.Time) (relay.Order, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down != nil {
		return relay.Order{}, f.down
	}
	for i := range f.orders {
		if f.orders[i].ID != id {
			continue
		}
		if !f.orders[i].Live(now) {
			return relay.Order{}, relay.Errorf(relay.Conflict, "it is over")
		}
		f.orders[i].EndedAt = now
		return f.orders[i], nil
	}
	return relay.Order{}, relay.Errorf(relay.NotFound, "no such order")
}

func (f *fakeStore) Orders(_ context.Context, now time.Time, all bool) ([]relay.Order, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down != nil {
		return nil, f.down
	}
	list := slices.Clone(f.orders)
	slices.Reverse(list)
	if !all {
		list = slices.DeleteFunc(list, func(o relay.Order) bool { return !o.Live(now) })
	}
	return list, nil
}

func (f *fakeStore) AddFlows(_ context.Context, sums []relay.FlowSum) ([]relay.EgressTarget, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sums = append(f.sums, sums...)
	return nil, f.down
}

func (f *fakeStore) Flows(_ context.Context, filter relay.FlowFilter) ([]relay.FlowSum, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down != nil {
		return nil, f.down
	}
	var some []relay.FlowSum
	for _, s := range f.sums {
		if (filter.App == "" || filter.App == s.App) && s.Hour.Add(time.Hour).After(filter.Since) {
			some = append(some, s)
		}
	}
	return some, nil
}

func (f *fakeStore) EgressTargets(context.Context, relay.AppID) ([]relay.EgressTarget, error) {
	return nil, errors.ErrUnsupported
}

func (f *fakeStore) ExpireFlows(context.Context, time.Time, int) (int, error) {
	return 0, errors.ErrUnsupported
}

func (f *fakeStore) AddAudit(_ context.Context, e relay.AuditEntry) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down != nil {
		return f.down
	}
	f.entries = append(f.entries, e)
	return nil
}

func (f *fakeStore) Audit(_ context.Context, app relay.AppID, limit int) ([]relay.AuditEntry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down != nil {
		return nil, f.down
	}
	var list []relay.AuditEntry
	for _, e := range slices.Backward(f.entries) {
		if app == "" || e.App == app {
			list = append(list, e)
		}
	}
	return list[:min(len(list), cmp.Or(limit, 100))], nil
}

// actions are the actions of the audit log, oldest first, each with its author.
func (f *fakeStore) actions() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []string
	for _, e := range f.entries {
		all = append(all, e.Action+" by "+e.By)
	}
	return strings.Join(all, ", ")
}

// statuses are those of all versions, from the first.
func (f *fakeStore) statuses() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []string
	for _, v := range f.versions {
		all = append(all, fmt.Sprintf("%d %s", v.Number, v.Status))
	}
	return strings.Join(all, ", ")
}

// bench is Policies with what they need.
type bench struct {
	*Policies
	t       testing.TB
	store   *fakeStore
	applied []*relay.Manifest // what Apply got
	own     atomic.Pointer[[]netip.Addr]
	agents  []relay.Instance
	cuts    atomic.Int64 // that Cut was called
	log     *lockedBuffer
	key     ed25519.PrivateKey
}

// lockedBuffer is a log that several goroutines write.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// newBench makes Policies over store and loads them; a nil store is a new one.
func newBench(t testing.TB, store *fakeStore) *bench {
	t.Helper()
	b := unloaded(t, store)
	if err := b.Load(t.Context()); err != nil {
		t.Fatalf("Load: %v", err)
	}
	return b
}

func unloaded(t testing.TB, store *fakeStore) *bench {
	if store == nil {
		store = &fakeStore{}
	}
	b := &bench{t: t, store: store, log: &lockedBuffer{}, key: ed25519.NewKeyFromSeed(make([]byte, 32))}
	b.Policies = New(Config{
		Store: store,
		Parse: parseText,
		Apply: func(m *relay.Manifest) { b.applied = append(b.applied, m) },
		Own: func() []netip.Addr {
			if own := b.own.Load(); own != nil {
				return *own
			}
			return nil
		},
		Sign: func(text []byte) (string, string, error) {
			return base64.StdEncoding.EncodeToString(ed25519.Sign(b.key, text)), "key1", nil
		},
		Agents: func() []relay.Instance { return b.agents },
		Cut:    func() int { return int(b.cuts.Add(1)) },
		Logger: slog.New(slog.NewTextHandler(b.log, nil)),
	})
	return b
}

func parseText(source []byte) (*relay.Manifest, error) {
	return relay.ParseManifest("m.yaml", source, relay.ManifestOptions{})
}

// run runs b.Run until the test ends, or stop is called.
func (b *bench) run() (stop func()) {
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := b.Run(ctx); err != nil {
			b.t.Errorf("Run: %v", err)
		}
	}()
	stop = func() { cancel(); <-done }
	b.t.Cleanup(stop)
	return stop
}

// text is a manifest in which app shop may call hosts, with what follows behind it.
func text(rest string, hosts ...string) string {
	if len(hosts) == 0 {
		return "version: 1\napps:\n  shop:\n    egress:\n      allow: []\n" + rest
	}
	var s strings.Builder
	s.WriteString("version: 1\napps:\n  shop:\n    egress:\n      allow:\n")
	for _, h := range hosts {
		s.WriteString("        - " + h + "\n")
	}
	return s.String() + rest
}

// rollout is the text that makes a canary.
func rollout(share, length, rate string) string {
	return fmt.Sprintf("egress:\n  rollout: {canary: %s, for: %s, rollback_if_deny_rate: %s}\n", share, length, rate)
}
