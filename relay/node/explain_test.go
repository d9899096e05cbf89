package node

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/relay"
	"github.com/posternhq/postern/relay/provider"
)

func TestARefusalNamesTheEndpointWhoseSecretFits(t *testing.T) {
	t.Parallel()
	endpoint := func(name, kind string, secret relay.Secret) relay.Endpoint {
		return relay.Endpoint{App: "shop", Name: name, Provider: kind, Secrets: []relay.Secret{secret}}
	}
	live, test := endpoint("live", "github", "a"), endpoint("test", "github", "b")
	n := &Node{directory: newDirectory(nil, slog.New(slog.DiscardHandler))}
	n.directory.manifest.Store(&relay.Manifest{Apps: map[relay.AppID]relay.App{"shop": {
		ID:        "shop",
		Endpoints: map[string]relay.Endpoint{"live": live, "test": test, "other": endpoint("other", "stripe", "b")},
	}}})
	explain := n.explain(provider.New(provider.Config{}))
	signed := func(secret string) relay.Incoming {
		mac := hmac.New(sha256.New, []byte(secret))
		mac.Write([]byte("{}"))
		return relay.Incoming{
			Method: "POST", Body: []byte("{}"), ReceivedAt: time.Now(),
			Header: http.Header{"X-Hub-Signature-256": {"sha256=" + hex.EncodeToString(mac.Sum(nil))}},
		}
	}
	if got := explain(live, signed("b")); !strings.Contains(got, "endpoint test would verify it") || strings.Contains(got, "other") {
		t.Errorf("explained as %q", got)
	}
	if got := explain(live, signed("c")); strings.Contains(got, "would verify") {
		t.Errorf("explained as %q", got)
	}
}
