package admin

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/relay"
)

// How a stream of logs works. Agents keep the lines; the relay keeps none, it
// opens a stream of protocol.KindLogs to each instance and merges what comes:
//
//	streamLogs       may it, is there such an app
//	logStream.run    head → loop, which owns everything below
//	  look           which instances are there; follow: every lookEvery
//	  logSource.read one goroutine for each instance: open, then line for line
//	  take           what a source says: open, a line, its end
//	  show           the line that is next, by time
//	  heartbeat      may the token still → beat
//
// Each source has one line at the door and sends its next one when that is shown,
// so that a slow reader slows the agents' streams down, and those drop and count.
// A line is shown when no other source may have an earlier one: each has a line
// too, or has been quiet for a moment.

// Limits of a stream of logs.
const (
	defaultLogLines = 200
	maxLogLines     = 10_000
	maxLogSources   = 64 // instances that one stream reads

	openTime   = 10 * time.Second // to open the stream of one instance
	lineTime   = 20 * time.Second // between two messages, of one that does not follow
	lookEvery  = time.Second
	openAgain  = 2 * time.Second        // after the stream of an instance that is still there broke
	tryAgain   = 30 * time.Second       // after it was refused
	firstQuiet = time.Second            // a source is waited for so long at its beginning
	thenQuiet  = 200 * time.Millisecond // and after each of its lines
	waitMost   = time.Second            // no line waits longer, whatever time it claims
)

// logStream is one reader of an app's logs. Its goroutine is the request's; it
// starts the sources' and waits for them.
type logStream struct {
	s        *Server
	app      relay.AppID
	instance string // "" is all
	query    protocol.LogQuery
	end      func() // gives the place back

	out     *eventWriter
	sources map[string]*logSource // by boot id and name
	said    chan said
	readers sync.WaitGroup
	none    bool // the reader knows that no agent is connected
	limited bool // and that there are too many
}

// logSource is one instance. The stream's goroutine owns the fields below next.
type logSource struct {
	of   relay.Instance
	next chan struct{} // one token: the source may send its next line

	reading bool           // its goroutine runs
	open    bool           // the agent has accepted
	told    string         // the kind of the last notice about it
	head    *protocol.Line // at the door
	came    time.Time      // when it came there
	asked   time.Time      // since when the next one is waited for
	quiet   time.Duration  // for how long
	last    time.Time      // of the last line shown, by the agent's clock
	begin   time.Time      // lines up to it were shown by an earlier stream
	again   time.Time      // when to open it again
}

// said is what a source has to say: a line, that it is open, or its end.
type said struct {
	by   *logSource
	line *protocol.Line
	open bool
	err  error
}

// streamLogs prepares a stream of logs; run serves it.
func (s *Server) streamLogs(c *call) (any, error) {
	if c.app == "" {
		return nil, relay.Errorf(relay.Invalid, "whose logs? Name the app")
	}
	if err := s.knows(c.ctx(), c.app); err != nil {
		return nil, err
	}
	follow, _ := c.query.flag("follow")
	if err := s.takePlace(c.who.Token); err != nil {
		return nil, err
	}
	return &logStream{
		s: s, app: c.app, instance: c.query.text(paramInstance.name),
		query:   protocol.LogQuery{Lines: c.query.number("lines", defaultLogLines), Follow: follow},
		end:     func() { s.givePlace(c.who.Token) },
		sources: make(map[string]*logSource), said: make(chan said),
	}, nil
}

// run serves the stream.
func (st *logStream) run(c *call, w http.ResponseWriter) {
	defer st.end()
	ctx, cancel := context.WithCancel(c.ctx())
	defer st.readers.Wait()
	defer cancel()
	defer context.AfterFunc(st.s.ctx, cancel)()
	var err error
	if st.out, err = newEventWriter(w, c.r); err == nil {
		err = st.loop(ctx, c.r)
	}
	if err != nil && ctx.Err() == nil {
		st.s.cfg.Logger.Debug("log stream ended", "request_id", c.id, "token", c.who.Token, "err", err)
	}
}

