package policy_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/posternhq/postern/protocol/policy"
)

// helloSpec is a TLS 1.3 hello by hand, for what no client would send.
type helloSpec struct {
	sni string // "" without the extension
	pad int    // bytes of an unknown extension before it
	ech bool
}

func vec8(b []byte) []byte  { return append([]byte{byte(len(b))}, b...) }
func vec16(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }

func extension(id uint16, body []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, id), vec16(body)...)
}

// helloMessage is the handshake message, RFC 8446, section 4.1.2.
func helloMessage(s helloSpec) []byte {
	body := []byte{3, 3}
	body = append(body, make([]byte, 32)...)          // random
	body = append(body, vec8(make([]byte, 32))...)    // session id
	body = append(body, vec16([]byte{0x13, 0x01})...) // TLS_AES_128_GCM_SHA256
	body = append(body, vec8([]byte{0})...)           // compression
	ext := []byte{}
	if s.pad > 0 {
		ext = append(ext, extension(0xfafa, make([]byte, s.pad))...)
	}
	if s.sni != "" {
		ext = append(ext, extension(0, vec16(append([]byte{0}, vec16([]byte(s.sni))...)))...)
	}
	if s.ech { // an outer hello: HKDF-SHA256, AES-128-GCM, config 1, a key, some payload
		ech := []byte{0, 0, 1, 0, 1, 1}
		ech = append(ech, vec16(make([]byte, 32))...)
		ech = append(ech, vec16(make([]byte, 144))...)
		ext = append(ext, extension(0xfe0d, ech)...)
	}
	ext = append(ext, extension(43, vec8([]byte{3, 4}))...) // supported_versions: TLS 1.3
	body = append(body, vec16(ext)...)
	head := []byte{1, byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}
	return append(head, body...)
}

// records cuts a message into TLS records of at most size bytes.
func records(msg []byte, size int) []byte {
	var out []byte
	for len(msg) > 0 {
		n := min(size, len(msg), 1<<14)
		out = append(out, 22, 3, 1)
		out = append(out, vec16(msg[:n])...)
		msg = msg[n:]
	}
	return out
}

func TestReadHello(t *testing.T) {
	plain := helloMessage(helloSpec{sni: "API.example.com"})
	for _, c := range []struct {
		name string
		sent []byte
		want policy.Hello
		err  error
	}{
		{"one record", records(plain, len(plain)), policy.Hello{SNI: "api.example.com"}, nil},
		{"records of one byte", records(plain, 1), policy.Hello{SNI: "api.example.com"}, nil},
		{"records of seven bytes", records(plain, 7), policy.Hello{SNI: "api.example.com"}, nil},
		{"more behind it", append(records(plain, 100), "early"...), policy.Hello{SNI: "api.example.com"}, nil},
		{"no name", records(helloMessage(helloSpec{}), 1<<14), policy.Hello{}, nil},
		{"an address for a name", records(helloMessage(helloSpec{sni: "10.0.0.1"}), 1<<14), policy.Hello{SNI: "10.0.0.1"}, nil},
		{"a name at the end of 40 kB", records(helloMessage(helloSpec{sni: "a.example", pad: 40000}), 1<<14), policy.Hello{SNI: "a.example"}, nil},
		{"encrypted hello", records(helloMessage(helloSpec{sni: "a.example", ech: true}), 1<<14), policy.Hello{SNI: "a.example", ECH: true}, nil},
		{"a dot behind the name", records(helloMessage(helloSpec{sni: "a.example."}), 1<<14), policy.Hello{}, policy.ErrBadHello},
		{"SSH", []byte("SSH-2.0-OpenSSH_9.9\r\n"), policy.Hello{}, policy.ErrNotTLS},
		{"HTTP", []byte("GET / HTTP/1.1\r\n\r\n"), policy.Hello{}, policy.ErrNotTLS},
		{"one byte of something else", []byte("Q"), policy.Hello{}, policy.ErrNotTLS},
		{"a byte like TLS, then something else", []byte{22, 'x'}, policy.Hello{}, policy.ErrNotTLS},
		{"another message", records([]byte{2, 0, 0, 0}, 4), policy.Hello{}, policy.ErrBadHello},
		{"an alert", []byte{21, 3, 1, 0, 2, 2, 40}, policy.Hello{}, policy.ErrNotTLS},
		{"a message without end", records(append([]byte{1, 1, 0, 0}, make([]byte, 70000)...), 1<<14), policy.Hello{}, policy.ErrBadHello},
		{"records without end", bytes.Repeat([]byte{22, 3, 1, 0, 0}, 20000), policy.Hello{}, policy.ErrBadHello},
		{"cut off", records(plain, 100)[:60], policy.Hello{}, io.EOF},
		{"nothing", nil, policy.Hello{}, io.EOF},
	} {
		t.Run(c.name, func(t *testing.T) {
			for how, wrap := range map[string]func(io.Reader) io.Reader{
				"whole": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader, "error with data": iotest.DataErrReader,
			} {
				src := bytes.NewReader(c.sent)
				h, raw, err := policy.ReadHello(wrap(src))
				if h != c.want || !errors.Is(err, c.err) {
					t.Errorf("%s: %+v, %v; want %+v, %v", how, h, err, c.want, c.err)
				}
				rest, _ := io.ReadAll(src)
				if how == "error with data" { // this reader reads ahead
					rest = c.sent[len(raw):]
				}
				if !bytes.Equal(append(raw, rest...), c.sent) {
					t.Errorf("%s: what was read and what is left are not what was sent", how)
				}
				if len(raw) > 64<<10 {
					t.Errorf("%s: %d bytes were read", how, len(raw))
				}
			}
		})
	}
}

