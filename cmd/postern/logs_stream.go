package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/posternhq/postern/protocol/api"
)

// maxLogMessage is the most that one line may take in the relay's stream: 8 KiB of
// text, each byte up to six in JSON, and what is around it.
const maxLogMessage = 256 << 10

// maxBoots is how many boots of instances are remembered, so that a stream which
// was opened again shows no line twice.
const maxBoots = 1000

// logReader follows the relay's stream of logs. One goroutine uses it.
type logReader struct {
	again
	client   *apiClient
	instance string // "" is all
	lines    int
	follow   bool
	json     bool

	boots    map[string]*bootLog // by boot id and instance
	colors   map[string]string   // of the instances' names
	width    int                 // of the widest name so far
	readable bool                // some instance was read
	none     bool                // none is connected, as far as the relay said last
	done     bool                // the relay said that this was all
	waited   bool                // last words were shown while following
}

// bootLog is what was shown of one boot.
type bootLog struct {
	last  time.Time // the time of its last line
	begin time.Time // what it was when the stream was opened
}

func newLogReader(c *console, client *apiClient, instance string, lines int, follow, asJSON bool) *logReader {
	return &logReader{again: again{c: c, wait: sleep}, client: client, instance: instance, lines: lines, follow: follow, json: asJSON,
		boots: map[string]*bootLog{}, colors: map[string]string{}}
}

// run reads the stream to its end, or until ctx ends when it follows.
func (r *logReader) run(ctx context.Context) (int, error) {
	if !r.follow {
		err := r.read(ctx)
		switch {
		case r.c.out.Err() != nil:
			return exitOK, nil
		case err != nil:
			return exitFailed, err
		case r.none:
			return r.instead(ctx)
		case !r.readable:
			return exitFailed, errors.New("no instance could be read")
		}
		return exitOK, nil
	}
	err := r.keep(ctx, r.read, nil)
	if errors.Is(err, context.Canceled) {
		return exitOK, err
	}
	return exitFailed, err
}

// errCut is the end of a stream before the relay said that this was all.
var errCut = errors.New("the relay closed the stream before all lines had come")

// read opens the stream and shows what comes, until it ends. It is nil only when
// all has come that was asked for.
func (r *logReader) read(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	lines := r.lines
	if r.opened {
		lines = max(lines, defaultLines) // among them what was missed
	}
	res, err := r.client.open(ctx, logsRequest(r.instance, lines, r.follow))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if kind, _, _ := strings.Cut(res.Header.Get("Content-Type"), ";"); kind != "text/event-stream" {
		return r.client.notAnAPI(res, nil)
	}
	r.open()
	for _, b := range r.boots {
		b.begin = b.last
	}
	stream := newSSEReader(&watched{r: res.Body, limit: silence, cut: func() { cancel(errSilent) }}, maxLogMessage)
	for {
		m, err := stream.next()
		r.retry = min(stream.retry, reconnectMost)
		switch {
		case errors.Is(context.Cause(ctx), errSilent):
			return errSilent
		case errors.Is(context.Cause(ctx), context.Canceled):
			return context.Canceled
		case err != nil && ended(err) && r.follow:
			return errors.New("it closed the stream")
		case err != nil && ended(err):
			return errCut
		case err != nil:
			return err
		}
		r.show(ctx, m)
		if r.done || r.c.out.Err() != nil {
			return r.c.out.Err()
		}
	}
}

// show prints one message.
func (r *logReader) show(ctx context.Context, m sseMessage) {
	if m.tooLong {
		r.c.say("a line is too long to be shown here")
		return
	}
	if m.event == api.LogLineEvent {
		var l api.LogLine
		if err := json.Unmarshal(m.data, &l); err != nil {
			r.c.say("the relay sent what this version cannot read: %v", err)
			return
		}
		if r.fresh(&l) {
			r.printLine(&l)
		}
		return
	}
	var n api.LogNotice
	if json.Unmarshal(m.data, &n) == nil {
		r.notice(ctx, &n)
	}
}

// fresh reports whether l was not shown before the stream was opened again.
func (r *logReader) fresh(l *api.LogLine) bool {
	id := l.BootID + "/" + l.Instance
	b := r.boots[id]
	if b == nil {
		if len(r.boots) >= maxBoots {
			clear(r.boots)
		}
		b = &bootLog{}
		r.boots[id] = b
	}
	if !b.begin.IsZero() && !l.At.After(b.begin) {
		return false
	}
	// A clock far ahead must not hide what comes when it is set right.
	if l.At.After(b.last) && l.At.Before(r.c.now().Add(time.Hour)) {
		b.last = l.At
	}
	return true
}

// notice says what happened besides lines. What is routine is for terminals only.
func (r *logReader) notice(ctx context.Context, n *api.LogNotice) {
	name, why := line(n.Instance), line(n.Why)
	switch n.Kind {
	case api.LogEnd:
		r.done = !r.follow
	case api.LogOpen:
		r.readable, r.none = true, false
		if r.follow && r.c.errTerminal {
			release := ""
			if n.Release != "" {
				release = ", release " + line(n.Release)
			}
			r.c.say("-- %s is connected%s", name, release)
		}
	case api.LogGone:
		if r.follow {
			r.c.say("-- %s: %s", name, r.ending(ctx, n, why))
		}
	case api.LogUnreadable:
		r.none = false
		r.c.say("%s cannot be read: %s", name, why)
	case api.LogLimit:
		r.c.say("%s", why)
	case api.LogNone:
		r.none = true
		if r.follow {
			r.await(ctx)
		}
	}
}

// ending is how the instance of n ended, where the relay knows that by now.
func (r *logReader) ending(ctx context.Context, n *api.LogNotice, otherwise string) string {
	all, err := r.client.lastWords(ctx, n.Instance, 5)
	if err != nil {
		return otherwise
	}
	for _, w := range all {
		if w.BootID == n.BootID {
			return "it ended: " + line(w.Reason)
		}
	}
	return otherwise
}

// await is what a reader that follows sees while no agent is connected.
func (r *logReader) await(ctx context.Context) {
	if !r.waited && !r.readable {
		r.waited = true
		if all, err := r.client.lastWords(ctx, r.instance, 1); err == nil && len(all) > 0 {
			r.printLastWords(&all[0], r.lines)
		}
	}
	r.c.say("-- no agent of %s is connected; waiting for one", r.whose())
}

// instead shows the last words where nothing else is to be read.
func (r *logReader) instead(ctx context.Context) (int, error) {
	all, err := r.client.lastWords(ctx, r.instance, 1)
	if err != nil {
		return exitFailed, err
	}
	if len(all) == 0 {
		return exitFailed, errors.New("no agent of " + r.whose() + " is connected, and the relay knows of no end of one")
	}
	r.c.say("no agent of %s is connected", r.whose())
	r.printLastWords(&all[0], r.lines)
	return exitOK, nil
}

// whose is what is read, in words.
func (r *logReader) whose() string {
	app := line(r.client.tokenApp())
	if r.instance != "" {
		app += "/" + line(r.instance)
	}
	return app
}

// printData writes v as one line of JSON, or indented, with nothing in it that
// could steer a terminal: JSON itself leaves the controls beyond ASCII as they are.
func (c *console) printData(v any, indent bool) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if indent {
		e.SetIndent("", "  ")
	}
	if err := e.Encode(v); err != nil {
		return err
	}
	_, err := io.WriteString(c.out, plainJSON(b.String()))
	return err
}
