package auth

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/posternhq/postern/relay"
)

// Leeway is how far this clock and the issuing one may differ. It is given to
// nbf and iat only: exp is exact, because a token must not live longer than the
// person who made it was told.
const Leeway = 30 * time.Second

// newToken is the advice that ends most refusals.
const newToken = "make a new one with postern-relay token create"

// VerifierConfig configures a Verifier. Keys and Revocations are required.
type VerifierConfig struct {
	Keys        *Keyring
	Revocations *Revocations
	Audience    string           // default DefaultAudience; the Issuer's
	Now         func() time.Time // default time.Now
}

// Verifier checks tokens. It is safe for concurrent use.
type Verifier struct {
	keys        *Keyring
	revocations *Revocations
	audience    string
	now         func() time.Time
	parser      *jwt.Parser
}

// NewVerifier makes a Verifier.
func NewVerifier(cfg VerifierConfig) *Verifier {
	if cfg.Keys == nil || cfg.Revocations == nil {
		panic("auth: a Verifier needs Keys and Revocations")
	}
	if cfg.Audience == "" {
		cfg.Audience = DefaultAudience
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Verifier{
		keys:        cfg.Keys,
		revocations: cfg.Revocations,
		audience:    cfg.Audience,
		now:         cfg.Now,
		// The library decides about the signature alone. Its check of claims
		// would give exp the leeway too, and does not tell the reasons apart.
		parser: jwt.NewParser(
			jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}),
			jwt.WithStrictDecoding(),
			jwt.WithoutClaimsValidation(),
		),
	}
}

// Verify checks raw and returns whom it speaks for. A refusal is a *relay.Error
// with a Reason (see ReasonOf), Unauthorized, or Forbidden where a valid token
// names a scope or an app that cannot be. Unavailable means that the relay
// cannot judge now: its key folder cannot be read, or it has not yet read which
// tokens are revoked. The context is for checks that ask elsewhere; there are
// none today.
func (v *Verifier) Verify(_ context.Context, raw string) (relay.Principal, error) {
	header, payload, err := split(raw)
	if err != nil {
		return relay.Principal{}, err
	}
	kid, err := checkHeader(header)
	if err != nil {
		return relay.Principal{}, err
	}
	if err := v.checkSignature(raw, kid); err != nil {
		return relay.Principal{}, err
	}
	// From here on, the token is what some Issuer with our keys wrote.
	c, err := readClaims(payload)
	if err != nil {
		return relay.Principal{}, err
	}
	if err := v.checkClaims(&c); err != nil {
		return relay.Principal{}, err
	}
	if err := checkReach(&c); err != nil {
		return relay.Principal{}, err
	}
	if err := v.checkRevoked(c.id); err != nil {
		return relay.Principal{}, err
	}
	return relay.Principal{Token: c.id, App: c.app, Scope: c.scope, ExpiresAt: c.expires}, nil
}

// checkHeader returns the header's kid. The algorithm is ours to choose, never
// the token's (RFC 8725 sections 2.1 and 3.1): there is one, whatever the
// header says. Keys that a header brings along or points to (jwk, jku, x5c,
// x5u) are not looked at (RFC 8725 section 3.10).
func checkHeader(header map[string]any) (kid string, err error) {
	if alg, _ := header["alg"].(string); alg != jwt.SigningMethodEdDSA.Alg() {
		return "", refuse(TokenAlgorithm, "the token is not signed with EdDSA, so it is not from this relay; "+newToken)
	}
	if typ, _ := header["typ"].(string); !strings.EqualFold(typ, tokenType) {
		return "", refuse(TokenMalformed, "the token's type is not JWT; "+newToken)
	}
	if _, ok := header["crit"]; ok { // RFC 7515 section 4.1.11: refuse what we do not know
		return "", refuse(TokenMalformed, "the token asks for extensions that this relay does not have; "+newToken)
	}
	kid, _ = header["kid"].(string)
	if !plainName(kid) { // RFC 8725 section 3.10: a kid is a stranger's text
		return "", refuse(TokenMalformed, "the token names no key; "+newToken)
	}
	return kid, nil
}

// checkSignature checks raw against our key kid.
func (v *Verifier) checkSignature(raw, kid string) error {
	public, err := v.keys.Public(kid)
	if relay.CodeOf(err) == relay.NotFound {
		return refuse(TokenUnknownKey, "the token is signed with key %s, which this relay does not have; "+newToken, kid)
	}
	if err != nil {
		return &relay.Error{Code: relay.Unavailable, Message: "the relay cannot read its keys now; try again", Err: err}
	}
	_, err = v.parser.Parse(raw, func(*jwt.Token) (any, error) { return public, nil })
	if errors.Is(err, jwt.ErrTokenSignatureInvalid) {
		return refuse(TokenSignature, "the token was changed or is not from this relay; copy it again in full, or "+newToken)
	}
	if err != nil { // its text may quote the token: it goes no further
		return refuse(TokenMalformed, "the token cannot be read; copy it again in full, or "+newToken)
	}
	return nil
}

// checkClaims checks whom the token is from and for, and its times (RFC 7519
// section 4.1).
func (v *Verifier) checkClaims(c *claims) error {
	if c.issuer != tokenIssuer {
		return refuse(TokenIssuer, "the token is from another issuer than %q; "+newToken, tokenIssuer)
	}
	if !slices.Contains(c.audience, v.audience) {
		return refuse(TokenAudience, "the token is for another audience than %q; make one on this relay with postern-relay token create", v.audience)
	}
	now := v.now()
	if !now.Before(c.expires) { // "on or after" exp it must not be accepted: section 4.1.4
		return refuse(TokenExpired, "the token expired on %s; "+newToken, stamp(c.expires))
	}
	for _, start := range []time.Time{c.notBefore, c.issued} {
		if start.After(now.Add(Leeway)) {
			return refuse(TokenNotYetValid, "the token is valid from %s and the relay's clock says %s; set the clocks right or wait", stamp(start), stamp(now))
		}
	}
	return nil
}

// checkReach checks scope and sub. Both refusals are Forbidden and not
// permanent: during a rolling upgrade, a newer node may have issued a scope
// that this one does not know yet.
func checkReach(c *claims) error {
	if !c.scope.Valid() {
		return refuse(TokenScope, "the token has a scope that this relay does not know; "+newToken)
	}
	if c.app == "" && c.scope == relay.ScopeAdmin {
		return nil
	}
	if err := c.app.Validate(); err != nil {
		return refuse(TokenApp, "the token names no usable app (%v); "+newToken, err)
	}
	return nil
}

func (v *Verifier) checkRevoked(id relay.TokenID) error {
	revoked, known := v.revocations.check(id)
	if !known { // fail closed
		return &relay.Error{Code: relay.Unavailable, Message: "the relay has not yet read which tokens are revoked; try again"}
	}
	if revoked {
		return refuse(TokenRevoked, "the token %s was revoked; "+newToken, id)
	}
	return nil
}

// stamp is a time in a message.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
