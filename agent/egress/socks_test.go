package egress

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/policy"
)

// socksRequest writes a request.
func socksRequest(command, kind byte, addr []byte, port uint16) string {
	b := []byte{5, command, 0, kind}
	if kind == socksName {
		b = append(b, byte(len(addr)))
	}
	return string(binary.BigEndian.AppendUint16(append(b, addr...), port))
}

func TestSOCKS(t *testing.T) {
	r := newRig(t, testPolicy(7))
	name := func(command byte, host string, port uint16) string {
		return socksRequest(command, socksName, []byte(host), port)
	}
	addr := func(s string, port uint16) string {
		a := netip.MustParseAddr(s)
		kind := byte(socksIPv6)
		if a.Is4() {
			kind = socksIPv4
		}
		return socksRequest(1, kind, a.AsSlice(), port)
	}
	for _, test := range []struct {
		what    string
		request string
		reply   byte
	}{
		{"an allowed name", name(1, "api.allowed.test", 443), 0},
		{"a denied name", name(1, "evil.test", 443), 2},
		{"an address as a name", name(1, "127.0.0.1", 443), 2},
		{"a decimal address", name(1, "2130706433", 443), 1},
		{"no name", name(1, "", 443), 1},
		{"a port in the name", name(1, "api.allowed.test:443", 22), 1},
		{"port 0", name(1, "api.allowed.test", 0), 1},
		{"BIND", socksRequest(2, socksIPv4, []byte{0, 0, 0, 0}, 0), 7},
		{"UDP", socksRequest(3, socksIPv4, []byte{0, 0, 0, 0}, 0), 7},
		{"an IPv4 address", addr("93.184.216.34", 443), 2},
		{"an IPv6 address", addr("2606:2800:220:1::1", 443), 2},
		{"a mapped address", addr("::ffff:127.0.0.1", 443), 2},
		{"no known kind of address", "\x05\x01\x00\x09", 8},
		{"a reserved byte", "\x05\x01\x01\x01\x01\x02\x03\x04\x00\x50", 1},
	} {
		c := r.dial().send("\x05\x02\x00\x02" + test.request)
		c.expect("\x05\x00")
		c.expect("\x05" + string(test.reply) + "\x00\x01\x00\x00\x00\x00\x00\x00")
		if test.reply == 0 {
			c.send("hello").expect("hello")
			if o := r.next(protocol.KindEgress); o.Egress.From != "socks" {
				t.Errorf("%+v", o.Egress)
			}
		} else if how := c.ended(); how != "end" {
			t.Errorf("%s: after the reply came %s", test.what, how)
		}
	}
	c := r.dial().send("\x05\x01\x02")
	c.expect("\x05\xff")
	c = r.dial().send("\x04\x01\x00\x50\x01\x02\x03\x04\x00")
	c.expect("\x00\x5b")
	// What is sent right behind the request is not lost.
	c = r.dial().send("\x05\x01\x00" + name(1, "api.allowed.test", 443) + "early")
	c.expect("\x05\x00\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00early")
}

func FuzzSOCKS(f *testing.F) {
	f.Add([]byte("\x05\x01\x00" + socksRequest(1, socksName, []byte("api.allowed.test"), 443)))
	f.Add([]byte("\x05\x01\x00" + socksRequest(1, socksIPv4, []byte{1, 2, 3, 4}, 80)))
	f.Add([]byte("\x05\x02\x00\x02" + socksRequest(2, socksIPv6, make([]byte, 16), 0)))
	f.Add([]byte("\x05\x00\x05\x01\x00\x03\x00\x00\x50"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		if ok, err := readSOCKSGreeting(r); err != nil || !ok {
			return
		}
		before := r.Len()
		target, err := readSOCKSRequest(r)
		if before-r.Len() > 4+1+255+2 {
			t.Fatalf("%d bytes were read", before-r.Len())
		}
		if err != nil {
			var bad *socksError
			var unreadable *policy.TargetError
			if target != (policy.Target{}) || errors.As(err, &bad) && bad.reply == 0 || errors.As(err, &unreadable) && refusalOf(err).SOCKS() == 0 {
				t.Fatalf("%+v %v", target, err)
			}
			return
		}
		if target.Port == 0 || target.Form != policy.Tunnel || (target.Host == "") != target.Addr.IsValid() {
			t.Fatalf("%+v", target)
		}
		again, err := policy.ParseTunnel(target.HostPort())
		if err != nil || again != target {
			t.Fatalf("%+v is read as %+v, %v", target, again, err)
		}
	})
}

func FuzzConnect(f *testing.F) {
	f.Add([]byte("CONNECT api.allowed.test:443 HTTP/1.1\r\nHost: x\r\n\r\nrest"))
	f.Add([]byte("CONNECT a:1 HTTP/1.0\r\nX: " + string(bytes.Repeat([]byte("y"), 5000)) + "\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		br := newHeadReader(bytes.NewReader(b))
		head, err := readConnect(br)
		end := bytes.Index(b, []byte("\r\n\r\n"))
		if err == nil && (end < 0 || bytes.ContainsAny([]byte(head.authority), " \r\n")) {
			t.Fatalf("%+v out of %q", head, b)
		}
		if err == nil {
			rest, _ := br.Peek(br.Buffered())
			if !bytes.HasPrefix(b[end+4:], rest) && !bytes.HasSuffix(b, rest) {
				t.Fatalf("rest %q of %q", rest, b)
			}
		}
	})
}
