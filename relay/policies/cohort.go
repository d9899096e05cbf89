package policies

import (
	"math"

	"github.com/posternhq/postern/relay"
)

// cohort is a number that an instance keeps for good, spread evenly over all numbers:
// the 64-bit FNV-1a of app, a zero byte and instance, mixed once more because names
// that differ only at their end ("web.1", "web.2") lie close together in it.
func cohort(app relay.AppID, instance string) uint64 {
	const offset, prime = 0xcbf29ce484222325, 0x100000001b3
	h := uint64(offset)
	for i := range len(app) {
		h = (h ^ uint64(app[i])) * prime
	}
	h *= prime // the zero byte
	for i := range len(instance) {
		h = (h ^ uint64(instance[i])) * prime
	}
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// shareOf is the greatest cohort that belongs to a share of all instances. It reaches
// at least one of those that are connected: a canary that nobody has shows nothing.
func shareOf(fraction float64, connected []relay.Instance) uint64 {
	if fraction >= 1 {
		return math.MaxUint64
	}
	share := uint64(fraction * math.MaxUint64)
	first := uint64(math.MaxUint64)
	for _, i := range connected {
		first = min(first, cohort(i.App, i.Name))
	}
	if len(connected) == 0 {
		return share
	}
	return max(share, first)
}
