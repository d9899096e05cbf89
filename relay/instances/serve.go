package instances

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

const (
	idleTime = time.Minute     // an agent reports every few seconds
	lastTime = 5 * time.Second // for the agent's own end, once its exit is kept
)

// server is one stream that is being served.
type server struct {
	record *record
	again  *resent // what the agent may send once more; nil: nothing
	end    func()  // resets the stream, because a newer one has come
}

// Serve reads one stream of protocol.KindReport of app until it ends, in the
// caller's goroutine. It answers the Open and closes the stream. ctx ends it.
//
// An agent that has no app to speak of, or does not want to, ends its stream with
// a FIN and without an exit: that leaves nothing behind.
func (t *Tracker) Serve(ctx context.Context, app relay.AppID, s *protocol.Stream) {
	sv, err := t.open(app, s.Session().Hello(), func() { s.Reset(protocol.CodeReplaced) })
	if err != nil {
		t.cfg.Logger.Warn("report refused", "app", app, "err", err)
		s.Refuse(protocol.CodeLimit, err.Error())
		return
	}
	defer s.Close()
	defer context.AfterFunc(ctx, func() { s.Reset(protocol.CodeShutdown) })()
	var exit *protocol.Exit
	if err = s.Accept(); err == nil {
		exit, err = t.read(ctx, sv, s, s.SetReadDeadline)
	}
	if exit == nil {
		t.lost(sv, err)
		if protocol.CodeOf(err) == protocol.CodeBadMessage {
			s.Reset(protocol.CodeBadMessage)
		}
		return
	}
	// The agent is on its way out and waits for this: so long as the store works,
	// nothing that happens to the tunnel may keep the words from it.
	if !t.ended(context.WithoutCancel(ctx), sv, *exit) {
		s.Reset(protocol.CodeReset)
		return
	}
	if s.CloseWrite() == nil {
		s.SetReadDeadline(time.Now().Add(lastTime))
		io.Copy(io.Discard, io.LimitReader(s, protocol.MaxFrame))
	}
}

// open makes the record of an agent's boot, or finds it, for a stream that end
// resets.
func (t *Tracker) open(app relay.AppID, h protocol.Hello, end func()) (*server, error) {
	k := key{app, h.Instance, h.BootID}
	now := t.cfg.Now()
	t.mu.Lock()
	r := t.records[k]
	if r == nil {
		if t.perApp[app] >= maxPerApp && !t.evictLocked(app) {
			t.mu.Unlock()
			return nil, relay.Errorf(relay.Overloaded, "the app has %d instances that report already", maxPerApp)
		}
		r = &record{key: k, hello: h, started: now, heard: now}
		t.records[k] = r
		t.perApp[app]++
	}
	older := r.serving
	sv := &server{record: r, again: resentOf(r), end: end}
	r.serving, r.lost = sv, time.Time{}
	t.mu.Unlock()
	if older != nil {
		older.end() // its tunnel is dead and nobody has noticed yet
	}
	return sv, nil
}

// evictLocked forgets the app's record that was lost first, without last words:
// so many that wait are no accident.
func (t *Tracker) evictLocked(app relay.AppID) bool {
	var first *record
	for _, r := range t.records {
		if r.app == app && r.serving == nil && (first == nil || r.lost.Before(first.lost)) {
			first = r
		}
	}
	if first == nil {
		return false
	}
	t.forgetLocked(first)
	return true
}

// read takes reports in until the exit. io.EOF is an end without one. deadline
// sets the time by which the next message has to be there.
func (t *Tracker) read(ctx context.Context, sv *server, from io.Reader, deadline func(time.Time) error) (*protocol.Exit, error) {
	m := &meter{r: from}
	for {
		if err := deadline(time.Now().Add(idleTime)); err != nil {
			return nil, err
		}
		rep, err := protocol.ReadReport(m)
		if err != nil {
			return nil, err
		}
		now := t.cfg.Now()
		t.mu.Lock()
		current := sv.record.serving == sv
		if current {
			sv.record.add(rep, sv.again, now)
		}
		t.mu.Unlock()
		if !current {
			return nil, errReplaced
		}
		if rep.Exit != nil {
			return tidyExit(*rep.Exit, now), nil
		}
		if err := m.pause(ctx, now); err != nil {
			return nil, err
		}
	}
}

var errReplaced = errors.New("a newer stream of this agent has come")

// lost ends a stream that brought no exit.
func (t *Tracker) lost(sv *server, err error) {
	r := sv.record
	i, connected := t.tunnelOf(r.key)
	t.mu.Lock()
	defer t.mu.Unlock()
	if r.serving != sv {
		return // a newer one has taken over
	}
	r.serving, r.lost = nil, t.cfg.Now()
	r.leaving = connected && i.Draining
	if t.stopped || err == io.EOF { // a FIN; what wraps io.EOF is a connection that was lost
		t.forgetLocked(r)
	}
	t.cfg.Logger.Debug("report ended without an exit", "app", r.app, "instance", r.instance, "err", err)
}

// ended keeps how the instance has ended, and forgets the rest. False: it should
// have been kept and was not.
func (t *Tracker) ended(ctx context.Context, sv *server, exit protocol.Exit) bool {
	r := sv.record
	others := 0
	for _, i := range t.cfg.Instances(r.app) {
		if i.Name != r.instance || i.BootID != r.boot {
			others++
		}
	}
	t.mu.Lock()
	if r.serving != sv {
		t.mu.Unlock()
		return true // the agent speaks to a newer stream
	}
	t.forgetLocked(r)
	w := r.words(t.cfg.Now(), &exit, r.exitReason(&exit))
	t.mu.Unlock()
	if orderly(exit) {
		if others > 0 {
			t.cfg.Logger.Debug("instance stopped", "app", r.app, "instance", r.instance, "release", r.hello.Release, "code", exit.Code)
			return true
		}
		w = short(w)
	}
	return t.save(ctx, w)
}
