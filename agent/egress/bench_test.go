package egress

import (
	"context"
	"net"
	"runtime"
	"testing"

	"github.com/posternhq/postern/protocol"
)

// BenchmarkConnect is a new CONNECT through the proxy to a relay that accepts at once,
// one byte there and back included.
func BenchmarkConnect(b *testing.B) {
	r := newRigB(b)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		buf := make([]byte, 256)
		for pb.Next() {
			conn, err := net.Dial("tcp", r.Addr().String())
			if err != nil {
				b.Error(err)
				return
			}
			conn.Write([]byte("CONNECT api.allowed.test:443 HTTP/1.1\r\nHost: api.allowed.test:443\r\nUser-Agent: bench\r\n\r\n"))
			if n, err := conn.Read(buf); err != nil || n != len(established) {
				b.Errorf("%d %v", n, err)
			}
			conn.Write([]byte("x"))
			conn.Read(buf)
			conn.(*net.TCPConn).SetLinger(0)
			conn.Close()
		}
	})
}

// BenchmarkDenied is the answer to a CONNECT that is refused here.
func BenchmarkDenied(b *testing.B) {
	r := newRigB(b)
	for b.Loop() {
		conn, err := net.Dial("tcp", r.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		conn.Write([]byte("CONNECT evil.test:443 HTTP/1.1\r\n\r\n"))
		buf := make([]byte, 4096)
		if n, err := conn.Read(buf); err != nil || n < 100 {
			b.Fatal(n, err)
		}
		conn.Close()
	}
}

// BenchmarkIdleTunnel reports what the agent keeps for a tunnel over which nothing
// goes: bytes/tunnel, without the stream itself, whose both ends are in this process.
func BenchmarkIdleTunnel(b *testing.B) {
	const n = 2000
	r := newRigB(b, func(r *rig, _ *Config) {
		r.tunnel = func(s *protocol.Stream) { s.Accept(); s.Read(make([]byte, 1)); s.Read(make([]byte, 1)) }
	})
	for b.Loop() {
		before := inUse()
		bare := make([]*protocol.Stream, n)
		for i := range bare {
			s, err := r.agent.Open(context.Background(), protocol.Open{Kind: protocol.KindEgress, Addr: "api.allowed.test:443"})
			if err != nil {
				b.Fatal(err)
			}
			s.Write([]byte("x"))
			bare[i] = s
		}
		streams := inUse() - before
		before = inUse()
		conns := make([]net.Conn, n)
		for i := range conns {
			conn, err := net.Dial("tcp", r.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			conn.Write([]byte("CONNECT api.allowed.test:443 HTTP/1.1\r\n\r\nx"))
			conn.Read(make([]byte, len(established)))
			conns[i] = conn
		}
		b.ReportMetric(float64(inUse()-before-streams)/n, "bytes/tunnel")
		b.ReportMetric(float64(streams)/n, "bytes/stream")
		for i := range conns {
			conns[i].Close()
			bare[i].Close()
		}
	}
}

func inUse() int64 {
	for range 3 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}
