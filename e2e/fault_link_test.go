package e2e

import (
	"bytes"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// link is a TCP proxy between agents and their relay that can lose everything
// without a word: what a NAT that forgot a connection does, and a router that
// was unplugged. It is a half-open link: every socket stays open at both ends.
type link struct {
	URL string // for agents

	delay time.Duration // each way

	mu    sync.Mutex
	conns map[*linkConn]bool // guarded by mu; the ones that both ends still hold
}

// linkConn is one connection through a link.
type linkConn struct {
	agent, relay *net.TCPConn
	dead         atomic.Bool  // bytes of both directions are swallowed
	lost         atomic.Int64 // how many were
}

// newLink makes a link to the relay; each way takes delay.
func newLink(t testing.TB, relayAddr string, delay time.Duration) *link {
	t.Helper()
	l := &link{delay: delay, conns: map[*linkConn]bool{}}
	l.URL = "http://" + rig.ServeRaw(t, func(agent net.Conn) {
		relay, err := net.Dial("tcp", relayAddr)
		if err != nil {
			return
		}
		l.carry(&linkConn{agent: agent.(*net.TCPConn), relay: relay.(*net.TCPConn)})
	})
	t.Cleanup(l.close)
	return l
}

// carry moves bytes until one end hangs up while the link works, or both have
// done so while it does not.
func (l *link) carry(c *linkConn) {
	l.mu.Lock()
	l.conns[c] = true
	l.mu.Unlock()
	var moving sync.WaitGroup
	moving.Go(func() { c.move(c.relay, c.agent, l.delay) })
	moving.Go(func() { c.move(c.agent, c.relay, l.delay) })
	moving.Wait()
	c.relay.Close()
	l.mu.Lock()
	delete(l.conns, c)
	l.mu.Unlock()
}

// move carries one direction, and its end.
func (c *linkConn) move(dst, src *net.TCPConn, delay time.Duration) {
	onTheWay := make(chan parcel, 4096)
	arrived := make(chan struct{})
	go func() {
		defer close(arrived)
		for p := range onTheWay {
			time.Sleep(time.Until(p.due)) // the length of the line
			dst.Write(p.bytes)
		}
	}()
	var end error
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		if c.dead.Load() {
			c.lost.Add(int64(n))
		} else if n > 0 {
			onTheWay <- parcel{time.Now().Add(delay), bytes.Clone(buf[:n])}
		}
		if err != nil {
			end = err
			break
		}
	}
	close(onTheWay)
	<-arrived
	if c.dead.Load() {
		return // a dead link does not carry the end either
	}
	if end != io.EOF {
		dst.SetLinger(0)
	}
	dst.Close()
}

// parcel is bytes on their way.
type parcel struct {
	due   time.Time
	bytes []byte
}

// kill makes every connection of now a dead one; later ones work.
func (l *link) kill() []*linkConn {
	l.mu.Lock()
	defer l.mu.Unlock()
	var killed []*linkConn
	for c := range l.conns {
		c.dead.Store(true)
		killed = append(killed, c)
	}
	return killed
}

// close ends every connection, dead or not.
func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		c.agent.Close()
		c.relay.Close()
	}
}

// open is how many connections somebody still holds.
func (l *link) open() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns)
}