// What a real client sends, with everything it has today.
func TestReadHelloOfAClient(t *testing.T) {
	client, server := net.Pipe()
	deadline := time.Now().Add(10 * time.Second)
	client.SetDeadline(deadline)
	server.SetDeadline(deadline)
	done := make(chan error, 1)
	go func() {
		done <- tls.Client(client, &tls.Config{ServerName: "api.example.com"}).HandshakeContext(context.Background())
	}()
	h, raw, err := policy.ReadHello(server)
	if err != nil || h.SNI != "api.example.com" || len(raw) < 500 {
		t.Errorf("%+v, %d bytes, %v", h, len(raw), err)
	}
	server.Close()
	if err := <-done; err == nil {
		t.Error("the client was answered")
	}
}

func TestReadHelloPassesErrorsOn(t *testing.T) {
	hello := records(helloMessage(helloSpec{sni: "a.example"}), 10)
	late := errors.New("deadline")
	_, raw, err := policy.ReadHello(io.MultiReader(bytes.NewReader(hello[:50]), iotest.ErrReader(late)))
	if !errors.Is(err, late) || !bytes.Equal(raw, hello[:50]) {
		t.Errorf("%d bytes, %v", len(raw), err)
	}
}

func TestCheckHello(t *testing.T) {
	now := time.Now()
	p := policy.Policy{App: "shop", Declared: true, Mode: policy.Enforce,
		Allow: []policy.Rule{
			{Where: "allow[0]", Scheme: policy.HTTPS, Host: "api.example.com", Port: 443},
			{Where: "allow[1]", Scheme: policy.HTTPS, Host: "alt.example.com", Port: 443},
			{Where: "allow[2]", Scheme: policy.TCP, Host: "db.example.com", Port: 5432},
			{Where: "allow[3]", Scheme: policy.HTTPS, Host: "93.184.216.34", Port: 443},
			{Where: "allow[4]", Scheme: policy.HTTPS, Host: "other.example.com", Port: 8443},
			{Where: "allow[5]", Scheme: policy.HTTPS, Host: "*.denied.example", Port: 443},
		},
		Deny: []policy.Deny{{Where: "deny[0]", Host: "x.denied.example"}},
	}
	for _, c := range []struct {
		mode   policy.Mode
		sni    policy.SNIMode
		target string
		hello  string
		want   string // allow, would, or a cause
	}{
		{policy.Enforce, "", "api.example.com:443", "api.example.com", "allow"},
		{policy.Enforce, "", "api.example.com:443", "alt.example.com", "sni_mismatch"},
		{policy.Enforce, "", "api.example.com:443", "evil.example", "sni_mismatch"},
		{policy.Enforce, "", "api.example.com:443", "", "sni_mismatch"},
		{policy.Enforce, "", "api.example.com:443", "x.denied.example", "denied"},
		{policy.Enforce, policy.SNIAllowlisted, "api.example.com:443", "alt.example.com", "allow"},
		{policy.Enforce, policy.SNIAllowlisted, "api.example.com:443", "other.example.com", "sni_mismatch"}, // another port
		{policy.Enforce, policy.SNIAllowlisted, "api.example.com:443", "evil.example", "sni_mismatch"},
		{policy.Enforce, policy.SNIAllowlisted, "api.example.com:443", "x.denied.example", "denied"},
		{policy.Enforce, policy.SNIAllowlisted, "api.example.com:443", "", "sni_mismatch"},
		{policy.Enforce, policy.SNIOff, "api.example.com:443", "evil.example", "allow"},
		{policy.Enforce, "", "db.example.com:5432", "evil.example", "allow"}, // tcp: nobody looks
		{policy.Enforce, "", "93.184.216.34:443", "", "allow"},
		{policy.Enforce, "", "93.184.216.34:443", "any.example", "allow"},
		{policy.Enforce, "", "93.184.216.34:443", "x.denied.example", "denied"},
		{policy.Report, "", "api.example.com:443", "evil.example", "would"},
		{policy.Report, "", "api.example.com:443", "api.example.com", "allow"},
		{policy.Report, "", "api.example.com:443", "x.denied.example", "denied"},
		{policy.Report, "", "unlisted.example:443", "unlisted.example", "would"},
		{policy.Open, "", "api.example.com:443", "evil.example", "allow"},
		{policy.Open, "", "unlisted.example:443", "evil.example", "allow"},
		{policy.Open, "", "unlisted.example:443", "x.denied.example", "denied"},
	} {
		q := p
		q.Mode, q.SNI = c.mode, c.sni
		compiled := policy.Compile(&q)
		target, err := policy.ParseTunnel(c.target)
		if err != nil {
			t.Fatal(err)
		}
		d := compiled.Decide(policy.Call{Target: target}, now)
		if !d.Allow {
			t.Fatalf("%s: %s", c.target, d.Reason)
		}
		if must := c.mode == policy.Enforce && !strings.HasPrefix(c.target, "db."); d.TLS != must {
			t.Errorf("%s %s: TLS is %v", c.mode, c.target, d.TLS)
		}
		d = compiled.CheckHello(d, target, policy.Hello{SNI: c.hello}, now)
		got := string(d.Cause)
		if d.Allow && d.Would {
			got = "would"
		} else if d.Allow {
			got = "allow"
		}
		if got != c.want {
			t.Errorf("%s %s %s, hello for %q: %s (%s), want %s", c.mode, c.sni, c.target, c.hello, got, d.Reason, c.want)
		}
	}
}
