package inbox

import (
	"sync"

	"github.com/posternhq/postern/relay"
)

// noticeBuffer is how many notices a reader may be behind before it misses some.
const noticeBuffer = 256

// watchers are those who want to hear of events. The zero value has none.
type watchers struct {
	mu  sync.Mutex
	all map[chan relay.Notice]relay.AppID
}

// Subscribe gives the notices of app, or with "" of all apps, until cancel,
// which closes the channel. A reader that is too slow misses some.
func (b *Inbox) Subscribe(app relay.AppID) (notices <-chan relay.Notice, cancel func()) {
	w := &b.watchers
	c := make(chan relay.Notice, noticeBuffer)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all == nil {
		w.all = make(map[chan relay.Notice]relay.AppID)
	}
	w.all[c] = app
	return c, func() { w.remove(c) }
}

func (w *watchers) remove(c chan relay.Notice) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, there := w.all[c]; there {
		delete(w.all, c)
		close(c)
	}
}

// note gives n to those who watch its app.
func (b *Inbox) note(n relay.Notice) {
	w := &b.watchers
	w.mu.Lock()
	defer w.mu.Unlock()
	for c, app := range w.all {
		if app != "" && app != n.Event.App {
			continue
		}
		select {
		case c <- n:
		default: // notices are for people; the store is what counts
		}
	}
}

// noteAttempt tells that a was made and left its delivery as d.
func (b *Inbox) noteAttempt(e relay.Event, d relay.Delivery, a relay.Attempt) {
	e.Body = nil
	b.note(relay.Notice{Kind: relay.NoticeAttempt, At: a.EndedAt, Event: e, Delivery: &d, Attempt: &a})
}
