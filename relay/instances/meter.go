package instances

import (
	"context"
	"io"
	"time"
)

// How fast a stream is read, and how fast an app's last words are saved. An agent
// that sends more has to wait, and drops lines where it keeps them; last words
// beyond theirs are lost.
const (
	readRate   = 256 << 10 // bytes a second
	readBurst  = 1 << 20
	readLeast  = 1 << 10 // what any message counts for at least
	savesRate  = 1       // a second
	savesBurst = 100
)

// bucket holds what may be used at once; it fills again at a rate. The zero value
// is full.
type bucket struct {
	used float64
	at   time.Time
}

// left is how much may be used now; less than nothing when too much was.
func (b *bucket) left(rate, burst float64, now time.Time) float64 {
	b.used = max(b.used-now.Sub(b.at).Seconds()*rate, 0)
	b.at = now
	return burst - b.used
}

// meter counts what is read, and waits when that was too fast.
type meter struct {
	r io.Reader
	n int // bytes of this message
	b bucket
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.n += n
	return n, err
}

// pause ends a message.
func (m *meter) pause(ctx context.Context, now time.Time) error {
	left := m.b.left(readRate, readBurst, now)
	m.b.used += float64(max(m.n, readLeast))
	m.n = 0
	if left > 0 {
		return nil
	}
	return pause(ctx, time.Duration(-left/readRate*float64(time.Second)))
}
