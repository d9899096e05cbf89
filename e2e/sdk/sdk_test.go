package sdk

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/relay"
	"github.com/posternhq/postern/relay/provider"
)

func forEachPeer(t *testing.T, test func(t *testing.T, p peer)) {
	t.Helper()
	for _, p := range peers() {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			test(t, p)
		})
	}
}

// arrived is a webhook at the relay.
func arrived(p peer, h http.Header, body string, at time.Time) relay.Incoming {
	return relay.Incoming{Method: http.MethodPost, PublicURL: p.url, Header: h, Body: []byte(body), ReceivedAt: at}
}

func endpoint(p peer, secrets ...relay.Secret) relay.Endpoint {
	return relay.Endpoint{App: "shop", Name: "x", Provider: p.provider, Secrets: secrets}
}

// What a library signs or accepts, the relay accepts, and what it refuses the
// relay refuses.
func TestTheRelayAgreesWithTheLibrary(t *testing.T) {
	t.Parallel()
	forEachPeer(t, func(t *testing.T, p peer) {
		now := time.Now()
		good, body := p.sign(p.secret, now, p.url, p.body)
		old, oldBody := p.sign(p.secret, now.Add(-time.Hour), p.url, p.body)
		stranger, strangeBody := p.sign(p.other, now, p.url, p.body)
		empty, emptyBody := p.sign(p.secret, now, p.url, "")
		for _, tt := range []struct {
			name   string
			header http.Header
			body   string
			ok     bool
		}{
			{"good", good, body, true},
			{"tampered", good, strings.Replace(body, "1", "2", 1), false},
			{"a byte more", good, body + "x", false},
			{"a line end less", good, strings.TrimRight(body, "\r\n"), !strings.HasSuffix(body, "\n")},
			{"the body taken away", good, "", false},
			{"another secret", stranger, strangeBody, false},
			{"an hour old", old, oldBody, !p.ages},
			{"no header", http.Header{}, body, false},
			{"an empty body, signed", empty, emptyBody, p.name != "twilio with JSON"},
		} {
			if p.uncovered && (tt.name == "a byte more" || tt.name == "no header") {
				continue // the signature is in the body and covers nothing else of it
			}
			verdict := provider.New(provider.Config{}).Verify(t.Context(), endpoint(p, p.secret), arrived(p, tt.header, tt.body, now))
			err := p.verify(p.secret, tt.header, p.url, tt.body)
			if verdict.OK != tt.ok || (err == nil) != tt.ok {
				t.Errorf("%s: relay %v (%s), library %v, want %v", tt.name, verdict.OK, verdict.Reason, err, tt.ok)
			}
			if tt.name == "good" && (p.id != "" && verdict.DedupeKey != p.id || verdict.Type != p.kind || !verdict.Verified) {
				t.Errorf("verdict %+v", verdict)
			}
		}
	})
}

// A webhook waits ten hours for its app. The app's library would refuse it by
// then; signed anew it does not.
func TestWhatTheRelaySignsAnewPassesTheLibrary(t *testing.T) {
	t.Parallel()
	forEachPeer(t, func(t *testing.T, p peer) {
		rules := provider.New(provider.Config{})
		sent := time.Now().Add(-10 * time.Hour)
		h, body := p.sign(p.other, sent, p.url, p.body)
		ep := endpoint(p, p.secret, p.other)
		if v := rules.Verify(t.Context(), ep, arrived(p, h, body, sent)); !v.OK {
			t.Fatalf("on arrival: %+v", v)
		}
		if err := p.verify(p.other, h, p.url, body); (err == nil) == p.ages {
			t.Fatalf("the library says %v of one that is ten hours old", err)
		}
		event := relay.Event{Method: http.MethodPost, PublicURL: p.url, Body: []byte(body), ReceivedAt: sent}
		for name, values := range h {
			event.Header = append(event.Header, relay.Field{Name: name, Value: values[0]})
		}
		appURL := "https://app.example/webhooks/x"
		if _, query, found := strings.Cut(p.url, "?"); found {
			appURL += "?" + query
		}
		fields, err := rules.Resign(ep, event, appURL, time.Now())
		if !provider.Facts(p.provider).Resigns {
			if err == nil {
				t.Errorf("signed anew: %v", fields)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range fields {
			h.Set(f.Name, f.Value)
		}
		if err := p.verify(p.other, h, appURL, body); err != nil {
			t.Errorf("the library refuses %v: %v", fields, err)
		}
		if p.url != "" {
			if err := p.verify(p.other, h, p.url, body); err == nil {
				t.Error("it also passes for the URL that it was sent to first")
			}
		}
	})
}

// An app that has only one of two secrets passes, whichever it is, where the
// header takes several signatures.
func TestASecretBeingRotatedPassesTheLibrary(t *testing.T) {
	t.Parallel()
	forEachPeer(t, func(t *testing.T, p peer) {
		if p.provider != "stripe" && p.provider != "standard" && p.provider != "svix" {
			t.Skip("its header takes one signature")
		}
		h, body := p.sign(p.secret, time.Now(), p.url, p.body)
		event := relay.Event{Method: http.MethodPost, Body: []byte(body)}
		for name, values := range h {
			event.Header = append(event.Header, relay.Field{Name: name, Value: values[0]})
		}
		fields, err := provider.New(provider.Config{}).Resign(endpoint(p, p.secret, p.other), event, "", time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range fields {
			h.Set(f.Name, f.Value)
		}
		for _, secret := range []relay.Secret{p.secret, p.other} {
			if err := p.verify(secret, h, "", body); err != nil {
				t.Errorf("%v: %v", fields, err)
			}
		}
	})
}
