package storetest

import (
	"slices"
	"time"

	"github.com/posternhq/postern/relay"
)

func leaseTests() []test {
	return slices.Concat(fencingTests(), []test{
		{"extending moves the end of the lease", func(f *fixture) {
			f.create(newEvent("a"), newEvent("b"))
			d := f.claimOne("dlv_a")
			other := f.claimOne("dlv_b")
			f.must(f.store.ExtendLease(f.ctx, d.ID, d.LeaseGen, later(time.Hour)))
			d.LeaseUntil = later(time.Hour)
			wantEqual(f, "extended", f.delivery("a"), d)
			wantEqual(f, "other", f.delivery("b"), other)
		}},
		{"extending a lease that was lost is Conflict", func(f *fixture) {
			f.create(newEvent("a"))
			f.wantCode(f.store.ExtendLease(f.ctx, "dlv_a", 0, later(time.Hour)), relay.Conflict)
			d := f.claimOne("dlv_a")
			f.wantCode(f.store.ExtendLease(f.ctx, d.ID, d.LeaseGen+1, later(time.Hour)), relay.Conflict)
			f.wantCode(f.store.ExtendLease(f.ctx, d.ID, d.LeaseGen-1, later(time.Hour)), relay.Conflict)
			f.wantCode(f.store.ExtendLease(f.ctx, "dlv_none", d.LeaseGen, later(time.Hour)), relay.Conflict)
			wantEqual(f, "delivery", f.delivery("a"), d)
		}},
		{"releasing makes ready whatever the owner holds and nothing else", func(f *fixture) {
			f.create(newEvent("a"), newEvent("b"), newEvent("c"), newEvent("d", state(relay.DeliveryDone)))
			f.claimOne("dlv_a")
			f.claimOne("dlv_b")
			f.claimFor("n2")
			f.wantReleased("n1", 2)
			for _, name := range []string{"a", "b"} {
				d := f.delivery(name)
				if d.State != relay.DeliveryReady || d.LeaseOwner != "" || !d.LeaseUntil.IsZero() || !d.NextAt.Equal(start()) {
					f.Errorf("released: %+v", d)
				}
			}
			if d := f.delivery("c"); d.State != relay.DeliveryLeased || d.LeaseOwner != "n2" {
				f.Errorf("of another owner: %+v", d)
			}
			f.wantReleased("n1", 0)
			f.wantReleased("nobody", 0)
			f.wantClaim(start(), "dlv_a", "dlv_b")
		}},
		{"reclaiming makes ready the leases that ended before now", func(f *fixture) {
			f.create(newEvent("a"), newEvent("b"), newEvent("c"))
			f.claimOne("dlv_a") // for a minute
			b := f.claimOne("dlv_b")
			f.must(f.store.ExtendLease(f.ctx, b.ID, b.LeaseGen, later(time.Hour)))
			f.wantReclaimed(later(time.Minute), 0) // ends now, not before
			f.wantReclaimed(later(time.Minute+time.Microsecond), 1)
			if d := f.delivery("a"); d.State != relay.DeliveryReady || d.LeaseOwner != "" || !d.LeaseUntil.IsZero() {
				f.Errorf("reclaimed: %+v", d)
			}
			wantEqual(f, "states", []relay.DeliveryState{f.delivery("b").State, f.delivery("c").State},
				[]relay.DeliveryState{relay.DeliveryLeased, relay.DeliveryReady})
			f.wantReclaimed(later(2*time.Hour), 1)
		}},
	})
}

// fencingTests are about workers that come back after they lost their lease.
func fencingTests() []test {
	return []test{
		{"a claim after a claim has a higher generation", func(f *fixture) {
			f.create(newEvent("a"))
			first := f.claimOne("dlv_a")
			f.wantReleased("n1", 1)
			if second := f.claimOne("dlv_a"); second.LeaseGen <= first.LeaseGen {
				f.Fatalf("generation %d after %d", second.LeaseGen, first.LeaseGen)
			}
		}},
		{"finishing without a claim is Conflict and changes nothing", func(f *fixture) {
			f.create(newEvent("a"))
			want := f.delivery("a")
			f.wantCode(f.finish(want, relay.DeliveryDone, start()), relay.Conflict)
			wantEqual(f, "delivery", f.delivery("a"), want)
			f.wantAttempts("dlv_a", 0)
		}},
		{"finishing twice is Conflict and records one attempt", func(f *fixture) {
			f.create(newEvent("a"))
			d := f.claimOne("dlv_a")
			f.must(f.finish(d, relay.DeliveryReady, later(time.Hour)))
			f.wantCode(f.finish(d, relay.DeliveryDone, start()), relay.Conflict)
			f.wantAttempts("dlv_a", 1)
			if got := f.delivery("a"); got.State != relay.DeliveryReady {
				f.Fatalf("got %+v", got)
			}
		}},
		{"finishing what was released is Conflict", func(f *fixture) {
			f.create(newEvent("a"))
			d := f.claimOne("dlv_a")
			f.wantReleased("n1", 1)
			f.wantCode(f.finish(d, relay.DeliveryDone, start()), relay.Conflict)
			f.wantCode(f.store.ExtendLease(f.ctx, d.ID, d.LeaseGen, later(time.Hour)), relay.Conflict)
		}},
		{"finishing what somebody else claimed since is Conflict, and theirs still counts", func(f *fixture) {
			f.create(newEvent("a"))
			old := f.claimOne("dlv_a")
			f.wantReclaimed(later(time.Hour), 1)
			now := f.claimFor("n2")
			f.wantCode(f.finish(old, relay.DeliveryDead, start()), relay.Conflict)
			f.wantCode(f.store.ExtendLease(f.ctx, old.ID, old.LeaseGen, later(9*time.Hour)), relay.Conflict)
			wantEqual(f, "delivery", f.delivery("a"), now)
			f.must(f.finish(now, relay.DeliveryDone, start()))
			f.wantAttempts("dlv_a", 1)
		}},
		{"finishing an unknown delivery is Conflict", func(f *fixture) {
			f.wantCode(f.finish(relay.Delivery{ID: "dlv_none"}, relay.DeliveryDone, start()), relay.Conflict)
		}},
	}
}

// claimFor claims the next delivery for another node.
func (f *fixture) claimFor(owner string) relay.Delivery {
	f.Helper()
	leases, err := f.store.ClaimDeliveries(f.ctx, relay.Claim{
		Owner: owner, App: app, Endpoint: endpoint, Limit: 1, Now: start(), Until: later(time.Minute),
	})
	f.must(err)
	if len(leases) != 1 {
		f.Fatalf("%s claimed %v", owner, ids(leases))
	}
	return leases[0].Delivery
}

func (f *fixture) wantReleased(owner string, want int) {
	f.Helper()
	n, err := f.store.ReleaseLeases(f.ctx, owner)
	f.must(err)
	if n != want {
		f.Fatalf("released %d of %s, want %d", n, owner, want)
	}
}

func (f *fixture) wantReclaimed(now time.Time, want int) {
	f.Helper()
	n, err := f.store.ReclaimExpired(f.ctx, now)
	f.must(err)
	if n != want {
		f.Fatalf("reclaimed %d at %v, want %d", n, now, want)
	}
}

func (f *fixture) wantAttempts(id relay.DeliveryID, want int) {
	f.Helper()
	got, err := f.store.Attempts(f.ctx, id)
	f.must(err)
	if len(got) != want {
		f.Fatalf("%d attempts of %s, want %d: %+v", len(got), id, want, got)
	}
}
