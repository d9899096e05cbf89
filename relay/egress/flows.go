package egress

import (
	"context"
	"io"
	"time"

	"golang.org/x/time/rate"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// What an agent may report.
const (
	maxReport    = 64 << 10 // bytes of one record
	reportRate   = 2000     // records a second; the stream's window holds back what is more
	reportBurst  = 10000
	oldestReport = 7 * 24 * time.Hour // agents keep records while they have no relay
)

// TakeFlows takes the records on a stream of protocol.KindFlows: calls that an agent
// decided itself. App and instance are the session's, whatever a record says; texts
// are bounded, numbers are made sensible, and nobody believes that a record's call
// went through the relay. It returns when the stream ends.
func (e *Egress) TakeFlows(ctx context.Context, app relay.AppID, instance string, s *protocol.Stream) {
	defer s.Close()
	s.Aside()
	if s.Accept() != nil {
		return
	}
	pace := rate.NewLimiter(reportRate, reportBurst)
	for {
		var f protocol.Flow
		if err := protocol.ReadMessage(s, maxReport, &f); err != nil {
			if err == io.EOF {
				s.CloseWrite()
			} else if ctx.Err() == nil && protocol.CodeOf(err) == protocol.CodeBadMessage {
				e.log.Warn("records of an agent's own calls cannot be read", "app", app, "instance", instance, "err", err)
				s.Reset(protocol.CodeBadMessage)
			}
			return
		}
		if pace.Wait(ctx) != nil {
			return
		}
		e.report(app, instance, f)
	}
}

// report takes one record.
func (e *Egress) report(app relay.AppID, instance string, f protocol.Flow) {
	now := e.cfg.Now()
	f.App, f.Instance, f.Team, f.Via = string(app), instance, e.cfg.Team(app), "direct"
	if f.Dialed == "" && f.Verdict == denied {
		f.Via = "agent" // it refused the call by itself, and nobody dialed
	}
	if !validFlowID(f.ID) {
		f.ID = relay.NewFlowID(now)
	}
	f.Form = oneOf(f.Form, "tunnel", "request")
	f.From = oneOf(f.From, "connect", "socks", "forward", "http")
	f.Verdict = oneOf(f.Verdict, denied, allowed, reported)
	for _, text := range []*string{&f.Method, &f.Cause} {
		*text = clip(*text, maxMethod)
	}
	for _, text := range []*string{&f.Target, &f.SNI, &f.Rule, &f.Dialed} {
		*text = clip(*text, maxTarget)
	}
	f.Path, f.Reason = clip(f.Path, maxPath), clip(f.Reason, maxText)
	if f.Traceparent != "" && !validTraceparent(f.Traceparent) {
		f.Traceparent = ""
	}
	if f.StartedAt.After(now) || f.StartedAt.Before(now.Add(-oldestReport)) {
		f.StartedAt = now
	}
	for _, n := range []*int64{&f.Up, &f.Down, &f.Version, &f.Serial} {
		*n = max(*n, 0)
	}
	f.Up, f.Down = min(f.Up, maxBytes), min(f.Down, maxBytes)
	for _, ms := range []*float64{&f.Duration, &f.Policy, &f.DNS, &f.Dial, &f.TLS, &f.TTFB} {
		*ms = min(max(*ms, 0), float64(oldestReport.Milliseconds()))
	}
	f.Status = min(max(f.Status, 0), 999)
	f.Fresh = false
	e.ledger.external(app, f)
	if f.Ended {
		e.cfg.Observe(app, f.Version, f.Verdict == denied)
	}
}

// maxBytes is more than one call moves: sums must not overflow.
const maxBytes = 1 << 50

// oneOf is s when it is one of the words, else the first of them.
func oneOf(s string, words ...string) string {
	for _, w := range words {
		if s == w {
			return s
		}
	}
	return words[0]
}
