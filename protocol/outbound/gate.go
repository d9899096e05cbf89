package outbound

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/posternhq/postern/protocol/policy"
)

// Need says whether a tunnel must begin with TLS.
type Need int

// The needs.
const (
	// TLSRequired holds back everything but a TLS hello.
	TLSRequired Need = iota
	// TLSOptional reads the hello if there is one, and lets other bytes pass.
	TLSOptional
	// TLSIgnored reads nothing: nobody looks at the bytes.
	TLSIgnored
)

// NeedOf is what Compiled.Decide has said a tunnel needs.
func NeedOf(d policy.Decision) Need {
	switch {
	case d.TLS:
		return TLSRequired
	case d.SNI == policy.SNIOff || d.SNI == "":
		return TLSIgnored
	}
	return TLSOptional
}

// HelloTimeout is how long a TLS hello may take, from its first byte, or from the
// beginning of a tunnel that must have one.
const HelloTimeout = 10 * time.Second

// MaxHello is the largest hello in bytes, with the heads of its records.
const MaxHello = 64 << 10

// First is what a tunnel began with.
type First struct {
	TLS   bool         // Hello was read
	Hello policy.Hello // for Compiled.CheckHello
	// Raw is all that was read, to be passed on before anything else once the hello is
	// found good. It may go on behind the hello. It is empty when the client ended its
	// direction without a word.
	Raw []byte
}

// Reader is the side of a tunnel that the client writes to: a net.Conn, or a stream.
type Reader interface {
	io.Reader
	SetReadDeadline(t time.Time) error
}

// ReadFirst reads what the client of a tunnel sends first. It takes r's read deadline
// for itself and leaves r without one. What comes from the other side may be passed on
// meanwhile: in a tunnel with TLSOptional the server may be the first to speak, so its
// first byte may take any time.
//
// The error is a *policy.Refusal when the tunnel does not begin as it must, io.EOF
// when the client of a tunnel with TLSRequired left without a word, ctx's when it
// ended, and what r says otherwise. Nothing of what was read is passed on then.
func ReadFirst(ctx context.Context, r Reader, need Need) (First, error) {
	if need == TLSIgnored {
		return First{}, nil
	}
	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })
	first, err := readFirst(r, need, func(t time.Time) {
		r.SetReadDeadline(t)
		if ctx.Err() != nil { // it ended before this, and its deadline was overwritten
			r.SetReadDeadline(time.Unix(1, 0))
		}
	})
	if !stop() {
		return First{}, fmt.Errorf("read the first bytes of a tunnel: %w", context.Cause(ctx))
	}
	r.SetReadDeadline(time.Time{})
	if err != nil {
		return First{}, err
	}
	return first, nil
}

// tlsHandshake begins every TLS record with a hello (RFC 8446, section 5.1).
const tlsHandshake = 22

func readFirst(r io.Reader, need Need, deadline func(time.Time)) (First, error) {
	if need == TLSRequired {
		deadline(time.Now().Add(HelloTimeout))
	}
	// One byte tells whether a hello has begun, and starts its time.
	head := make([]byte, 2<<10) // most hellos, in one read
	n, err := 0, error(nil)
	for n == 0 && err == nil {
		n, err = r.Read(head)
	}
	switch {
	case n > 0: // an error comes again
	case errors.Is(err, io.EOF) && need == TLSOptional:
		return First{}, nil
	default:
		return First{}, faultOf(err, nil)
	}
	head = head[:n]
	if need == TLSOptional {
		if head[0] != tlsHandshake {
			return First{Raw: head}, nil
		}
		deadline(time.Now().Add(HelloTimeout))
	}
	begun := bytes.NewReader(head)
	hello, raw, err := policy.ReadHello(io.MultiReader(begun, r))
	rest := head[len(head)-begun.Len():] // what ReadHello left, when it took less than was there
	raw = append(raw, rest...)
	if err == nil {
		return First{TLS: true, Hello: hello, Raw: raw}, nil
	}
	// What begins like TLS and cannot be read is held back in any case: it may hide a name
	// from us that its receiver can read.
	if need == TLSOptional && errors.Is(err, policy.ErrNotTLS) {
		return First{Raw: raw}, nil
	}
	return First{}, faultOf(err, raw)
}

// faultOf says what is wrong with a beginning that was not a hello.
func faultOf(err error, raw []byte) error {
	why := ""
	switch {
	case errors.Is(err, policy.ErrNotTLS):
		why = "and begins with something else"
	case errors.Is(err, policy.ErrBadHello) && len(raw) >= MaxHello:
		why = fmt.Sprintf("and this one is longer than %d KiB", MaxHello>>10)
	case errors.Is(err, policy.ErrBadHello):
		why = "and this one cannot be read"
	case errors.Is(err, os.ErrDeadlineExceeded) && len(raw) == 0:
		why = fmt.Sprintf("and nothing came within %v", HelloTimeout)
	case errors.Is(err, os.ErrDeadlineExceeded):
		why = fmt.Sprintf("and its end did not come within %v", HelloTimeout)
	case errors.Is(err, io.EOF) && len(raw) == 0:
		return io.EOF
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		why = "and the client ended it before its end"
	default:
		return fmt.Errorf("read the first bytes of a tunnel: %w", err)
	}
	return policy.NewRefusal(policy.NotTLS, "the tunnel must begin with a TLS hello, "+why)
}