func (st *logStream) loop(ctx context.Context, r *http.Request) error {
	beat, look := time.NewTicker(st.s.heartbeat), time.NewTicker(lookEvery)
	defer beat.Stop()
	defer look.Stop()
	settle := time.NewTimer(time.Hour) // set anew each time
	defer settle.Stop()
	if err := st.look(ctx); err != nil {
		return err
	}
	for {
		wait, err := st.show()
		if err != nil {
			return err
		}
		if !st.query.Follow && st.over() {
			return st.tell(nil, api.LogEnd, "")
		}
		settle.Stop()
		if wait > 0 {
			settle.Reset(wait)
		}
		select {
		case <-ctx.Done():
			return nil
		case w := <-st.said:
			err = st.take(w)
		case <-look.C:
			if st.query.Follow {
				err = st.look(ctx)
			}
		case <-beat.C:
			if _, err = st.s.cfg.Authorize(r); err == nil {
				err = st.out.beat()
			}
		case <-settle.C: // some source is quiet
		}
		if err != nil {
			return err
		}
	}
}

// look finds out which instances there are, and opens those that are not open.
func (st *logStream) look(ctx context.Context) error {
	now := time.Now()
	there := make(map[string]bool)
	for _, i := range st.s.instances(st.app) {
		if st.instance != "" && i.Name != st.instance {
			continue
		}
		id := i.BootID + "/" + i.Name
		there[id] = true
		src := st.sources[id]
		if src == nil {
			if len(st.sources) >= maxLogSources {
				if !st.limited {
					st.limited = true
					if err := st.tell(nil, api.LogLimit, "the app has more instances than one stream reads; name one"); err != nil {
						return err
					}
				}
				continue
			}
			src = &logSource{next: make(chan struct{}, 1)}
			st.sources[id] = src
		}
		src.of = i
		if !src.reading && !now.Before(src.again) {
			st.start(ctx, src, now)
		}
	}
	for id, src := range st.sources {
		if there[id] || src.reading || src.head != nil {
			continue
		}
		delete(st.sources, id)
		if src.told == api.LogOpen || src.told == api.LogUnreadable {
			if err := st.tell(src, api.LogGone, "the instance has ended, or its agent was lost"); err != nil {
				return err
			}
		}
	}
	was := st.none
	if st.none = len(st.sources) == 0; was || !st.none {
		return nil
	}
	what := "no agent of the app " + string(st.app)
	if st.instance != "" {
		what = "no agent of the instance " + quoted(st.instance)
	}
	return st.tell(nil, api.LogNone, what+" is connected")
}

// start begins to read src, from where an earlier stream of it ended.
func (st *logStream) start(ctx context.Context, src *logSource, now time.Time) {
	src.reading, src.open, src.begin = true, false, src.last
	src.asked, src.quiet = now, firstQuiet
	query := st.query
	if !src.begin.IsZero() {
		query.Lines = max(query.Lines, defaultLogLines) // among them what was missed
	}
	of := src.of
	st.readers.Go(func() { src.read(ctx, st, of, query) })
}

// read brings the lines of one instance until its stream ends. It touches nothing
// of src but next.
func (src *logSource) read(ctx context.Context, st *logStream, of relay.Instance, query protocol.LogQuery) {
	tell := func(w said) bool {
		w.by = src
		select {
		case st.said <- w:
			return true
		case <-ctx.Done():
			return false
		}
	}
	conn, err := st.openLogs(ctx, of, query)
	if err != nil {
		tell(said{err: err})
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if !tell(said{open: true}) {
		return
	}
	for {
		if !query.Follow {
			conn.SetReadDeadline(time.Now().Add(lineTime))
		}
		rep, err := protocol.ReadReport(conn)
		if err != nil {
			tell(said{err: err})
			return
		}
		for i := range rep.Lines {
			if !tell(said{line: &rep.Lines[i]}) {
				return
			}
			select {
			case <-src.next:
			case <-ctx.Done():
				return
			}
		}
	}
}

func (st *logStream) openLogs(ctx context.Context, of relay.Instance, query protocol.LogQuery) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, openTime)
	defer cancel()
	return st.s.cfg.Agents.OpenInstance(ctx, of.App, of.Name, of.BootID, protocol.Open{Kind: protocol.KindLogs, Logs: &query})
}

