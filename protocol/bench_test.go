package protocol_test

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"

	"github.com/coder/websocket"
	"github.com/hashicorp/yamux"
	"github.com/posternhq/postern/protocol"
)

// benchLink is a tunnel as a benchmark sees it: the relay opens streams, the
// agent serves them. All run over loopback TCP without TLS.
type benchLink struct {
	open func() (net.Conn, error)
}

// benchLinks are ours and what one would put together from the same parts.
var benchLinks = []struct {
	name  string
	start func(b *testing.B, serve func(net.Conn)) benchLink
}{
	{"postern", posternLink},
	{"yamux-websocket", yamuxWebSocketLink},
	{"yamux-tcp", yamuxTCPLink},
}

func posternLink(b *testing.B, serve func(net.Conn)) benchLink {
	agent, relay := connect(b, protocol.Config{}, protocol.Config{})
	run(b, agent, relay, protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
		s.Accept()
		serve(s)
		s.Close()
	}})
	return benchLink{func() (net.Conn, error) {
		return relay.Open(context.Background(), protocol.Open{Kind: protocol.KindHTTP})
	}}
}

func yamuxWebSocketLink(b *testing.B, serve func(net.Conn)) benchLink {
	conns := make(chan *websocket.Conn, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ws, err := websocket.Accept(w, r, nil); err == nil {
			conns <- ws
		}
	}))
	b.Cleanup(srv.Close)
	client, _, err := websocket.Dial(context.Background(), srv.URL, nil)
	if err != nil {
		b.Fatal(err)
	}
	server := <-conns
	client.SetReadLimit(-1)
	server.SetReadLimit(-1)
	return yamuxLink(b, serve, websocket.NetConn(context.Background(), client, websocket.MessageBinary),
		websocket.NetConn(context.Background(), server, websocket.MessageBinary))
}

func yamuxTCPLink(b *testing.B, serve func(net.Conn)) benchLink {
	agent, relay := tcpPair(b)
	return yamuxLink(b, serve, agent, relay)
}

// yamuxLink is the original yamux with its own defaults.
func yamuxLink(b *testing.B, serve func(net.Conn), agentConn, relayConn net.Conn) benchLink {
	cfg := yamux.DefaultConfig()
	cfg.EnableKeepAlive, cfg.LogOutput = false, io.Discard
	agent, err := yamux.Client(agentConn, cfg)
	if err != nil {
		b.Fatal(err)
	}
	relay, err := yamux.Server(relayConn, cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { agent.Close(); relay.Close() })
	go func() {
		for {
			s, err := agent.Accept()
			if err != nil {
				return
			}
			go func() { defer s.Close(); serve(s) }()
		}
	}()
	return benchLink{relay.Open}
}

// BenchmarkRequest is one short request and one short answer on a stream that
// stays open: 200 bytes each way.
func BenchmarkRequest(b *testing.B) {
	const size = 200
	answer := func(c net.Conn) {
		buf := make([]byte, size)
		for {
			if _, err := io.ReadFull(c, buf); err != nil {
				return
			}
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	}
	for _, streams := range []int{1, 64} {
		for _, l := range benchLinks {
			b.Run(l.name+"/streams="+strconv.Itoa(streams), func(b *testing.B) {
				link := l.start(b, answer)
				conns := openAll(b, link, streams)
				b.ReportAllocs()
				b.ResetTimer()
				var wg sync.WaitGroup
				for i, c := range conns {
					n := b.N / streams
					if i < b.N%streams {
						n++
					}
					wg.Go(func() { ask(b, c, n, size) })
				}
				wg.Wait()
			})
		}
	}
}

// openAll opens the streams and sends one round over each, so that opening is
// not measured.
func openAll(b *testing.B, link benchLink, n int) []net.Conn {
	var conns []net.Conn
	for range n {
		c, err := link.open()
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { c.Close() })
		ask(b, c, 1, 200)
		conns = append(conns, c)
	}
	return conns
}

func ask(b *testing.B, c net.Conn, times, size int) {
	buf := make([]byte, size)
	for range times {
		if _, err := c.Write(buf); err != nil {
			b.Error(err)
			return
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Error(err)
			return
		}
	}
}

// bulkWrite is how much one write of BenchmarkBulk carries.
const bulkWrite = 64 << 10

// BenchmarkBulk is one long transfer in one direction; every iteration is one
// write. The reader confirms at the end.
func BenchmarkBulk(b *testing.B) {
	for _, l := range benchLinks {
		b.Run(l.name+"/agent-to-relay", func(b *testing.B) {
			c := bulkStream(b, l.start(b, bulkServe), 'r', b.N)
			swallow(b, c, b.N)
		})
		b.Run(l.name+"/relay-to-agent", func(b *testing.B) {
			c := bulkStream(b, l.start(b, bulkServe), 'w', b.N)
			pour(c, b.N)
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				b.Error(err)
			}
		})
	}
}

// bulkStream opens a stream and tells the agent what to do on it.
func bulkStream(b *testing.B, link benchLink, what byte, writes int) net.Conn {
	b.Helper()
	c, err := link.open()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	b.SetBytes(bulkWrite)
	b.ReportAllocs()
	b.ResetTimer()
	if _, err := c.Write(binary.BigEndian.AppendUint64([]byte{what}, uint64(writes))); err != nil {
		b.Fatal(err)
	}
	return c
}

// bulkServe is the agent's half.
func bulkServe(c net.Conn) {
	order := readN(c, 9)
	n := int(binary.BigEndian.Uint64(order[1:]))
	if order[0] == 'r' {
		pour(c, n)
		c.Read(make([]byte, 1)) // until the reader has everything
		return
	}
	io.CopyN(io.Discard, c, int64(n)*bulkWrite)
	c.Write([]byte{1})
	c.Read(make([]byte, 1))
}

func pour(c net.Conn, n int) {
	buf := make([]byte, bulkWrite)
	for range n {
		if _, err := c.Write(buf); err != nil {
			return
		}
	}
}

func swallow(b *testing.B, c net.Conn, n int) {
	if got, err := io.CopyN(io.Discard, c, int64(n)*bulkWrite); err != nil {
		b.Errorf("%d bytes: %v", got, err)
	}
}
