package node

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// A partner checks the feed with nothing but what stands in it and the key it noted
// down before.
func TestTheFeedOfAddressesCanBeChecked(t *testing.T) {
	t.Parallel()
	keys, err := OpenKeys(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	public, _ := url.Parse("https://relay.example.com")
	want := []netip.Addr{netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8::7")}
	n := &Node{cfg: &settings{public: public, egress: want}}
	w := httptest.NewRecorder()
	n.serveFeed(keys)(w, httptest.NewRequest("GET", feedPath, nil))
	if w.Code != 200 || w.Header().Get("Content-Type") != "application/json" {
		t.Fatalf("%d %v", w.Code, w.Header())
	}
	var got signedFeed
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Addresses, want) || got.Relay != "https://relay.example.com" ||
		got.ValidUntil.Sub(got.IssuedAt) != feedValid || time.Since(got.IssuedAt) > time.Minute {
		t.Errorf("%+v", got.feed)
	}
	parts := strings.Split(got.JWS, ".")
	key, err := base64.RawURLEncoding.DecodeString(got.Key.X)
	if len(parts) != 3 || err != nil {
		t.Fatalf("jws %q, key %+v", got.JWS, got.Key)
	}
	signature, _ := base64.RawURLEncoding.DecodeString(parts[2])
	if !ed25519.Verify(key, []byte(parts[0]+"."+parts[1]), signature) {
		t.Error("the signature is not the key's")
	}
	var payload feed
	raw, _ := base64.RawURLEncoding.DecodeString(parts[1])
	if err := json.Unmarshal(raw, &payload); err != nil || !slices.Equal(payload.Addresses, want) || !payload.ValidUntil.Equal(got.ValidUntil) {
		t.Errorf("signed is %s, %v", raw, err)
	}
	if !keys.Verify([]byte(parts[0]+"."+parts[1]), parts[2], got.Key.KeyID) || keys.Verify([]byte("else"), parts[2], got.Key.KeyID) {
		t.Error("the relay does not know its own signature, or knows another's")
	}
}

func TestAddressesAreThoseOfTheInterfacesUnlessTheyAreGiven(t *testing.T) {
	t.Parallel()
	s, err := Config{Listen: "127.0.0.1:0", EgressAddresses: "203.0.113.7, 2001:db8::7", Env: nil}.check()
	if err != nil || len(s.egress) != 2 {
		t.Fatalf("%v, %v", s.egress, err)
	}
	for _, wrong := range []string{"203.0.113.0/24", "relay.example.com", "fe80::1%eth0"} {
		if _, err := (Config{EgressAddresses: wrong}).check(); err == nil || !strings.Contains(err.Error(), "is not an address") {
			t.Errorf("%s: %v", wrong, err)
		}
	}
	n := &Node{cfg: s}
	own := n.ownAddresses()
	for _, want := range []string{"203.0.113.7", "2001:db8::7"} {
		if !slices.Contains(own, netip.MustParseAddr(want)) {
			t.Errorf("%s is not among our own: %v", want, own)
		}
	}
	for _, addr := range (&Node{cfg: &settings{}}).publicEgress() {
		if addr.IsLoopback() || addr.IsPrivate() {
			t.Errorf("%v is published", addr)
		}
	}
}
