package policies

import (
	"encoding/binary"
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/relay"
)

// state is what is in force between two changes. Nothing of it changes but what its
// tables make when they are asked.
type state struct {
	serial int64
	since  time.Time // of the change that made it

	running *edition // never nil; number 0 when there is no manifest
	canary  *edition // nil: none
	trial   *trial   // of the canary
	share   uint64   // instances with a hash up to it have the canary

	orders []relay.Order // in force, oldest first
	past   []relay.Order // exceptions that ended by themselves a short time ago
	own    []netip.Addr
	terms  []term // see findTerms

	stable *table // of running
	tried  *table // of canary, nil without one

	over chan struct{} // closed when the next state is there
}

// entry finds the policy of one instance.
func (s *state) entry(app relay.AppID, instance string) *entry {
	t := s.stable
	if s.tried != nil && cohort(app, instance) <= s.share {
		t = s.tried
	}
	if e, ok := t.entries.all()[app]; ok {
		return e
	}
	return t.entries.put(app, func() *entry { return t.fresh(app) })
}

// change puts into force what f makes of a copy of the state. The caller has the turn.
func (p *Policies) change(f func(next *state)) *state {
	old := p.state.Load()
	next := *old
	next.since = p.cfg.Now()
	next.serial = max(old.serial+1, next.since.UnixMicro())
	next.over = make(chan struct{})
	next.own = p.cfg.Own()
	f(&next)
	next.terms = next.findTerms()
	next.stable, next.tried = newTable(next.running, &next, old), nil
	if next.canary != nil {
		next.tried = newTable(next.canary, &next, old)
	}
	p.changes.Add(1)
	p.state.Store(&next)
	close(old.over)
	return &next
}

// table is what one edition makes of every app while a state lasts.
type table struct {
	edition *edition
	serial  int64
	since   time.Time
	orders  []relay.Order
	own     []netip.Addr
	entries shelf[*entry]
}

// newTable takes over from old the entries of apps that nothing has changed for. When a
// canary begins or ends nothing is taken over: instances change between the two tables,
// and an agent takes no policy whose serial is not above its own.
func newTable(e *edition, s, old *state) *table {
	t := &table{edition: e, serial: s.serial, since: s.since, orders: s.orders, own: s.own}
	entries := map[relay.AppID]*entry{}
	if e.manifest != nil {
		entries = make(map[relay.AppID]*entry, len(e.manifest.Apps))
		for app := range e.manifest.Apps {
			entries[app] = t.fresh(app)
		}
	}
	if before := old.tableOf(e); before != nil && old.canary == s.canary && slices.Equal(before.own, t.own) {
		for app, kept := range before.entries.all() {
			if slices.EqualFunc(kept.orders, concerning(t.orders, app), sameOrder) {
				entries[app] = kept
			}
		}
	}
	t.entries.m.Store(&entries)
	return t
}

// tableOf is the one that s, which may be nil, has of e, or nil.
func (s *state) tableOf(e *edition) *table {
	switch {
	case s == nil:
		return nil
	case s.running == e:
		return s.stable
	case s.canary == e && e != nil:
		return s.tried
	}
	return nil
}

func (t *table) fresh(app relay.AppID) *entry {
	return &entry{app: app, serial: t.serial, since: t.since, edition: t.edition, orders: concerning(t.orders, app), own: t.own}
}

// entry is one app's policy: what it is made of, and what was made of that.
type entry struct {
	app     relay.AppID
	serial  int64
	since   time.Time // of the change that it came with
	edition *edition
	orders  []relay.Order // that concern app
	own     []netip.Addr

	compile  sync.Once
	compiled *policy.Compiled
	write    sync.Once
	written  []byte // length and JSON, as protocol.WriteMessage has it
	err      error  // of writing
}

// policy compiles at the first call.
func (e *entry) policy() *policy.Compiled {
	e.compile.Do(func() {
		full := policyOf(e.edition, e.app, e.orders, e.own)
		full.Serial = e.serial
		e.compiled = policy.Compile(&full)
	})
	return e.compiled
}

// message is the policy as it is sent, made at the first call. Nobody may change it.
func (e *entry) message() ([]byte, error) {
	e.write.Do(func() {
		var body []byte
		if body, e.err = json.Marshal(e.policy().Policy()); e.err != nil {
			return
		}
		if len(body) > protocol.MaxPolicy {
			e.err = tooLarge(e.app, len(body))
			return
		}
		e.written = slices.Concat(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body)
	})
	return e.written, e.err
}

// policyOf adds to what a manifest says of app what holds besides.
func policyOf(e *edition, app relay.AppID, orders []relay.Order, own []netip.Addr) policy.Policy {
	full := e.manifest.PolicyOf(app)
	full.Version, full.Own = e.version.Number, own
	full.Allow = slices.Clip(full.Allow) // the manifest's own is not written to
	for _, o := range orders {
		switch o.Kind {
		case relay.OrderDeny:
			full.Emergency = append(full.Emergency, denyOf(o))
		case relay.OrderAllow:
			// Behind the manifest's lines: an exception lets through what they do
			// not, and takes no limit from what they do. It speaks for an app of which
			// the manifest says nothing, too.
			full.Declared = true
			full.Allow = append(full.Allow, ruleOf(o))
		}
	}
	return full
}

// concerning are the orders that have a part in the policy of app.
func concerning(orders []relay.Order, app relay.AppID) []relay.Order {
	var some []relay.Order
	for _, o := range orders {
		if o.App == "" || o.App == app {
			some = append(some, o)
		}
	}
	return some
}

func sameOrder(a, b relay.Order) bool { return a.ID == b.ID }

// apps are all that a manifest or an order names, sorted.
func (e *edition) apps() []relay.AppID {
	if e.manifest == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(e.manifest.Apps))
}
