package protocol

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Code says why a stream was refused or reset, or a session ended. On the wire
// it is a short string in JSON messages and a number in a yamux RST frame.
type Code string

// The codes. The number is the one in an RST; 0 stands for CodeReset.
const (
	CodeReset       Code = "reset"            // 0  the connection behind the stream was lost
	CodeCanceled    Code = "canceled"         // 1  the opener does not want an answer any more
	CodeRefused     Code = "app_refused"      // 2  nothing listens where the stream should go
	CodeTimeout     Code = "app_timeout"      // 3  the other end was silent for the idle limit
	CodeDraining    Code = "agent_draining"   // 4  this end takes no new streams
	CodeLimit       Code = "limit"            // 5  a limit on streams or memory is reached
	CodeUnsupported Code = "unsupported_kind" // 6  this end does not serve that kind of stream
	CodeBadMessage  Code = "bad_message"      // 7  a message that cannot be read
	CodeVersion     Code = "version"          // 8  no protocol version in common
	CodeReplaced    Code = "replaced"         // 9  a newer tunnel of the same instance took over
	CodeShutdown    Code = "shutdown"         // 10 the process is stopping
	CodeDead        Code = "dead"             // 11 the peer was silent for two heartbeats
	CodeForbidden   Code = "forbidden"        // 12 the policy does not allow it
	CodeRevoked     Code = "token_revoked"    // 13 the token that opened the session was revoked
	CodeStale       Code = "stale"            // 14 what is behind the stream had ended, owing nothing, before these bytes came: they are unsent
)

// resetCodes is the number of each Code in an RST frame.
var resetCodes = [...]Code{
	CodeReset, CodeCanceled, CodeRefused, CodeTimeout, CodeDraining, CodeLimit, CodeUnsupported,
	CodeBadMessage, CodeVersion, CodeReplaced, CodeShutdown, CodeDead, CodeForbidden, CodeRevoked, CodeStale,
}

// number is c in an RST; a code unknown to the table travels as 0.
func (c Code) number() uint32 {
	for i, known := range resetCodes {
		if known == c {
			return uint32(i)
		}
	}
	return 0
}

// codeFromNumber reads a code from an RST; a newer peer's unknown code is a
// plain reset.
func codeFromNumber(n uint32) Code {
	if n < uint32(len(resetCodes)) {
		return resetCodes[n]
	}
	return CodeReset
}

// Error is a refusal or an abort with its code.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message,omitempty"`
	// Unsent is true when no byte that was written to the stream has reached,
	// or can still reach, whatever is behind it: the caller may try elsewhere.
	Unsent bool `json:"-"`
	// Detail is the Reply's.
	Detail json.RawMessage `json:"-"`
	Err    error           `json:"-"`
}

func (e *Error) Error() string {
	s := string(e.Code)
	if e.Message != "" {
		s += ": " + e.Message
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an *Error.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// CodeOf finds the Code in err's chain, or "" when there is none.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}
