package admin

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/relay"
)

// Whatever a body is, it is taken or refused as the caller's mistake, in words
// that have no name of Go's in them.
func FuzzReplayRequest(f *testing.F) {
	f.Add(`{"app":"shop","events":["evt_1"],"rate":0.5}`)
	f.Add(`{"since":"2026-01-31T12:00:00Z","states":["dead"],"all":false}`)
	f.Add(`{"colour":1}`)
	f.Add("{\"\xff\":1}")
	s := New(Config{
		Store: &fakeStore{}, Inbox: &fakeInbox{}, Authorize: nobody,
		Endpoint: func(relay.AppID, string) (relay.Endpoint, bool) { return relay.Endpoint{}, false },
	})
	f.Fuzz(func(t *testing.T, body string) {
		r := httptest.NewRequest("POST", "/", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		var req api.ReplayRequest
		err := decodeBody(httptest.NewRecorder(), r, &req)
		if err == nil {
			_, err = s.selection(t.Context(), "shop", &req)
		}
		if code := relay.CodeOf(err); err != nil && code != relay.Invalid && code != relay.NotFound {
			t.Fatal(err)
		}
		if err != nil && (strings.Contains(err.Error(), "json:") || strings.Contains(err.Error(), "api.")) {
			t.Fatalf("%q: %v", body, err)
		}
	})
}
