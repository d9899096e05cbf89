package ingress

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// What is wrong inside an app is for its operators, not for whoever asks.
func TestOnlyOperatorsSeeTheFindings(t *testing.T) {
	f := newFront(t, func(c *Config, _ *relay.Manifest) {
		c.Operator = func(_ context.Context, token string, app relay.AppID) bool {
			return token == "good" && app == "shop"
		}
		c.Findings = func(app relay.AppID) []protocol.Finding {
			return []protocol.Finding{{Code: "PORT02", Cause: "the app listens on 3000"}}
		}
	})
	f.answer = func(*http.Request) (*http.Response, error) {
		return nil, relay.Errorf(relay.AppRefused, "app shop does not accept connections")
	}
	for _, test := range []struct {
		name, header, value string
		want                bool
	}{
		{"nobody", "X-None", "", false},
		{"an operator", protocol.HeaderAuthorization, "Bearer good", true},
		{"an operator of an app without a login", "Authorization", "bearer good", true},
		{"a wrong token", protocol.HeaderAuthorization, "Bearer bad", false},
		{"another scheme", "Authorization", "Basic good", false},
		{"no token", "Authorization", "Bearer ", false},
	} {
		r := httptest.NewRequest(http.MethodGet, "http://shop.example.com/", nil)
		r.Header.Set(test.header, test.value)
		w := f.do(r)
		var body struct {
			Error    struct{ Code string }
			Findings []protocol.Finding
		}
		if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
			t.Fatal(err)
		}
		if w.Code != http.StatusBadGateway || body.Error.Code != "app_refused" {
			t.Errorf("%s: %d %s", test.name, w.Code, w.Body)
		}
		if got := len(body.Findings) == 1 && body.Findings[0].Code == "PORT02"; got != test.want || strings.Contains(w.Body.String(), "3000") != test.want {
			t.Errorf("%s: findings shown %v, want %v: %s", test.name, got, test.want, w.Body)
		}
	}
	for _, r := range f.seen {
		if r.Header.Get(protocol.HeaderAuthorization) != "" {
			t.Error("an operator's token reached the app")
		}
	}
}
