package outbound

import (
	"io"
	"net/http"
	"time"
)

// How much of an upload that nobody wants is still read, and for how long.
const (
	drainBytes = 1 << 20
	drainTime  = time.Second
)

// Drain sends what was answered so far and then reads on what the client still sends
// of its body, for a moment. An answer that comes before the end of an upload, a 413,
// is lost when the connection is closed on bytes that nobody has read: the reset
// overtakes it. The connection is not to be used again afterwards; say so in the
// answer, with Connection: close.
func Drain(w http.ResponseWriter, body io.Reader) {
	c := http.NewResponseController(w)
	c.Flush()
	c.SetReadDeadline(time.Now().Add(drainTime))
	io.CopyN(io.Discard, body, drainBytes)
}
