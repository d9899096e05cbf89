package e2e

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// hello says how a TLS ClientHello is to look that no library would send.
type hello struct {
	SNI       string `json:"sni"` // "": none
	Fragments int    `json:"fragment_records"`
	Offset    int    `json:"sni_offset"` // the name begins at least so far in
	Stall     int    `json:"stall_after"`
	ECH       bool   `json:"ech"`
	Raw       string `json:"raw"` // instead of all that
}

// The extensions that a hello is changed in (RFC 6066, RFC 7685, RFC 9849).
const (
	extSNI     = 0
	extPadding = 21
	extECH     = 0xfe0d
)

// bytes are the records of the hello. A server of crypto/tls answers them.
func (h hello) bytes() []byte {
	if h.Raw != "" {
		return []byte(h.Raw)
	}
	body := libraryHello()
	head, extensions := body[:extensionsAt(body)], body[extensionsAt(body)+2:]
	var out []byte
	if h.Offset > len(head) {
		out = appendExtension(out, extPadding, make([]byte, h.Offset-len(head)))
	}
	if h.SNI != "" {
		name := binary.BigEndian.AppendUint16([]byte{0}, uint16(len(h.SNI)))
		name = append(name, h.SNI...)
		out = appendExtension(out, extSNI, append(binary.BigEndian.AppendUint16(nil, uint16(len(name))), name...))
	}
	if h.ECH {
		out = appendExtension(out, extECH, greaseECH())
	}
	for len(extensions) > 0 {
		kind, size := binary.BigEndian.Uint16(extensions), binary.BigEndian.Uint16(extensions[2:])
		if kind != extSNI {
			out = append(out, extensions[:4+size]...)
		}
		extensions = extensions[4+size:]
	}
	body = append(binary.BigEndian.AppendUint16(append([]byte(nil), head...), uint16(len(out))), out...)
	message := append([]byte{1, byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}, body...)
	return records(message, h.Fragments)
}

// records cuts a handshake message into records of at most size bytes; 0 is one.
func records(message []byte, size int) []byte {
	if size == 0 {
		size = len(message)
	}
	var out []byte
	for len(message) > 0 {
		n := min(size, len(message))
		out = binary.BigEndian.AppendUint16(append(out, 22, 3, 1), uint16(n))
		out, message = append(out, message[:n]...), message[n:]
	}
	return out
}

func appendExtension(out []byte, kind uint16, body []byte) []byte {
	out = binary.BigEndian.AppendUint16(out, kind)
	return append(binary.BigEndian.AppendUint16(out, uint16(len(body))), body...)
}

// greaseECH is an outer encrypted_client_hello of a made-up key.
func greaseECH() []byte {
	out := []byte{0, 0, 1, 0, 1, 42, 0, 32}
	out = append(out, make([]byte, 32)...)
	return append(append(out, 0, 144), make([]byte, 144)...)
}

// libraryHello is the body of a hello as crypto/tls makes it.
func libraryHello() []byte {
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		tls.Client(client, &tls.Config{ServerName: "placeholder.example", CurvePreferences: []tls.CurveID{tls.X25519}}).Handshake()
		client.Close()
	}()
	var head [5]byte
	io.ReadFull(server, head[:])
	message := make([]byte, binary.BigEndian.Uint16(head[3:]))
	io.ReadFull(server, message)
	return message[4:]
}

// extensionsAt is where the length of the extensions stands (RFC 8446, section 4.1.2).
func extensionsAt(body []byte) int {
	at := 2 + 32
	at += 1 + int(body[at])
	at += 2 + int(binary.BigEndian.Uint16(body[at:]))
	return at + 1 + int(body[at])
}

// The harness's own hellos must be what a server takes, or refusals of them prove
// nothing.
func TestTheHellosOfTheCorpusAreTakenByAServer(t *testing.T) {
	t.Parallel()
	cert := selfSigned(t)
	for _, h := range []hello{
		{SNI: "api.allowed.test"},
		{SNI: "api.allowed.test", Fragments: 1},
		{SNI: "api.allowed.test", Fragments: 100, Offset: 1300},
		{SNI: "api.allowed.test", ECH: true},
		{},
	} {
		client, server := net.Pipe()
		seen := make(chan string, 1)
		go func() {
			tls.Server(server, &tls.Config{Certificates: []tls.Certificate{cert}, GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) {
				seen <- i.ServerName
				return nil, nil
			}}).Handshake()
			server.Close()
		}()
		client.SetDeadline(time.Now().Add(wait))
		if _, err := client.Write(h.bytes()); err != nil {
			t.Errorf("%+v: %v", h, err)
		}
		var first [1]byte
		if _, err := io.ReadFull(client, first[:]); err != nil || first[0] != 22 {
			t.Errorf("%+v is answered with % x, %v", h, first, err)
		}
		if name := <-seen; name != h.SNI {
			t.Errorf("%+v names %q", h, name)
		}
		client.Close()
	}
	if at := strings.Index(string(hello{SNI: "api.allowed.test", Offset: 1300}.bytes()), "api.allowed.test"); at < 1300 {
		t.Errorf("the name begins at %d", at)
	}
}

// helloThrough sends a hello into a tunnel and waits for the server's.
func (c *wayOut) helloThrough(h hello) error {
	if _, err := c.Write(h.bytes()); err != nil {
		return err
	}
	var first [1]byte
	if _, err := io.ReadFull(c, first[:]); err != nil {
		return fmt.Errorf("no answer to a hello for %q: %w", h.SNI, err)
	}
	if first[0] != 22 {
		return errors.New("the answer to a hello is no TLS")
	}
	return nil
}
