package relay

import "time"

// Scope is what a token allows. Each scope stands alone: an admin token does
// not open a tunnel, so that a leaked operator credential cannot impersonate an
// app.
type Scope string

// The scopes.
const (
	ScopeAgent     Scope = "agent"     // open tunnels for one app
	ScopeDeveloper Scope = "developer" // local tunnels and debug sessions of one app
	ScopeAdmin     Scope = "admin"     // the HTTP API
)

// Valid reports whether s is one of the scopes above.
func (s Scope) Valid() bool {
	return s == ScopeAgent || s == ScopeDeveloper || s == ScopeAdmin
}

// TokenID is a token's jti claim.
type TokenID string

// Token is the record of an issued token. The token itself is never stored: a
// signature is checked, and a record here only says that it was revoked.
type Token struct {
	ID        TokenID
	App       AppID // empty only for admin tokens
	Scope     Scope
	IssuedAt  time.Time
	ExpiresAt time.Time
	RevokedAt time.Time // zero: not revoked
}

// NewTokenID makes a TokenID.
func NewTokenID(now time.Time) TokenID { return TokenID(newID("tok_", now)) }

// Principal is who a verified token speaks for.
type Principal struct {
	Token     TokenID
	App       AppID
	Scope     Scope
	ExpiresAt time.Time
}
