package auth

import (
	"context"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/posternhq/postern/relay"
)

// Issuer and audience of our tokens. The issuer is a constant and not the
// public URL, because a relay that moves to another name must not lose its
// agents. The audience can be configured, for several relays that share keys.
const (
	tokenIssuer     = "postern"
	DefaultAudience = "postern-relay"
)

// Bounds of a token's life. Every token ends some day (RFC 8725 section 2.7
// would rather have it soon): the longest life is there for devices that nobody
// visits.
const (
	DefaultTTL = 720 * time.Hour // 30 days
	MinTTL     = time.Second
	MaxTTL     = 10 * 365 * 24 * time.Hour
)

// tokenType is the typ header. It is required on the way in, so that other
// things these keys may sign one day are never taken for a token (RFC 8725
// section 3.11).
const tokenType = "JWT"

// IssuerConfig configures an Issuer. Keys and Tokens are required.
type IssuerConfig struct {
	Keys     *Keyring
	Tokens   relay.TokenStore
	Audience string // default DefaultAudience
}

// Issuer makes tokens and records them.
type Issuer struct {
	keys     *Keyring
	tokens   relay.TokenStore
	audience string
}

// NewIssuer makes an Issuer.
func NewIssuer(cfg IssuerConfig) *Issuer {
	if cfg.Keys == nil || cfg.Tokens == nil {
		panic("auth: an Issuer needs Keys and Tokens")
	}
	if cfg.Audience == "" {
		cfg.Audience = DefaultAudience
	}
	return &Issuer{keys: cfg.Keys, tokens: cfg.Tokens, audience: cfg.Audience}
}

// IssueRequest says what token to make.
type IssueRequest struct {
	App   relay.AppID // may be empty for ScopeAdmin only
	Scope relay.Scope
	TTL   time.Duration // 0: DefaultTTL; else MinTTL to MaxTTL
	Now   time.Time     // zero: the system's time
}

func (r *IssueRequest) validate() error {
	if !r.Scope.Valid() {
		return relay.Errorf(relay.Invalid, "there is no scope %q; use %s, %s or %s",
			string(r.Scope), relay.ScopeAgent, relay.ScopeDeveloper, relay.ScopeAdmin)
	}
	if r.App != "" || r.Scope != relay.ScopeAdmin {
		if err := r.App.Validate(); err != nil {
			return relay.Errorf(relay.Invalid, "%v", err)
		}
	}
	if r.TTL < MinTTL || r.TTL > MaxTTL {
		return relay.Errorf(relay.Invalid, "a token lives %v to %v, not %v", MinTTL, MaxTTL, r.TTL)
	}
	return nil
}

// Issue makes a token and records it; the caller makes sure that the app is
// known. The JWT is returned once and kept nowhere. Its times are whole
// seconds: the end is rounded up, so that a short life is not cut to nothing.
// A bad request is Invalid; any other error is the store's or the key folder's,
// and then there is no token.
func (i *Issuer) Issue(ctx context.Context, r IssueRequest) (string, relay.Token, error) {
	if r.TTL == 0 {
		r.TTL = DefaultTTL
	}
	if r.Now.IsZero() {
		r.Now = time.Now()
	}
	if err := r.validate(); err != nil {
		return "", relay.Token{}, err
	}
	token := relay.Token{
		ID:        relay.NewTokenID(r.Now),
		App:       r.App,
		Scope:     r.Scope,
		IssuedAt:  time.Unix(r.Now.Unix(), 0).UTC(),
		ExpiresAt: time.Unix(r.Now.Add(r.TTL+time.Second-1).Unix(), 0).UTC(),
	}
	raw, err := i.sign(token)
	if err != nil {
		return "", relay.Token{}, fmt.Errorf("sign token: %w", err)
	}
	if err := i.tokens.CreateToken(ctx, token); err != nil {
		return "", relay.Token{}, fmt.Errorf("record token: %w", err)
	}
	return raw, token, nil
}

// sign is the JWT of token, by the newest key.
func (i *Issuer) sign(token relay.Token) (string, error) {
	k, err := i.keys.signing()
	if err != nil {
		return "", err
	}
	claims := jwt.MapClaims{
		"iss":   tokenIssuer,
		"aud":   i.audience,
		"exp":   token.ExpiresAt.Unix(),
		"nbf":   token.IssuedAt.Unix(),
		"iat":   token.IssuedAt.Unix(),
		"jti":   string(token.ID),
		"scope": string(token.Scope),
	}
	if token.App != "" {
		claims["sub"] = string(token.App)
	}
	t := jwt.NewWithClaims(jwt.SigningMethodEdDSA, claims) // sets typ and alg
	t.Header["kid"] = k.ID
	return t.SignedString(k.private)
}
