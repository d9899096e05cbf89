// Package forward joins the streams the relay opens to connections of the app
// beside the agent. It moves bytes and does not look into them: HTTP is spoken
// between the relay and the app.
//
// The one rule to know: a stream is accepted only after the app has accepted
// the connection, so that a refusal proves that nothing reached the app.
package forward

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/posternhq/postern/protocol"
)

// dialTimeout is how long the app may take to accept a connection.
const dialTimeout = 10 * time.Second

// Forwarder serves streams towards one app. All methods are safe for concurrent
// use.
type Forwarder struct {
	target atomic.Pointer[string] // host:port
	log    *slog.Logger

	// Refused, when set, is called each time the app does not accept a connection.
	// Set it before the first stream; it must not wait.
	Refused func()

	refused atomic.Bool // the last connection was refused; so that the log says it once
}

// New makes a Forwarder to target, "127.0.0.1:3000". log may be nil.
func New(target string, log *slog.Logger) *Forwarder {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f := &Forwarder{log: log}
	f.SetTarget(target)
	return f
}

// SetTarget sends the streams from now on to another address of the app.
func (f *Forwarder) SetTarget(target string) { f.target.Store(&target) }

// Serve carries one stream until both directions have ended.
func (f *Forwarder) Serve(ctx context.Context, s *protocol.Stream) {
	o := s.Open()
	switch {
	case o.Kind != protocol.KindHTTP && o.Kind != protocol.KindTCP:
		s.Refuse(protocol.CodeUnsupported, "this agent does not serve streams of kind "+string(o.Kind))
		return
	case o.Addr != "":
		s.Refuse(protocol.CodeForbidden, "this agent serves the app's own port only")
		return
	}
	target := *f.target.Load()
	conn, err := f.dial(ctx, target)
	if err != nil {
		code, message := explain(err, target)
		if !f.refused.Swap(true) {
			f.log.Warn("app does not accept connections", "target", target, "err", err)
		}
		if f.Refused != nil {
			f.Refused()
		}
		s.Refuse(code, message)
		return
	}
	if f.refused.Swap(false) {
		f.log.Info("app accepts connections again", "target", target)
	}
	if s.Accept() != nil {
		conn.Close()
		return
	}
	if o.Kind == protocol.KindHTTP {
		protocol.SpliceRequests(s, conn, takenOf(conn))
		return
	}
	protocol.Splice(s, conn)
}

func (f *Forwarder) dial(ctx context.Context, target string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	return d.DialContext(ctx, "tcp", target)
}

// explain turns a failed dial into what the relay is told.
func explain(err error, target string) (protocol.Code, string) {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return protocol.CodeRefused, "nothing listens on " + target
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return protocol.CodeRefused, target + " does not accept the connection in time"
	}
	return protocol.CodeRefused, target + " cannot be reached"
}
