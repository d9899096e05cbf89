package bridge_test

import (
	"io"
	"net"
	"testing"

	"github.com/posternhq/postern/agent/bridge"
)

// through opens a connection to a new app, directly or over a bridge.
func through(b *testing.B, bridged bool) (client, server *net.TCPConn) {
	a := newApp(b, "127.0.0.1:0")
	address := a.address()
	if bridged {
		address = start(b, bridge.Config{Target: to(a.address())}).address()
	}
	conn, err := net.Dial("tcp", address)
	if err != nil {
		b.Fatal(err)
	}
	return ready(b, conn), a.take(b)
}

var ways = map[string]bool{"direct": false, "bridged": true}

func BenchmarkThroughput(b *testing.B) {
	for name, bridged := range ways {
		b.Run(name, func(b *testing.B) {
			client, server := through(b, bridged)
			block := make([]byte, 256<<10)
			b.SetBytes(int64(len(block)))
			go func() {
				defer client.Close()
				for range b.N {
					client.Write(block)
				}
			}()
			b.ResetTimer()
			if n, _ := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{server}, make([]byte, 256<<10)); n != int64(b.N*len(block)) {
				b.Fatalf("%d bytes arrived", n)
			}
		})
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	for name, bridged := range ways {
		b.Run(name, func(b *testing.B) {
			client, server := through(b, bridged)
			go io.CopyBuffer(struct{ io.Writer }{server}, struct{ io.Reader }{server}, make([]byte, 4096))
			message := make([]byte, 512)
			b.ResetTimer()
			for range b.N {
				client.Write(message)
				if _, err := io.ReadFull(client, message); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkConnect(b *testing.B) {
	for name, bridged := range ways {
		b.Run(name, func(b *testing.B) {
			a := newApp(b, "127.0.0.1:0")
			go func() {
				for conn, err := a.Accept(); err == nil; conn, err = a.Accept() {
					conn.Write([]byte("x"))
					conn.Close()
				}
			}()
			address := a.address()
			if bridged {
				address = start(b, bridge.Config{Target: to(a.address())}).address()
			}
			b.ResetTimer()
			for range b.N {
				conn, err := net.Dial("tcp", address)
				if err != nil {
					b.Fatal(err)
				}
				io.ReadAll(conn)
				conn.Close()
			}
		})
	}
}