// take notes what a source says.
func (st *logStream) take(w said) error {
	src, now := w.by, time.Now()
	switch {
	case w.line != nil:
		src.head, src.came = w.line, now
		return nil
	case w.open:
		src.open = true
		if src.told == api.LogOpen {
			return nil
		}
		return st.tell(src, api.LogOpen, "")
	}
	src.reading = false
	if src.open {
		src.again = now.Add(openAgain)
		if st.query.Follow || errors.Is(w.err, io.EOF) {
			return nil
		}
		return st.tell(src, api.LogUnreadable, "the lines broke off: "+plainly(w.err))
	}
	src.again = now.Add(tryAgain)
	switch relay.CodeOf(w.err) {
	case relay.NotFound, relay.NoAgent, relay.AppReset:
		src.again = now.Add(openAgain) // on its way out, or between two tunnels
		if st.query.Follow {
			return nil
		}
	}
	if src.told == api.LogUnreadable || st.query.Follow && src.told == api.LogOpen {
		return nil
	}
	return st.tell(src, api.LogUnreadable, plainly(w.err))
}

// plainly is what the reader may know of err.
func plainly(err error) string {
	var e *relay.Error
	switch {
	case relay.CodeOf(err) == relay.AppRefused:
		return "its agent gives no logs: it is of an earlier version, or keeps none (POSTERN_NO_LOGS)"
	case errors.As(err, &e):
		return e.Message
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "its agent did not answer in time"
	}
	return "the connection to its agent was lost"
}

// show sends the lines whose turn it is, and says how long to wait for the next
// one; 0: until something happens.
func (st *logStream) show() (wait time.Duration, err error) {
	for {
		now := time.Now()
		var first, stale *logSource
		wait = 0
		for _, src := range st.sources {
			if src.head != nil {
				if first == nil || src.head.At.Before(first.head.At) {
					first = src
				}
				if now.Sub(src.came) > waitMost && (stale == nil || src.came.Before(stale.came)) {
					stale = src
				}
				continue
			}
			if left := src.quiet - now.Sub(src.asked); src.reading && left > 0 && (wait == 0 || left < wait) {
				wait = left
			}
		}
		switch {
		case first == nil:
			return 0, nil
		case stale != nil:
			first = stale
		case wait > 0:
			return wait, nil
		}
		if err := st.showLine(first, now); err != nil {
			return 0, err
		}
	}
}

// showLine sends the line at src's door and asks for the next.
func (st *logStream) showLine(src *logSource, now time.Time) error {
	line := *src.head
	src.head, src.asked, src.quiet = nil, now, thenQuiet
	src.next <- struct{}{} // has room: a source sends one line at a time
	if !src.begin.IsZero() && !line.At.After(src.begin) {
		return nil
	}
	if line.At.After(src.last) && line.At.Before(now.Add(time.Minute)) { // or else its clock hides what follows
		src.last = line.At
	}
	line.At = jsonTime(line.At)
	return st.out.send(api.LogLineEvent, "", api.LogLine{Instance: src.of.Name, BootID: src.of.BootID, Line: line})
}

// over reports whether nothing comes any more.
func (st *logStream) over() bool {
	for _, src := range st.sources {
		if src.reading || src.head != nil {
			return false
		}
	}
	return true
}

// tell sends a notice, about src or, for nil, about all.
func (st *logStream) tell(src *logSource, kind, why string) error {
	n := api.LogNotice{Kind: kind, Why: why}
	if src != nil {
		src.told = kind
		n.Instance, n.BootID, n.Release = src.of.Name, src.of.BootID, src.of.Release
	}
	return st.out.send(kind, "", n)
}
