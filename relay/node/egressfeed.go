package node

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/netip"
	"time"

	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/relay"
	"github.com/posternhq/postern/relay/auth"
	"github.com/posternhq/postern/relay/ingress"
)

// feedPath is where partners learn which addresses the apps' calls come from.
const feedPath = "/.well-known/postern-egress.json"

// feedValid is for how long a feed may be used. Whoever changes the addresses says so
// earlier than that.
const feedValid = 24 * time.Hour

// feed is what a partner's firewall may be made from. Addresses are those that calls
// can come from until ValidUntil; it is to be fetched again before.
type feed struct {
	Addresses  []netip.Addr `json:"addresses"`
	IssuedAt   time.Time    `json:"issued_at"`
	ValidUntil time.Time    `json:"valid_until"`
	Relay      string       `json:"relay"` // its public URL
}

// signedFeed is a feed that can be kept and checked later. JWS is the same feed as a
// compact JWS (RFC 7515, EdDSA); Key is the public key (RFC 8037).
type signedFeed struct {
	feed
	JWS string `json:"jws"`
	Key jwk    `json:"key"`
}

type jwk struct {
	KeyID string `json:"kid"`
	Type  string `json:"kty"`
	Curve string `json:"crv"`
	Use   string `json:"use"`
	X     string `json:"x"`
}

// publicEgress are the addresses to publish: those configured, else the public ones of
// the interfaces.
func (n *Node) publicEgress() []netip.Addr {
	if len(n.cfg.egress) > 0 {
		return n.cfg.egress
	}
	public := []netip.Addr{} // never null
	for _, addr := range n.ownAddresses() {
		if policy.Class(addr) == "" {
			public = append(public, addr)
		}
	}
	return public
}

// serveFeed answers with the signed feed.
func (n *Node) serveFeed(keys *auth.Keyring) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		now := time.Now().UTC().Truncate(time.Second)
		f := feed{Addresses: n.publicEgress(), IssuedAt: now, ValidUntil: now.Add(feedValid), Relay: n.cfg.public.String()}
		signed, err := sign(f, keys)
		if err != nil {
			relay.WriteError(w, ingress.RequestID(r), &relay.Error{Code: relay.Unavailable, Message: "the relay cannot sign just now", Err: err})
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "public, max-age=300")
		json.NewEncoder(w).Encode(signed)
	}
}

func sign(f feed, keys *auth.Keyring) (signedFeed, error) {
	payload, err := json.Marshal(f)
	if err != nil {
		return signedFeed{}, err
	}
	keyID, err := keys.SigningKey()
	if err != nil {
		return signedFeed{}, err
	}
	public, err := keys.Public(keyID)
	if err != nil {
		return signedFeed{}, err
	}
	header, _ := json.Marshal(map[string]string{"alg": "EdDSA", "kid": keyID, "typ": "postern-egress+jwt"})
	enc := base64.RawURLEncoding.EncodeToString
	text := enc(header) + "." + enc(payload)
	signature, signedBy, err := keys.Sign([]byte(text))
	if err != nil {
		return signedFeed{}, err
	}
	if signedBy != keyID {
		return sign(f, keys) // the keys were rotated in between
	}
	return signedFeed{feed: f, JWS: text + "." + signature,
		Key: jwk{KeyID: keyID, Type: "OKP", Curve: "Ed25519", Use: "sig", X: enc(public)}}, nil
}
