package egress

import (
	"sync"
	"sync/atomic"

	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/relay"
)

// client is an instance of an app: whose policy it is.
type client struct {
	app      relay.AppID
	instance string
}

// Cut ends the calls in flight that an emergency deny covers now, and closes pooled
// connections that one covers, or that were dialed under a policy that is not in force
// any more. It returns how many calls it ended. Call it after every change of
// policies, once Config.Policy gives the new ones.
//
// It looks at everything and waits for nothing: ten thousand calls take some tens of
// milliseconds.
func (e *Egress) Cut() int {
	inForce := map[client]*policy.Compiled{}
	policyOf := func(who client) *policy.Compiled {
		p := inForce[who]
		if p == nil {
			p = e.cfg.Policy(who.app, who.instance)
			inForce[who] = p
		}
		return p
	}
	n := e.cutCalls(policyOf)
	e.pools.cut(policyOf)
	return n
}

// cutters is how many end calls at the same time: it is mostly the kernel's work.
const cutters = 4

func (e *Egress) cutCalls(policyOf func(client) *policy.Compiled) int {
	type sentence struct {
		c *call
		r *policy.Refusal
	}
	var found []sentence
	for _, c := range e.inFlight() {
		if r := c.emergency(policyOf(client{c.app, c.instance})); r != nil {
			found = append(found, sentence{c, r})
		}
	}
	var n, next atomic.Int64
	var workers sync.WaitGroup
	for range min(cutters, len(found)) {
		workers.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(found)); i = next.Add(1) - 1 {
				if found[i].c.cut(found[i].r) {
					n.Add(1)
				}
			}
		})
	}
	workers.Wait()
	return int(n.Load())
}
