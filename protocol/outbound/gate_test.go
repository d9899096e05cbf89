package outbound

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/protocol/policy"
)

// helloFor returns what a TLS client sends first.
func helloFor(t *testing.T, name string) []byte {
	t.Helper()
	return helloOf(t, &tls.Config{ServerName: name})
}

func helloOf(t *testing.T, client *tls.Config) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		tls.Client(ours, client).Handshake()
	}()
	head := make([]byte, 5)
	if _, err := io.ReadFull(theirs, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(theirs, body); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	<-done
	return append(head, body...)
}

// inPieces cuts the message of a record into records of n bytes.
func inPieces(record []byte, n int) []byte {
	var out []byte
	for body := record[5:]; len(body) > 0; {
		piece := body[:min(n, len(body))]
		body = body[len(piece):]
		out = append(out, record[0], record[1], record[2], byte(len(piece)>>8), byte(len(piece)))
		out = append(out, piece...)
	}
	return out
}

func TestTheFirstBytesOfATunnel(t *testing.T) {
	t.Parallel()
	hello := helloFor(t, "api.example.com")
	early := append(bytes.Clone(hello), "and what came right behind"...)
	// Short enough that crypto/tls does not read all of what came with it.
	short := helloOf(t, &tls.Config{ServerName: "api.example.com", MaxVersion: tls.VersionTLS12})
	short = append(short, strings.Repeat("and much more ", 300)...)
	// A record of another size than its head says, a message that is no hello, and one
	// that never ends.
	garbled := append([]byte{22, 3, 1, 0, 40, 1, 0, 0, 36}, bytes.Repeat([]byte{0xff}, 36)...)
	other := []byte{22, 3, 1, 0, 4, 14, 0, 0, 0}
	endless := bytes.Repeat(append([]byte{22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff}, make([]byte, 0x4000-4)...), 5)
	const (
		tlsPasses = "TLS"
		passes    = "passes"
		refused   = "refused"
		gone      = "EOF"
	)
	for _, test := range []struct {
		name               string
		sent               []byte
		required, optional string
		words              string // of the refusal
	}{
		{"a hello", hello, tlsPasses, tlsPasses, ""},
		{"a hello with more behind it", early, tlsPasses, tlsPasses, ""},
		{"a short hello with much behind it", short, tlsPasses, tlsPasses, ""},
		{"in records of 1 byte", inPieces(hello, 1), tlsPasses, tlsPasses, ""},
		{"in records of 100 bytes", inPieces(hello, 100), tlsPasses, tlsPasses, ""},
		{"SSH", []byte("SSH-2.0-OpenSSH_9.9\r\n"), refused, passes, "begins with something else"},
		{"HTTP", []byte("GET / HTTP/1.1\r\n\r\n"), refused, passes, "begins with something else"},
		{"one byte", []byte("x"), refused, passes, "begins with something else"},
		{"not TLS at the second byte", []byte{22, 'x', 'y'}, refused, passes, "begins with something else"},
		{"garbled", garbled, refused, refused, "cannot be read"},
		{"another message than a hello", other, refused, refused, "cannot be read"},
		{"longer than 64 KiB", endless, refused, refused, "64 KiB"},
		{"half a hello", hello[:200], refused, refused, "before its end"},
		{"its first byte", hello[:1], refused, refused, "before its end"},
		{"nothing", nil, gone, passes, ""},
	} {
		for need, expected := range map[Need]string{TLSRequired: test.required, TLSOptional: test.optional} {
			for _, chunk := range []int{1, 7, 1 << 20} {
				synctest.Test(t, func(t *testing.T) {
					r, w := net.Pipe()
					go func() {
						for sent := test.sent; len(sent) > 0; {
							n, err := w.Write(sent[:min(chunk, len(sent))])
							if err != nil {
								return // it was refused before its end
							}
							sent = sent[n:]
						}
						w.Close()
					}()
					first, err := ReadFirst(t.Context(), r, need)
					var because *policy.Refusal
					got := ""
					switch {
					case errors.As(err, &because):
						got = refused
					case err == io.EOF:
						got = gone
					case err != nil:
						got = err.Error()
					case first.TLS:
						got = tlsPasses
					default:
						got = passes
					}
					if got != expected {
						t.Errorf("%s, need %d, in pieces of %d: %s (%v), expected %s", test.name, need, chunk, got, err, expected)
					}
					if because != nil && (because.Cause != policy.NotTLS || !strings.Contains(because.Message, test.words)) {
						t.Errorf("%s: %s %q, expected … %s …", test.name, because.Cause, because.Message, test.words)
					}
					if first.TLS && first.Hello.SNI != "api.example.com" {
						t.Errorf("%s: SNI %q", test.name, first.Hello.SNI)
					}
					if got == tlsPasses || got == passes {
						rest, err := io.ReadAll(r)
						if all := append(first.Raw, rest...); err != nil || !bytes.Equal(all, test.sent) {
							t.Errorf("%s, need %d: of %d bytes %d are passed on, error %v", test.name, need, len(test.sent), len(all), err)
						}
					}
					if err != nil && first.Raw != nil {
						t.Errorf("%s: bytes are given with error %v", test.name, err)
					}
					r.Close()
				})
			}
		}
	}
}

