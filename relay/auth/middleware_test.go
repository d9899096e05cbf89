package auth

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/posternhq/postern/relay"
)

func request(headers ...string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/api/v1/apps?access_token=a.b.c", nil)
	for _, h := range headers {
		r.Header.Add("Authorization", h)
	}
	return r
}

func TestBearerTakesOneHeaderOfItsScheme(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		headers []string
		want    string
		reason  Reason
	}{
		"as it should be":      {[]string{"Bearer a.b.c"}, "a.b.c", ""},
		"in small letters":     {[]string{"bearer a.b.c"}, "a.b.c", ""},
		"with several spaces":  {[]string{"Bearer   a.b.c "}, "a.b.c", ""},
		"none, but in query":   {nil, "", TokenMissing},
		"empty":                {[]string{""}, "", TokenMissing},
		"no token":             {[]string{"Bearer"}, "", TokenMissing},
		"only a space":         {[]string{"Bearer "}, "", TokenMissing},
		"no scheme":            {[]string{"a.b.c"}, "", TokenMissing},
		"another scheme":       {[]string{"Basic dXNlcjpwdw=="}, "", TokenMissing},
		"a scheme without gap": {[]string{"Bearera.b.c"}, "", TokenMissing},
		"two headers":          {[]string{"Bearer a.b.c", "Bearer d.e.f"}, "", TokenMalformed},
		"the same twice":       {[]string{"Bearer a.b.c", "Bearer a.b.c"}, "", TokenMalformed},
		"one of them Basic":    {[]string{"Basic x", "Bearer a.b.c"}, "", TokenMalformed},
		"huge":                 {[]string{"Bearer " + strings.Repeat("a", MaxTokenBytes+1)}, "", TokenMalformed},
		"as long as allowed":   {[]string{"Bearer " + strings.Repeat("a", MaxTokenBytes)}, strings.Repeat("a", MaxTokenBytes), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := Bearer(request(row.headers...))
			if row.reason != "" {
				wantReason(t, err, row.reason)
				return
			}
			if err != nil || got != row.want {
				t.Fatalf("%q, %v; want %q", got, err, row.want)
			}
		})
	}
}

func TestAuthorizeChecksTheScope(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	raw, token := d.issue(t) // of an agent
	for name, row := range map[string]struct {
		scopes []relay.Scope
		want   Reason
	}{
		"its own":           {[]relay.Scope{relay.ScopeAgent}, ""},
		"its own or more":   {[]relay.Scope{relay.ScopeAdmin, relay.ScopeAgent}, ""},
		"another":           {[]relay.Scope{relay.ScopeAdmin}, TokenScope},
		"two others":        {[]relay.Scope{relay.ScopeAdmin, relay.ScopeDeveloper}, TokenScope},
		"none: nobody may":  {nil, TokenScope},
		"a scope of no one": {[]relay.Scope{""}, TokenScope},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, err := d.verifier.Authorize(t.Context(), request("Bearer "+raw), row.scopes...)
			if row.want != "" {
				wantReason(t, err, row.want)
				if p != (relay.Principal{}) {
					t.Fatalf("a refusal with the principal %+v", p)
				}
				return
			}
			if err != nil || p.Token != token.ID {
				t.Fatalf("%+v, %v", p, err)
			}
		})
	}
	t.Run("no token", func(t *testing.T) {
		t.Parallel()
		_, err := d.verifier.Authorize(t.Context(), request(), relay.ScopeAgent)
		wantReason(t, err, TokenMissing)
	})
	t.Run("two headers, both good", func(t *testing.T) {
		t.Parallel()
		_, err := d.verifier.Authorize(t.Context(), request("Bearer "+raw, "Bearer "+raw), relay.ScopeAgent)
		wantReason(t, err, TokenMalformed)
	})
	t.Run("two tokens in one header", func(t *testing.T) {
		t.Parallel()
		_, err := d.verifier.Authorize(t.Context(), request("Bearer "+raw+", Bearer "+raw), relay.ScopeAgent)
		wantReason(t, err, TokenMalformed)
	})
}

func TestATokenReachesItsOwnAppOnly(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		principal relay.Principal
		app       relay.AppID
		allowed   bool
	}{
		"an agent, its app":           {relay.Principal{App: "shop", Scope: relay.ScopeAgent}, "shop", true},
		"an agent, another app":       {relay.Principal{App: "shop", Scope: relay.ScopeAgent}, "bank", false},
		"an agent, a longer name":     {relay.Principal{App: "shop", Scope: relay.ScopeAgent}, "shop2", false},
		"a developer, another app":    {relay.Principal{App: "shop", Scope: relay.ScopeDeveloper}, "bank", false},
		"an admin of all, any app":    {relay.Principal{Scope: relay.ScopeAdmin}, "bank", true},
		"an admin of one, its app":    {relay.Principal{App: "shop", Scope: relay.ScopeAdmin}, "shop", true},
		"an admin of one, another":    {relay.Principal{App: "shop", Scope: relay.ScopeAdmin}, "bank", false},
		"an agent of no app, no app":  {relay.Principal{Scope: relay.ScopeAgent}, "", false},
		"an agent of no app, any app": {relay.Principal{Scope: relay.ScopeAgent}, "shop", false},
		"nobody":                      {relay.Principal{}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := AuthorizeApp(row.principal, row.app)
			if !row.allowed {
				wantReason(t, err, TokenApp)
			} else if err != nil {
				t.Fatal(err)
			}
		})
	}
}
