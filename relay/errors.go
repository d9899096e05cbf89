package relay

import (
	"errors"
	"fmt"
	"net/http"
)

// Code classifies an error where somebody branches on it. Codes are part of the
// public answers ({"error":{"code":...}}), so they are never renamed.
type Code string

// The codes, each with the HTTP status that Status gives it.
const (
	NotFound     Code = "not_found"     // 404 no such app, endpoint or record
	Invalid      Code = "invalid"       // 400 the caller's input is wrong
	BadSignature Code = "bad_signature" // 401 a webhook's signature does not verify
	Unauthorized Code = "unauthorized"  // 401 no proof, or a proof that does not hold
	Forbidden    Code = "forbidden"     // 403 a valid proof that does not reach this far
	BadMethod    Code = "bad_method"    // 405 the resource does not take this method
	Conflict     Code = "conflict"      // 409 the record changed under the caller
	TooLarge     Code = "too_large"     // 413 a body over its limit
	RateLimited  Code = "rate_limited"  // 429 a limit of this app or endpoint
	Unavailable  Code = "unavailable"   // 503 the relay itself cannot do it now
	NoAgent      Code = "no_agent"      // 503 no agent of the app is connected
	AppStarting  Code = "app_starting"  // 503 the app beside the agent does not listen yet
	Draining     Code = "draining"      // 503 the relay is stopping
	Overloaded   Code = "overloaded"    // 503 the app's share of the relay is used up
	AppRefused   Code = "app_refused"   // 502 the app does not accept connections
	AppRejected  Code = "app_rejected"  // 502 the app's answer is not for the sender
	AppReset     Code = "reset"         // 502 the app or its agent was lost before it answered
	AppTimeout   Code = "app_timeout"   // 504 the app was silent for the idle limit
)

// Status is the HTTP status of an error with code c; unknown codes are 500.
func (c Code) Status() int {
	switch c {
	case NotFound:
		return http.StatusNotFound
	case Invalid:
		return http.StatusBadRequest
	case BadSignature, Unauthorized:
		return http.StatusUnauthorized
	case Forbidden:
		return http.StatusForbidden
	case BadMethod:
		return http.StatusMethodNotAllowed
	case Conflict:
		return http.StatusConflict
	case TooLarge:
		return http.StatusRequestEntityTooLarge
	case RateLimited:
		return http.StatusTooManyRequests
	case Unavailable, NoAgent, AppStarting, Draining, Overloaded:
		return http.StatusServiceUnavailable
	case AppRefused, AppRejected, AppReset:
		return http.StatusBadGateway
	case AppTimeout:
		return http.StatusGatewayTimeout
	}
	return http.StatusInternalServerError
}

// Error is a refusal with a reason that may be shown to the caller. Err, when
// set, is the cause: it goes to the log and never into an answer.
type Error struct {
	Code    Code
	Reason  string // machine-readable detail of Code, "" when there is none: token_expired, ...
	Message string // one plain sentence for the caller
	Err     error
}

func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %v", e.Code, e.Message, e.Err)
	}
	return fmt.Sprintf("%s: %s", e.Code, e.Message)
}

func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an *Error. A %w verb among the arguments becomes its cause.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Err: errors.Unwrap(err)}
}

// CodeOf finds the Code in err's chain, or "" when there is none.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}