func TestAHelloHasTenSeconds(t *testing.T) {
	t.Parallel()
	hello := helloFor(t, "api.example.com")
	for _, test := range []struct {
		name   string
		need   Need
		before time.Duration // until the first byte
		sent   int           // bytes; then nothing any more
		after  time.Duration // when it is refused
		words  string
	}{
		{"nothing, where TLS is required", TLSRequired, 0, 0, HelloTimeout, "nothing came within 10s"},
		{"half of it", TLSRequired, 0, 200, HelloTimeout, "end did not come within 10s"},
		{"late and half of it", TLSRequired, 9 * time.Second, 200, HelloTimeout, "end did not come within 10s"},
		{"half of it, where TLS is optional", TLSOptional, 0, 200, HelloTimeout, "end did not come within 10s"},
		{"one byte after an hour, where TLS is optional", TLSOptional, time.Hour, 1, time.Hour + HelloTimeout, "end did not come"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r, w := net.Pipe()
				defer w.Close()
				go func() {
					time.Sleep(test.before)
					w.Write(hello[:test.sent])
				}()
				start := time.Now()
				_, err := ReadFirst(t.Context(), r, test.need)
				var refused *policy.Refusal
				if !errors.As(err, &refused) || refused.Cause != policy.NotTLS || !strings.Contains(refused.Message, test.words) {
					t.Errorf("error %v, expected … %s …", err, test.words)
				}
				if took := time.Since(start); took != test.after {
					t.Errorf("it took %v, expected %v", took, test.after)
				}
			})
		})
	}
}

