package egress

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// Bounds of what is kept in memory.
const (
	maxRecent   = 256  // calls of one app that can be looked at
	maxWatchers = 1000 // of all apps
	watchBuffer = 256  // calls that a slow watcher may be behind
	quietTime   = 24 * time.Hour
)

// ledger writes the lines of the log, and keeps what is asked of calls afterwards: the
// latest ones, those who watch, sums, metrics.
type ledger struct {
	e *Egress

	mu       sync.Mutex
	recent   map[relay.AppID]*ring  // guarded by mu
	watchers map[*watcher]struct{}  // guarded by mu
	sums     sums                   // guarded by mu
	metrics  metrics                // guarded by mu
	known    map[relay.AppID]*known // guarded by mu

	flushing sync.Mutex // held by flush
}

// ring is the latest calls of one app. A call that goes on has its record here from
// its first line, and is changed at its last one.
type ring struct {
	records []*protocol.Flow // at most maxRecent
	next    int              // the oldest, once there are so many
	used    time.Time
}

// watcher is one Watch.
type watcher struct {
	app  relay.AppID // "": all
	flow chan protocol.Flow
}

func newLedger(e *Egress) *ledger {
	return &ledger{
		e: e, recent: map[relay.AppID]*ring{}, watchers: map[*watcher]struct{}{},
		sums: newSums(), metrics: newMetrics(), known: map[relay.AppID]*known{},
	}
}

// decided writes the first line of a call that goes on.
func (l *ledger) decided(c *call) {
	fresh := l.isFresh(c.app, c.what.Target.HostPort())
	c.mu.Lock()
	c.flow.Fresh = fresh
	flow := c.flow
	c.mu.Unlock()
	l.write(&flow)
	l.mu.Lock()
	c.record = &flow
	l.keepLocked(c.app, c.record)
	l.tellLocked(&flow)
	l.mu.Unlock()
}

// ended writes the last line, which is the only one of a call that was refused.
func (l *ledger) ended(c *call) {
	c.mu.Lock()
	flow := c.flow
	c.mu.Unlock()
	l.write(&flow)
	l.book(c, true)
	l.e.cfg.Observe(c.app, flow.Version, flow.Verdict == denied)
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.record == nil {
		c.record = &flow
		l.keepLocked(c.app, c.record)
	} else {
		flow.Fresh = flow.Fresh || c.record.Fresh
		*c.record = flow
	}
	l.metrics.countLocked(&flow)
	l.tellLocked(&flow)
}

// external takes the record of a call that did not come this way.
func (l *ledger) external(app relay.AppID, flow protocol.Flow) {
	if flow.Verdict != denied {
		flow.Fresh = l.isFresh(app, flow.Target)
	}
	l.write(&flow)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keepLocked(app, &flow)
	if flow.Ended {
		l.sums.addLocked(sumOf(app, &flow, l.e.cfg.Now()), true)
		l.metrics.countLocked(&flow)
		l.metrics.bytesLocked(app, flow.Rule, flow.Up, flow.Down)
	}
	l.tellLocked(&flow)
}

func (l *ledger) keepLocked(app relay.AppID, record *protocol.Flow) {
	r := l.recent[app]
	if r == nil {
		r = &ring{}
		l.recent[app] = r
	}
	r.used = time.Now()
	if len(r.records) < maxRecent {
		r.records = append(r.records, record)
		return
	}
	r.records[r.next] = record
	r.next = (r.next + 1) % maxRecent
}

// tellLocked hands a line to those who watch. Who does not keep up misses it.
func (l *ledger) tellLocked(flow *protocol.Flow) {
	for w := range l.watchers {
		if w.app != "" && string(w.app) != flow.App {
			continue
		}
		select {
		case w.flow <- *flow:
		default:
		}
	}
}

// Watch gives every line of the log from now on, of one app or of all (""). The
// channel is closed when ctx ends. What a slow reader does not take is lost.
func (e *Egress) Watch(ctx context.Context, app relay.AppID) <-chan protocol.Flow {
	l := e.ledger
	w := &watcher{app: app, flow: make(chan protocol.Flow, watchBuffer)}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.watchers) >= maxWatchers {
		close(w.flow)
		return w.flow
	}
	l.watchers[w] = struct{}{}
	context.AfterFunc(ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.watchers, w)
		close(w.flow)
	})
	return w.flow
}

// Recent lists the latest calls, newest first; "" selects everything, limit 0 is 100.
// target is a host and port, or a host.
func (e *Egress) Recent(app, target, verdict string, limit int) []protocol.Flow {
	if limit <= 0 {
		limit = 100
	}
	l := e.ledger
	l.mu.Lock()
	var found []protocol.Flow
	for id, r := range l.recent {
		if app != "" && string(id) != app {
			continue
		}
		n := 0
		for i := len(r.records) - 1; i >= 0 && n < limit; i-- {
			f := r.records[(r.next+i)%len(r.records)]
			if (verdict == "" || f.Verdict == verdict) && isTarget(f.Target, target) {
				found = append(found, *f)
				n++
			}
		}
	}
	l.mu.Unlock()
	newestFirst(found)
	found = found[:min(len(found), limit)]
	e.moving(found)
	return found
}

// tidy forgets the calls of apps that made none for a day.
func (l *ledger) tidy(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for app, r := range l.recent {
		if now.Sub(r.used) > quietTime {
			delete(l.recent, app)
			delete(l.known, app)
		}
	}
}

// write writes one line of the log.
func (l *ledger) write(f *protocol.Flow) {
	ctx := context.Background()
	if l.e.log.Enabled(ctx, slog.LevelInfo) {
		l.e.log.LogAttrs(ctx, slog.LevelInfo, "egress", attributes(f)...)
	}
}

// attributes are a flow's fields under the names that they have in JSON, without those
// that are empty.
func attributes(f *protocol.Flow) []slog.Attr {
	attrs := make([]slog.Attr, 0, 32)
	text := func(key, value string) {
		if value != "" {
			attrs = append(attrs, slog.String(key, value))
		}
	}
	number := func(key string, value float64) {
		if value != 0 {
			attrs = append(attrs, slog.Float64(key, value))
		}
	}
	flag := func(key string, value bool) {
		if value {
			attrs = append(attrs, slog.Bool(key, value))
		}
	}
	text("id", f.ID)
	text("app", f.App)
	text("team", f.Team)
	text("instance", f.Instance)
	text("form", f.Form)
	text("from", f.From)
	text("target", f.Target)
	text("method", f.Method)
	text("path", f.Path)
	text("sni", f.SNI)
	flag("ech", f.ECH)
	text("via", f.Via)
	text("verdict", f.Verdict)
	text("cause", f.Cause)
	text("rule", f.Rule)
	text("reason", f.Reason)
	attrs = append(attrs, slog.Int64("version", f.Version), slog.Int64("serial", f.Serial))
	flag("first_seen", f.Fresh)
	text("traceparent", f.Traceparent)
	attrs = append(attrs, slog.Time("started_at", f.StartedAt), slog.Bool("ended", f.Ended))
	number("duration_ms", f.Duration)
	number("policy_ms", f.Policy)
	number("dns_ms", f.DNS)
	number("dial_ms", f.Dial)
	number("tls_ms", f.TLS)
	number("ttfb_ms", f.TTFB)
	text("dialed", f.Dialed)
	if f.Status != 0 {
		attrs = append(attrs, slog.Int("status", f.Status))
	}
	if f.Ended {
		attrs = append(attrs, slog.Int64("up", f.Up), slog.Int64("down", f.Down))
	}
	return attrs
}
