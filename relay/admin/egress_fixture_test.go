package admin

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/relay"
)

// fakeEgress is Policies and Calls. It notes what it is asked, and answers with
// little.
type fakeEgress struct {
	store *fakeStore // whose failure is its own, too

	mu      sync.Mutex
	asked   []string
	err     error       // of every verb
	orders  []api.Order // newest first
	flows   []protocol.Flow
	readers map[chan protocol.Flow]relay.AppID
	came    chan struct{} // one for each Watch
	text    int           // bytes of the last source
}

func newFakeEgress(store *fakeStore) *fakeEgress {
	return &fakeEgress{
		store:   store,
		orders:  []api.Order{{ID: "den_shop", App: "shop"}, {ID: "den_other", App: "other"}},
		readers: make(map[chan protocol.Flow]relay.AppID), came: make(chan struct{}, 100),
	}
}

// ask notes a call, and is what it fails with.
func (e *fakeEgress) ask(format string, args ...any) error {
	unlock, err := e.store.lock()
	unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked = append(e.asked, fmt.Sprintf(format, args...))
	if err == nil {
		err = e.err
	}
	return err
}

// last is what was asked last, once.
func (e *fakeEgress) last() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.asked) == 0 {
		return ""
	}
	last := e.asked[len(e.asked)-1]
	e.asked = nil
	return last
}

func (e *fakeEgress) fail(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.err = err
}

func (e *fakeEgress) manifest(req api.ManifestRequest) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.text = len(req.Source)
	return fmt.Sprintf("%.20q note=%q base=%d canary=%v since=%d", req.Source, req.Note, req.Base, !req.NoCanary, req.SinceMS)
}

func (e *fakeEgress) Apply(_ context.Context, by string, req api.ManifestRequest) (api.ManifestVersion, error) {
	err := e.ask("apply by %s: %s", by, e.manifest(req))
	return api.ManifestVersion{Number: 8, Status: "canary"}, err
}

func (e *fakeEgress) Diff(_ context.Context, req api.ManifestRequest) (api.ManifestDiff, error) {
	return api.ManifestDiff{Base: 7}, e.ask("diff %s", e.manifest(req))
}

func (e *fakeEgress) Rollback(_ context.Context, by string, req api.RollbackRequest) (api.ManifestVersion, error) {
	return api.ManifestVersion{Number: 9}, e.ask("rollback by %s: to %d, %s", by, req.To, req.Note)
}

func (e *fakeEgress) Promote(_ context.Context, by string) (api.ManifestVersion, error) {
	return api.ManifestVersion{Number: 8}, e.ask("promote by %s", by)
}

func (e *fakeEgress) Running(context.Context) (api.ManifestVersion, error) {
	return api.ManifestVersion{Number: 7, Source: "version: 1"}, e.ask("running")
}

func (e *fakeEgress) Version(_ context.Context, n int64) (api.ManifestVersion, error) {
	return api.ManifestVersion{Number: n, Source: "version: 1"}, e.ask("version %d", n)
}

func (e *fakeEgress) Versions(_ context.Context, limit int) (api.ManifestList, error) {
	return api.ManifestList{}, e.ask("versions %d", limit)
}

func (e *fakeEgress) Order(_ context.Context, by string, req api.OrderRequest) (api.Order, error) {
	return api.Order{ID: "den_new", Cut: 3}, e.ask("order by %s: %+v", by, req)
}

func (e *fakeEgress) EndOrder(_ context.Context, by, id string) (api.Order, error) {
	err := e.ask("end by %s: %s", by, id)
	e.mu.Lock()
	defer e.mu.Unlock()
	i := slices.IndexFunc(e.orders, func(o api.Order) bool { return o.ID == id })
	if i < 0 && err == nil {
		err = relay.Errorf(relay.NotFound, "there is no such order")
	}
	return api.Order{ID: id}, err
}

func (e *fakeEgress) Orders(_ context.Context, all bool) (api.OrderList, error) {
	err := e.ask("orders all=%v", all)
	e.mu.Lock()
	defer e.mu.Unlock()
	return api.OrderList{Orders: e.orders}, err
}

func (e *fakeEgress) Learn(_ context.Context, app relay.AppID, since time.Time) (api.Learned, error) {
	return api.Learned{App: string(app), Since: since}, e.ask("learn %s since %s", app, since.Format(time.RFC3339))
}

func (e *fakeEgress) Status(app relay.AppID) api.EgressStatus {
	e.ask("status %s", app)
	return api.EgressStatus{Serial: 5, Version: 7, Started: -1, Logged: -1, InFlight: -1}
}

func (e *fakeEgress) Audit(_ context.Context, app relay.AppID, limit int) (api.AuditList, error) {
	return api.AuditList{}, e.ask("audit %s %d", app, limit)
}

func (e *fakeEgress) Explain(_ context.Context, app relay.AppID, instance, url, method string) (api.Explanation, error) {
	return api.Explanation{App: string(app), URL: url, Verdict: "deny"}, e.ask("explain %s %q %s %q", app, instance, url, method)
}

func (e *fakeEgress) Recent(app, target, verdict string, limit int) []protocol.Flow {
	e.ask("recent %q %q %q %d", app, target, verdict, limit)
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.flows
}

func (e *fakeEgress) Watch(ctx context.Context, app relay.AppID) <-chan protocol.Flow {
	e.mu.Lock()
	defer e.mu.Unlock()
	ch := make(chan protocol.Flow, 16)
	e.readers[ch] = app
	context.AfterFunc(ctx, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.readers, ch)
	})
	e.came <- struct{}{}
	return ch
}

// watched is how many read.
func (e *fakeEgress) watched() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.readers)
}

// log tells the readers of a flow.
func (e *fakeEgress) log(f protocol.Flow) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for ch, app := range e.readers {
		if app == "" || string(app) == f.App {
			ch <- f
		}
	}
}

// stop ends what the readers read.
func (e *fakeEgress) stop() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for ch := range e.readers {
		close(ch)
	}
}

func (e *fakeEgress) Targets(_ context.Context, app relay.AppID) (api.TargetList, error) {
	return api.TargetList{}, e.ask("targets %s", app)
}

func (e *fakeEgress) Usage(_ context.Context, app relay.AppID, since time.Time) (api.UsageList, error) {
	return api.UsageList{Since: since}, e.ask("usage %s since %s", app, since.Format(time.RFC3339))
}

func (e *fakeEgress) Counts() (started, logged, inFlight int64) { return 30, 20, 10 }