// Byte after byte, none of them late, is late as a whole.
func TestAHelloThatTricklesIsLate(t *testing.T) {
	t.Parallel()
	hello := helloFor(t, "api.example.com")
	synctest.Test(t, func(t *testing.T) {
		r, w := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := range hello {
				if _, err := w.Write(hello[i : i+1]); err != nil {
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
		}()
		start := time.Now()
		_, err := ReadFirst(t.Context(), r, TLSRequired)
		var refused *policy.Refusal
		if !errors.As(err, &refused) || time.Since(start) != HelloTimeout {
			t.Errorf("error %v after %v", err, time.Since(start))
		}
		r.Close()
		<-done
	})
}

func TestTheGateLeavesNoDeadline(t *testing.T) {
	t.Parallel()
	hello := helloFor(t, "api.example.com")
	for _, need := range []Need{TLSRequired, TLSOptional} {
		synctest.Test(t, func(t *testing.T) {
			r, w := net.Pipe()
			go func() {
				w.Write(hello)
				time.Sleep(time.Hour)
				w.Write([]byte("x"))
				w.Close()
			}()
			if _, err := ReadFirst(t.Context(), r, need); err != nil {
				t.Fatal(err)
			}
			if rest, err := io.ReadAll(r); string(rest) != "x" || err != nil {
				t.Errorf("then %q, error %v", rest, err)
			}
		})
	}
}

func TestTheGateEndsWithItsContext(t *testing.T) {
	t.Parallel()
	for _, need := range []Need{TLSRequired, TLSOptional} {
		for _, at := range []time.Duration{0, time.Second} {
			synctest.Test(t, func(t *testing.T) {
				r, w := net.Pipe()
				defer w.Close()
				ctx, cancel := context.WithCancel(t.Context())
				if at == 0 {
					cancel()
				}
				time.AfterFunc(at, cancel)
				start := time.Now()
				if _, err := ReadFirst(ctx, r, need); !errors.Is(err, context.Canceled) || time.Since(start) != at {
					t.Errorf("error %v after %v, expected the context's after %v", err, time.Since(start), at)
				}
			})
		}
	}
}

// The context ends just before the gate sets its deadline, which must not let it wait
// on.
func TestTheGateSeesAContextThatEndsMeanwhile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, w := net.Pipe()
		defer w.Close()
		ctx, cancel := context.WithCancel(t.Context())
		start := time.Now()
		_, err := ReadFirst(ctx, &overtaken{r, cancel}, TLSRequired)
		if took := time.Since(start); !errors.Is(err, context.Canceled) || took > time.Second {
			t.Errorf("error %v after %v", err, took)
		}
	})
}

// overtaken is a connection whose first deadline is set after cancel was called and has
// done all it does.
type overtaken struct {
	net.Conn
	cancel func()
}

func (o *overtaken) SetReadDeadline(t time.Time) error {
	if t.After(time.Now()) {
		o.cancel()
		time.Sleep(time.Millisecond)
	}
	return o.Conn.SetReadDeadline(t)
}

func TestATunnelAtWhichNobodyLooksIsNotRead(t *testing.T) {
	t.Parallel()
	if first, err := ReadFirst(t.Context(), nil, TLSIgnored); err != nil || first.Raw != nil {
		t.Errorf("got %+v and error %v", first, err)
	}
	for _, test := range []struct {
		d    policy.Decision
		need Need
	}{
		{policy.Decision{TLS: true, SNI: policy.SNIMatch}, TLSRequired},
		{policy.Decision{TLS: true, SNI: policy.SNIOff}, TLSRequired}, // the name is anybody's, TLS it must be
		{policy.Decision{SNI: policy.SNIMatch}, TLSOptional},
		{policy.Decision{SNI: policy.SNIAllowlisted}, TLSOptional},
		{policy.Decision{SNI: policy.SNIOff}, TLSIgnored},
		{policy.Decision{}, TLSIgnored},
	} {
		if got := NeedOf(test.d); got != test.need {
			t.Errorf("%+v: need %d, expected %d", test.d, got, test.need)
		}
	}
}

// The client has gone in the middle: that is no refusal.
func TestErrorsOfTheTunnelArePassedOn(t *testing.T) {
	t.Parallel()
	broken := errors.New("the stream was reset")
	for _, need := range []Need{TLSRequired, TLSOptional} {
		for _, before := range []string{"", "\x16\x03\x01"} {
			_, err := ReadFirst(t.Context(), &breaks{strings.NewReader(before), broken}, need)
			if !errors.Is(err, broken) {
				t.Errorf("need %d, after %q: error %v", need, before, err)
			}
		}
	}
}

// breaks ends with an error.
type breaks struct {
	before io.Reader
	err    error
}

func (b *breaks) SetReadDeadline(time.Time) error { return nil }
func (b *breaks) Read(p []byte) (int, error) {
	if n, _ := b.before.Read(p); n > 0 {
		return n, nil
	}
	return 0, b.err
}
