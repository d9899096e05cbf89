package egress

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"github.com/posternhq/postern/protocol"
)

// trace notes a request's phases, and which connection it got.
func (f *forward) trace(ctx context.Context) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn:              f.gotConn,
		TLSHandshakeStart:    func() { f.tlsBegun.Store(time.Now().UnixNano()) },
		TLSHandshakeDone:     func(tls.ConnectionState, error) { f.tlsDone() },
		GotFirstResponseByte: f.call.firstDown,
	})
}

// gotConn is called before a byte of the request is written.
func (f *forward) gotConn(info httptrace.GotConnInfo) {
	conn := info.Conn
	if secure, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = secure.NetConn()
	}
	c, ok := conn.(*pooled)
	if !ok {
		return
	}
	if !info.Reused {
		f.call.edit(func(flow *protocol.Flow) {
			flow.DNS, flow.Dial = milliseconds(c.DNS), milliseconds(c.Dial)
		})
	}
	if r := f.call.dialed(c.Addr); r != nil {
		f.call.cut(r)
		c.Close()
	}
}

func (f *forward) tlsDone() {
	took := time.Duration(time.Now().UnixNano() - f.tlsBegun.Load())
	f.call.edit(func(flow *protocol.Flow) { flow.TLS = milliseconds(took) })
}

// upload counts what an app sends, and keeps to its limits.
type upload struct {
	body  io.Reader // the server's, which closes it
	call  *call
	ended atomic.Bool // read to its end
	over  atomic.Bool // closed
}

func (u *upload) Read(p []byte) (int, error) {
	if u.over.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := u.body.Read(p)
	if err == io.EOF {
		u.ended.Store(true)
	}
	if n > 0 {
		if r := u.call.lease.upload(n); r != nil {
			return 0, r
		}
		u.call.up.Add(int64(n))
	}
	return n, err
}

// Close implements io.Closer. What is left of the body may still be read; see
// outbound.Drain.
func (u *upload) Close() error {
	u.over.Store(true)
	return nil
}

// download counts what comes back.
type download struct {
	io.ReadCloser
	call *call
}

func (d *download) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	d.call.down.Add(int64(n))
	return n, err
}

// upgradedConn is the body of an answer 101.
type upgradedConn interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// upgraded counts the bytes of a WebSocket, and keeps to the limits. It moves them
// itself: httputil.ReverseProxy would hold a large buffer for each direction, however
// quiet.
type upgraded struct {
	upgradedConn
	call *call
}

// WriteTo moves the destination's bytes to the app.
func (u *upgraded) WriteTo(w io.Writer) (int64, error) {
	return move(w, undated{u.upgradedConn}, func(n int) error {
		u.call.down.Add(int64(n))
		return nil
	})
}

// ReadFrom moves the app's bytes to the destination.
func (u *upgraded) ReadFrom(r io.Reader) (int64, error) {
	from, ok := r.(deadlined)
	if !ok {
		from = undated{r}
	}
	return move(u.upgradedConn, from, func(n int) error {
		if refused := u.call.lease.upload(n); refused != nil {
			u.call.cut(refused)
			return refused
		}
		u.call.up.Add(int64(n))
		return nil
	})
}

// move copies until the end of r; allow is asked before bytes are written.
func move(w io.Writer, r deadlined, allow func(n int) error) (total int64, err error) {
	var l lender
	defer l.put()
	for {
		data, err := l.read(r)
		if len(data) > 0 {
			if err := allow(len(data)); err != nil {
				return total, err
			}
			n, err := w.Write(data)
			total += int64(n)
			if err != nil {
				return total, err
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// undated is a reader without deadlines: its buffer stays as large as it was needed.
type undated struct{ io.Reader }

func (undated) SetReadDeadline(time.Time) error { return nil }

// copyBuffers lends httputil.ReverseProxy its buffers.
type copyBuffers struct{}

func (copyBuffers) Get() []byte  { return largeBuffers.Get().(*[largeBuffer]byte)[:] }
func (copyBuffers) Put(b []byte) { largeBuffers.Put((*[largeBuffer]byte)(b)) }
