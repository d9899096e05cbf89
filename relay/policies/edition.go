package policies

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/relay"
)

// edition is a version of the manifest, read. It is never changed, its version's
// Status and EndedAt are those of when it was made: where a state has it says what it
// is now. The zero value is the relay without a manifest.
type edition struct {
	version  relay.ManifestVersion // with Source
	manifest *relay.Manifest       // nil: nothing is declared
	terms    []term                // lines that end
	// broken says why version cannot be read any more; manifest is nil then.
	broken error
}

func newEdition(v relay.ManifestVersion, m *relay.Manifest, before *edition) *edition {
	e := &edition{version: v, manifest: m}
	e.terms = e.findTerms(before)
	return e
}

// room is what is left in a policy's message for what is added to it after its
// manifest was applied: maxOrders orders of at most maxReason and their patterns.
const room = 2 << 20

// fits refuses a manifest of which an agent could not be told.
func fits(m *relay.Manifest) error {
	for app := range m.Apps {
		body, err := json.Marshal(m.PolicyOf(app))
		if err != nil {
			return fmt.Errorf("write policy of app %s: %w", app, err)
		}
		if len(body) > protocol.MaxPolicy-room {
			return tooLarge(app, len(body))
		}
	}
	return nil
}

func tooLarge(app relay.AppID, size int) error {
	return relay.Errorf(relay.TooLarge, "what the manifest says about calls of app %s takes %d bytes, at most %d can be sent to its agents",
		app, size, protocol.MaxPolicy-room)
}

// sameEgress reports whether a and b say the same of every app's calls, wherever in
// their texts they say it.
func sameEgress(a, b *relay.Manifest) bool {
	if a == nil || b == nil {
		return a == b
	}
	apps := map[relay.AppID]bool{}
	for app := range maps.Keys(a.Apps) {
		apps[app] = true
	}
	for app := range maps.Keys(b.Apps) {
		apps[app] = true
	}
	for app := range apps {
		if !reflect.DeepEqual(unplaced(a.PolicyOf(app)), unplaced(b.PolicyOf(app))) {
			return false
		}
	}
	return true
}

// unplaced is full without the numbers of lines.
func unplaced(full policy.Policy) policy.Policy {
	full.Allow = append([]policy.Rule(nil), full.Allow...)
	for i := range full.Allow {
		full.Allow[i].Line = 0
	}
	full.Deny = append([]policy.Deny(nil), full.Deny...)
	for i := range full.Deny {
		full.Deny[i].Line = 0
	}
	full.Holes = append([]policy.Hole(nil), full.Holes...)
	for i := range full.Holes {
		full.Holes[i].Line = 0
	}
	return full
}

// rollout is how e comes into force.
func (e *edition) rollout() relay.Rollout {
	if e.manifest == nil {
		return relay.Rollout{}
	}
	r := e.manifest.Egress.Rollout
	if r.For <= 0 {
		r.For = 10 * time.Minute
	}
	return r
}
