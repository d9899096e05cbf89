package tunnel

import (
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// maxReplay is how much of a request's body is remembered, so that it can be sent to
// another agent: until the first one has accepted the stream, and on a stream that
// was kept from an earlier request all the while, because the app may have closed
// its end meanwhile (protocol.CodeStale).
const maxReplay = 64 << 10

// rewindWait is how long a failed attempt's reader of the body may take to let
// go of it.
const rewindWait = 250 * time.Millisecond

// upload is the body of a request, readable again from its start as long as
// nothing has been forgotten.
type upload struct {
	mu       sync.Mutex // held while the client's body is read
	src      io.ReadCloser
	kept     []byte // what was read so far
	pos      int    // how much of kept the current attempt has had
	forgot   bool   // kept is not the whole of what was read
	finished error  // what src ended with

	lost atomic.Bool // an attempt did not let go of it
}

// newUpload is nil when the request has no body.
func newUpload(req *http.Request) *upload {
	if req.Body == nil || req.Body == http.NoBody {
		return nil
	}
	return &upload{src: req.Body}
}

// read gives what is kept, then reads on. Once it is settled that the attempt is the
// last one, nothing more is kept.
func (u *upload) read(p []byte, settled bool) (int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.pos < len(u.kept) {
		n := copy(p, u.kept[u.pos:])
		u.pos += n
		return n, nil
	}
	if u.finished != nil {
		return 0, u.finished
	}
	n, err := u.src.Read(p)
	u.finished = err
	if settled || len(u.kept)+n > maxReplay {
		u.forgot, u.kept, u.pos = u.forgot || n > 0 || len(u.kept) > 0, nil, 0
	}
	if !u.forgot {
		u.kept = append(u.kept, p[:n]...)
		u.pos = len(u.kept)
	}
	return n, err
}

// rewind goes back to the start; false when that is not possible. A nil upload
// can always be sent again. No attempt may be reading: see exchange.fail.
func (u *upload) rewind() bool {
	if u == nil {
		return true
	}
	if u.lost.Load() {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.pos = 0
	return !u.forgot
}

// close closes the client's body, unless somebody is reading it: net/http's
// server closes it once the request is answered, and a Close beside a Read would
// wait for the client's next byte.
func (u *upload) close() {
	if u != nil && u.mu.TryLock() {
		u.src.Close()
		u.mu.Unlock()
	}
}

// uploadReader is an upload as the body of one attempt.
type uploadReader struct{ x *exchange }

func (r *uploadReader) Read(p []byte) (int, error) {
	return r.x.up.read(p, !r.x.c.reused && r.x.c.stream.Accepted())
}
