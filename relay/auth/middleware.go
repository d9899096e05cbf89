package auth

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/posternhq/postern/relay"
)

// Bearer takes the token out of r's one Authorization header (RFC 6750 section
// 2.1). The other places of that RFC, the form and the query, are not looked
// at: they end up in logs and histories. Two headers are refused, because the
// proxies on the way may disagree about which one counts.
func Bearer(r *http.Request) (string, error) {
	values := r.Header.Values("Authorization")
	if len(values) > 1 {
		return "", refuse(TokenMalformed, "the request has %d Authorization headers; send one", len(values))
	}
	if len(values) == 0 {
		return "", refuse(TokenMissing, "no token was sent; send the header Authorization: Bearer followed by the token")
	}
	scheme, token, _ := strings.Cut(strings.TrimSpace(values[0]), " ")
	if !strings.EqualFold(scheme, "Bearer") { // schemes ignore case: RFC 9110 section 11.1
		return "", refuse(TokenMissing, "the Authorization header is not of the scheme Bearer; send Authorization: Bearer followed by the token")
	}
	token = strings.TrimLeft(token, " ")
	if token == "" {
		return "", refuse(TokenMissing, "the Authorization header holds no token; send Authorization: Bearer followed by the token")
	}
	if len(token) > MaxTokenBytes {
		return "", refuse(TokenMalformed, "the token has %d bytes, more than the %d allowed; "+newToken, len(token), MaxTokenBytes)
	}
	return token, nil
}

// Authorize checks r's token and that its scope is one of scopes; without
// scopes nobody may pass. Its errors are those of Bearer and Verify, and
// TokenScope (Forbidden) for another scope. Writing the answer is the caller's.
func (v *Verifier) Authorize(ctx context.Context, r *http.Request, scopes ...relay.Scope) (relay.Principal, error) {
	raw, err := Bearer(r)
	if err != nil {
		return relay.Principal{}, err
	}
	p, err := v.Verify(ctx, raw)
	if err != nil {
		return relay.Principal{}, err
	}
	if !slices.Contains(scopes, p.Scope) {
		return relay.Principal{}, refuse(TokenScope, "a token of scope %s may not do this, it takes %s; make one with postern-relay token create", p.Scope, scopeList(scopes))
	}
	return p, nil
}

// AuthorizeApp checks that p may act on app: its own, or any for an admin whose
// token names none. What p may do there is its scope's matter.
func AuthorizeApp(p relay.Principal, app relay.AppID) error {
	if p.App == "" && p.Scope == relay.ScopeAdmin {
		return nil
	}
	if p.App == "" || p.App != app {
		return refuse(TokenApp, "the token is for the app %q only; make one for the other app with postern-relay token create", string(p.App))
	}
	return nil
}

func scopeList(scopes []relay.Scope) string {
	if len(scopes) == 0 {
		return "none"
	}
	names := make([]string, len(scopes))
	for i, s := range scopes {
		names[i] = string(s)
	}
	return strings.Join(names, " or ")
}
