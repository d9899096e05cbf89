package node

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/posternhq/postern/relay"
	"github.com/posternhq/postern/relay/provider"
)

// maxOthers bounds how many other endpoints are asked about one refused webhook.
const maxOthers = 10

// explain looks for the likely cause of a refusal: in the webhook itself, and in
// the app's other endpoints, whose address or secret may have been confused with
// this one's (test and live, staging and production).
func (n *Node) explain(rules *provider.Rules) func(relay.Endpoint, relay.Incoming) string {
	return func(ep relay.Endpoint, in relay.Incoming) string {
		causes := []string{rules.Explain(ep, in)}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		app, _ := n.directory.manifest.Load().App(ep.App)
		asked := 0
		for _, name := range slices.Sorted(maps.Keys(app.Endpoints)) {
			other := app.Endpoints[name]
			if name == ep.Name || other.Provider != ep.Provider || !provider.Facts(other.Provider).NeedsSecret {
				continue
			}
			if asked++; asked > maxOthers {
				break
			}
			trial := ep
			trial.Secrets = other.Secrets
			if rules.Verify(ctx, trial, in).Verified {
				causes = append(causes, fmt.Sprintf("A secret of the app's endpoint %s would verify it.", name))
			}
		}
		return strings.TrimSpace(strings.Join(causes, " "))
	}
}
