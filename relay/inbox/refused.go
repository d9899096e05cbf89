package inbox

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/posternhq/postern/relay"
)

// Bounds of what is kept of webhooks that were refused: anybody can send one, as
// often and as large as they like.
const (
	refusedBurst     = 10      // of one endpoint at once,
	refusedRate      = 1       // and then a second
	maxRefusedBody   = 1 << 20 // a larger body is left out,
	refusedBytes     = 4 << 20 // so is one when an endpoint had so many bytes at once,
	refusedBytesRate = 8 << 10 // and then a second
	refusedBodyTime  = 24 * time.Hour
	refusedQueue     = 32
)

// refusals are the webhooks that were refused and are to be kept.
type refusals struct {
	queue chan refusal

	mu     sync.Mutex
	limits map[laneID]*refusalLimit
}

type refusalLimit struct{ events, bytes bucket }

// refusal is a webhook that was refused.
type refusal struct {
	ep    relay.Endpoint
	in    relay.Incoming // without its body when that is too large to be kept
	event relay.Event
}

func newRefusals() refusals {
	return refusals{queue: make(chan refusal, refusedQueue), limits: make(map[laneID]*refusalLimit)}
}

// allow reports whether one more of ep may be kept, and whether with its body of
// size bytes.
func (r *refusals) allow(ep relay.Endpoint, size int, now time.Time) (event, body bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := laneID{app: ep.App, endpoint: ep.Name}
	l := r.limits[id]
	if l == nil {
		l = &refusalLimit{}
		r.limits[id] = l
	}
	l.events.refill(refusedRate, refusedBurst, now)
	l.bytes.refill(refusedBytesRate, refusedBytes, now)
	if l.events.whole() < 1 {
		return false, false
	}
	l.events.take(1)
	if size > maxRefusedBody || size > l.bytes.whole() {
		return true, false
	}
	l.bytes.take(size)
	return true, true
}

// refuse notes that in was turned away. It never waits: the sender's answer does
// not depend on it. Requests that carry no webhook are nobody's concern.
func (b *Inbox) refuse(ep relay.Endpoint, in relay.Incoming, v relay.Verdict) {
	switch in.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return
	}
	now := b.cfg.Now()
	e := eventOf(ep, in, relay.Verdict{Type: v.Type, SentAt: v.SentAt}, now)
	e.Refusal = v.Reason
	if day := in.ReceivedAt.Add(refusedBodyTime); day.Before(e.BodyExpiresAt) {
		e.BodyExpiresAt = day
	}
	event, body := b.refusals.allow(ep, len(in.Body), now)
	if !body {
		e.Body = nil
	}
	if len(in.Body) > maxRefusedBody {
		in.Body = nil
	}
	if event && b.admit(ep.App) == nil {
		select {
		case b.refusals.queue <- refusal{ep, in, e}:
			return
		default: // the store is slower than whoever sends this
		}
	}
	b.note(relay.Notice{Kind: relay.NoticeRefused, At: now, Event: e})
}

// keepRefusals explains and stores refused webhooks until ctx ends. One that
// cannot be stored is only shown to those who watch.
func (b *Inbox) keepRefusals(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-b.refusals.queue:
			b.keepRefusal(ctx, r)
		}
	}
}

func (b *Inbox) keepRefusal(ctx context.Context, r refusal) {
	if int64(len(r.in.Body)) == r.event.BodySize {
		if why := b.cfg.Explain(r.ep, r.in); why != "" {
			r.event.Refusal += ". " + why
		}
	}
	call, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	_, err := b.cfg.Store.CreateEvents(call, []relay.NewEvent{{Event: r.event}})
	if err != nil && ctx.Err() == nil {
		b.cfg.Logger.Warn("refused webhook not kept", "app", r.ep.App, "endpoint", r.ep.Name, "error", err)
	}
	if err == nil {
		b.usage.add(relay.NewEvent{Event: r.event})
	}
	b.note(relay.Notice{Kind: relay.NoticeRefused, At: b.cfg.Now(), Event: r.event})
}
