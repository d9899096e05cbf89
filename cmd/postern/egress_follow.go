package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/api"
)

const (
	// maxFlowMessage is the most that one call may take in the relay's stream.
	maxFlowMessage = 256 << 10

	// maxMarks is how much of what was shown is remembered, so that a stream which
	// was opened again shows nothing twice. It is more than callsMost has ends and
	// decisions of.
	maxMarks = 4 * callsMost
)

// follow shows the latest calls, at most limit, and then what comes, until ctx ends,
// the reader of the lines has gone, or trying again is of no use.
func (l *callLog) follow(ctx context.Context, limit int) error {
	return l.keep(ctx, func(ctx context.Context) error { return l.read(ctx, limit) }, nil)
}

// read opens the stream, shows what was before it, and then what it brings. In this
// order nothing is missed between the two.
func (l *callLog) read(ctx context.Context, limit int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	res, err := l.client.open(ctx, apiRequest{path: []string{"egress", "flows", "stream"}, ofApp: true, header: http.Header{"Accept": {"text/event-stream"}}})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if kind, _, _ := strings.Cut(res.Header.Get("Content-Type"), ";"); kind != "text/event-stream" {
		return l.client.notAnAPI(res, nil)
	}
	if err := l.catchUp(ctx, limit); err != nil {
		return err
	}
	if l.open() && l.c.errTerminal {
		l.c.say("waiting for calls; Ctrl-C ends")
	}
	stream := newSSEReader(&watched{r: res.Body, limit: silence, cut: func() { cancel(errSilent) }}, maxFlowMessage)
	for {
		m, err := stream.next()
		l.retry = min(stream.retry, reconnectMost)
		switch {
		case errors.Is(context.Cause(ctx), errSilent):
			return errSilent
		case err != nil && ended(err):
			return errors.New("it closed the stream")
		case err != nil:
			return err
		}
		l.message(m)
		if l.c.out.Err() != nil {
			return l.c.out.Err()
		}
	}
}

// catchUp shows the latest calls: all of them at first, and later those that were
// not shown yet.
func (l *callLog) catchUp(ctx context.Context, limit int) error {
	if l.opened {
		limit = callsMost
	}
	flows, err := l.latest(ctx, limit)
	if err != nil {
		return err
	}
	for i := range flows {
		// What is older than the first call shown was left out on purpose.
		if !l.opened || flows[i].StartedAt.After(l.openedAt.Add(-time.Minute)) || l.seen[mark(&flows[i], false)] {
			l.once(&flows[i])
		}
	}
	return nil
}

// message shows what one message of the stream brings.
func (l *callLog) message(m sseMessage) {
	if m.tooLong {
		l.c.say("a call is too long to be shown here")
		return
	}
	if m.event != api.FlowEvent {
		return // of a newer relay
	}
	var f protocol.Flow
	if err := json.Unmarshal(m.data, &f); err != nil {
		l.c.say("the relay sent what this version cannot read: %v", err)
		return
	}
	if l.matches(&f) {
		l.once(&f)
	}
}

// once shows f unless it was shown before.
func (l *callLog) once(f *protocol.Flow) {
	own := mark(f, f.Ended)
	if l.seen[own] {
		return
	}
	at := f.StartedAt
	if f.Ended && l.seen[mark(f, false)] {
		at = at.Add(time.Duration(f.Duration * float64(time.Millisecond)))
	}
	l.remember(own)
	l.remember(mark(f, false)) // a decision that comes behind its end tells nothing
	l.print(f, at)
}

func (l *callLog) remember(mark string) {
	if l.seen[mark] {
		return
	}
	l.seen[mark], l.marks = true, append(l.marks, mark)
	if len(l.marks) > maxMarks {
		delete(l.seen, l.marks[0])
		l.marks = l.marks[1:]
	}
}

// mark tells what is written at a call's decision from what is written at its end.
func mark(f *protocol.Flow, ended bool) string {
	if ended {
		return f.ID + " ended"
	}
	return f.ID
}
