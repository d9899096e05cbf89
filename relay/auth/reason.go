package auth

import (
	"errors"
	"fmt"

	"github.com/posternhq/postern/relay"
)

// Reason says why a token was refused, for programs. Reasons are part of the
// public answers, so they are never renamed. A Reason is itself an error: it is
// the cause inside the *relay.Error of a refusal, so that it reaches the log.
type Reason string

// The reasons. All are Unauthorized (401) but the last two.
const (
	TokenMissing     Reason = "token_missing"       // no bearer token was sent
	TokenMalformed   Reason = "token_malformed"     // it is no token of ours and never will be
	TokenAlgorithm   Reason = "token_algorithm"     // any alg but EdDSA
	TokenSignature   Reason = "token_signature"     // the key is ours, the signature is not
	TokenUnknownKey  Reason = "token_unknown_key"   // kid names no key of this relay
	TokenExpired     Reason = "token_expired"       // exp has come
	TokenNotYetValid Reason = "token_not_yet_valid" // nbf or iat is in the future
	TokenIssuer      Reason = "token_issuer"        // iss is another
	TokenAudience    Reason = "token_audience"      // aud is another
	TokenRevoked     Reason = "token_revoked"       // the store says so
	TokenScope       Reason = "token_scope"         // Forbidden (403): valid, for something else
	TokenApp         Reason = "token_app"           // Forbidden (403): valid, for another app
)

func (r Reason) Error() string { return string(r) }

// code is the relay.Code of a refusal for r.
func (r Reason) code() relay.Code {
	if r == TokenScope || r == TokenApp {
		return relay.Forbidden
	}
	return relay.Unauthorized
}

// ReasonOf finds the Reason in err's chain, or "" when err is no refusal of
// this package.
func ReasonOf(err error) Reason {
	var r Reason
	if errors.As(err, &r) {
		return r
	}
	return ""
}

// Permanent reports whether the same token can never be accepted again, so that
// an agent should stop trying. It is true for revoked and malformed only: every
// other refusal may end by what an operator does on the relay (a key copied
// over, a clock set right, a configuration corrected), and an agent that gave
// up would then stay away until its app restarts.
func Permanent(r Reason) bool { return r == TokenRevoked || r == TokenMalformed }

// refuse makes the *relay.Error for r. The message goes to whoever sent the
// token: it says how to fix it and never repeats any unchecked part of it.
func refuse(r Reason, format string, args ...any) error {
	return &relay.Error{Code: r.code(), Message: fmt.Sprintf(format, args...), Err: r}
}
