package policies

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/relay"
)

func addrs(texts ...string) []netip.Addr {
	var all []netip.Addr
	for _, s := range texts {
		all = append(all, netip.MustParseAddr(s))
	}
	return all
}

func instances(n int) []relay.Instance {
	var all []relay.Instance
	for i := range n {
		all = append(all, relay.Instance{App: "shop", Name: fmt.Sprintf("web.%d", i)})
	}
	return all
}

// split tells the instances that have the canary from the others.
func (b *bench) split(n int) (canary, stable []string) {
	for _, i := range instances(n) {
		if b.Of("shop", i.Name).Policy().Version == b.Status("").Canary {
			canary = append(canary, i.Name)
		} else {
			stable = append(stable, i.Name)
		}
	}
	return canary, stable
}

// calls observes n calls of an instance, of which some are denied.
func (b *bench) calls(instance string, n, denied int) {
	version := b.Of("shop", instance).Policy().Version
	for i := range n {
		b.Observe("shop", version, i < denied)
	}
}

// withCanary has version 1 running and version 2 as a canary.
func withCanary(t *testing.T) (b *bench, stop func()) {
	b = newBench(t, nil)
	stop = b.run()
	b.apply(text("", "https://api.a.test"))
	b.agents = instances(20)
	v := b.apply(text(rollout("20%", "10m", "2x"), "https://api.b.test"))
	if v.Number != 2 || v.Status != "canary" {
		t.Fatalf("applied: %+v", v)
	}
	return b, stop
}

func TestACanaryIsForAShareOfTheInstances(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.apply(text("", "https://api.a.test"))
	b.apply(text(rollout("20%", "10m", "2x"), "https://api.b.test"))
	canary, stable := b.split(1000)
	if len(canary) < 150 || len(canary) > 250 {
		t.Errorf("%d of 1000 instances have the canary, want about 200", len(canary))
	}
	if got := b.verdictOf("shop", canary[0], "https://api.b.test"); got != "allow" {
		t.Errorf("canary: %s", got)
	}
	if got := b.verdictOf("shop", stable[0], "https://api.b.test"); got != "deny" {
		t.Errorf("stable: %s", got)
	}
	if len(b.applied) != 1 {
		t.Errorf("Apply was called %d times; what is not about calls waits for the promotion", len(b.applied))
	}
	// The same ones after a restart.
	again, _ := newBench(t, b.store).split(1000)
	if fmt.Sprint(again) != fmt.Sprint(canary) {
		t.Error("other instances have the canary after a restart")
	}
}

func TestACanaryReachesAtLeastOneInstance(t *testing.T) {
	t.Parallel()
	for n := range 5 {
		b := newBench(t, nil)
		b.apply(text("", "https://api.a.test"))
		b.agents = instances(n + 1)
		b.apply(text(rollout("0.1%", "10m", "2x"), "https://api.b.test"))
		if canary, _ := b.split(n + 1); len(canary) != 1 {
			t.Errorf("of %d instances %d have the canary, want 1", n+1, len(canary))
		}
	}
}

func TestACanaryIsPromotedWhenItsTimeIsOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := withCanary(t)
		time.Sleep(10*time.Minute - time.Second)
		synctest.Wait()
		b.wantStatuses("1 running, 2 canary")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		b.wantStatuses("1 replaced, 2 running")
		if canary, _ := b.split(20); len(canary) != 0 || b.Status("").Version != 2 {
			t.Errorf("canaries %v, version %d", canary, b.Status("").Version)
		}
		if len(b.applied) != 2 {
			t.Errorf("Apply was called %d times, want 2", len(b.applied))
		}
		if want := "manifest.canary by tok_1 admin, manifest.promote by relay"; !strings.HasSuffix(b.store.actions(), want) {
			t.Errorf("audit: %s", b.store.actions())
		}
	})
}

func TestACanaryGoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, stop := withCanary(t)
		time.Sleep(6 * time.Minute)
		stop()
		again := newBench(t, b.store)
		again.run()
		again.wantStatuses("1 running, 2 canary")
		time.Sleep(4*time.Minute + 2*time.Second)
		synctest.Wait()
		again.wantStatuses("1 replaced, 2 running")
	})
}

func TestWhatTakesACanaryBack(t *testing.T) {
	t.Parallel()
	type fare struct{ calls, denied int }
	tests := []struct {
		name           string
		before         fare
		canary, stable fare
		back           bool
	}{
		{"all is refused where nothing was", fare{100, 0}, fare{20, 20}, fare{100, 0}, true},
		{"four of twenty are a step from nothing", fare{100, 0}, fare{20, 4}, fare{100, 0}, true},
		{"one refusal is none", fare{100, 0}, fare{20, 1}, fare{100, 0}, false},
		{"three of twenty are none", fare{100, 0}, fare{20, 3}, fare{100, 0}, false},
		{"too few calls say nothing", fare{100, 0}, fare{19, 19}, fare{100, 0}, false},
		{"the others' is the same", fare{100, 0}, fare{50, 25}, fare{50, 25}, false},
		{"the others' is little less", fare{100, 0}, fare{50, 25}, fare{100, 26}, false},
		{"the others' is less than half", fare{100, 0}, fare{50, 25}, fare{100, 24}, true},
		{"it was so before", fare{100, 50}, fare{50, 26}, fare{100, 0}, false},
		{"it was less than half before, and of the others", fare{100, 20}, fare{50, 25}, fare{100, 20}, true},
		{"only what was before is known", fare{100, 10}, fare{50, 25}, fare{0, 0}, true},
		{"only the others are known", fare{0, 0}, fare{50, 25}, fare{30, 3}, true},
		{"nothing is known to compare with", fare{0, 0}, fare{50, 50}, fare{19, 0}, false},
		{"a busy app, one in a hundred", fare{10000, 0}, fare{1000, 20}, fare{4000, 0}, false},
		{"a busy app, more than two in a hundred", fare{10000, 0}, fare{1000, 21}, fare{4000, 0}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, nil)
				b.run()
				b.apply(text("", "https://api.a.test"))
				b.calls("web.1", tt.before.calls, tt.before.denied)
				b.agents = instances(20)
				b.apply(text(rollout("20%", "10m", "2x"), "https://api.b.test"))
				canary, stable := b.split(20)
				b.calls(stable[0], tt.stable.calls, tt.stable.denied)
				b.calls(canary[0], tt.canary.calls, tt.canary.denied)
				time.Sleep(2 * time.Second)
				synctest.Wait()
				want := "1 running, 2 canary"
				if tt.back {
					want = "1 running, 2 rolled_back"
				}
				b.wantStatuses(want)
				if !tt.back {
					return
				}
				if note := b.store.versions[1].Note; !strings.Contains(note, "were refused") {
					t.Errorf("note: %q", note)
				}
				if !strings.HasSuffix(b.store.actions(), "manifest.rollback by relay") {
					t.Errorf("audit: %s", b.store.actions())
				}
				if canary, _ := b.split(20); len(canary) != 0 {
					t.Errorf("still have it: %v", canary)
				}
				if len(b.applied) != 1 {
					t.Errorf("Apply was called %d times, want 1", len(b.applied))
				}
			})
		})
	}
}

// Ten small apps, each with too few calls of its own.
func TestSmallAppsAreJudgedTogether(t *testing.T) {
	t.Parallel()
	tr := &trial{factor: 2, before: map[relay.AppID]count{}}
	for i := range 10 {
		app := relay.AppID(fmt.Sprintf("app%d", i))
		tr.before[app] = count{calls: 50}
		c := tr.apps.put(app, func() *cohorts { return &cohorts{} })
		for n := range 5 {
			c.canary.add(n < 2)
		}
	}
	if why := tr.step(); !strings.Contains(why, "20 of 50 calls were refused (40 %)") {
		t.Errorf("got %q", why)
	}
}

func TestRefusalsOfLateFadeAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil)
		b.run()
		b.apply(text("", "https://api.a.test"))
		b.calls("web.1", 100, 100)
		time.Sleep(2*slot + time.Second)
		synctest.Wait()
		if got := b.history.all()["shop"].count(); got != (count{}) {
			t.Errorf("after two slots: %+v", got)
		}
	})
}

func TestACanaryThatTheStoreCannotEndIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := withCanary(t)
		b.store.setDown(errors.New("disk full"))
		time.Sleep(11 * time.Minute)
		b.store.setDown(nil)
		b.wantStatuses("1 running, 2 canary")
		time.Sleep(patience + 2*time.Second)
		synctest.Wait()
		b.wantStatuses("1 replaced, 2 running")
	})
}

func TestCanariesByHand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, _ := withCanary(t)
		canaryText := text(rollout("20%", "10m", "2x"), "https://api.b.test")
		if v := b.apply(canaryText); v.Number != 2 || v.Status != "canary" {
			t.Errorf("the canary's text again: %+v", v)
		}
		if v, err := b.Promote(t.Context(), "tok_1"); err != nil || v.Number != 2 || v.Status != "running" {
			t.Errorf("Promote: %+v, %v", v, err)
		}
		b.wantVerdict("https://api.b.test", "allow")
		if _, err := b.Promote(t.Context(), "tok_1"); relay.CodeOf(err) != relay.Conflict {
			t.Errorf("Promote without a canary: got %v, want conflict", err)
		}

		b.apply(text(rollout("20%", "10m", "2x"), "https://api.c.test"))
		if v, err := b.Rollback(t.Context(), "tok_1", api.RollbackRequest{Note: "no"}); err != nil || v.Number != 2 || v.Status != "running" {
			t.Errorf("Rollback of a canary: %+v, %v", v, err)
		}
		b.wantStatuses("1 replaced, 2 running, 3 rolled_back")

		// Another text while there is a canary ends that.
		b.apply(text(rollout("20%", "10m", "2x"), "https://api.d.test"))
		v := b.apply(text(rollout("20%", "10m", "2x"), "https://api.e.test"))
		if v.Status != "canary" || len(v.Warnings) != 1 || !strings.Contains(v.Warnings[0], "version 4") {
			t.Errorf("over a canary: %+v", v)
		}
		b.wantStatuses("1 replaced, 2 running, 3 rolled_back, 4 replaced, 5 canary")

		// NoCanary makes of a canary the running version.
		done, err := b.Apply(t.Context(), "tok_1", api.ManifestRequest{Source: text(rollout("20%", "10m", "2x"), "https://api.e.test"), NoCanary: true})
		if err != nil || done.Number != 5 || done.Status != "running" {
			t.Errorf("NoCanary: %+v, %v", done, err)
		}
		// A rollback to a number ends a canary, and is at once for all.
		b.apply(text(rollout("20%", "10m", "2x"), "https://api.f.test"))
		back, err := b.Rollback(t.Context(), "tok_1", api.RollbackRequest{To: 1})
		if err != nil || back.Number != 7 || back.Status != "running" {
			t.Errorf("Rollback to 1: %+v, %v", back, err)
		}
		b.wantVerdict("https://api.a.test", "allow")
		b.wantStatuses("1 replaced, 2 replaced, 3 rolled_back, 4 replaced, 5 rolled_back, 6 rolled_back, 7 running")
	})
}

func TestATextThatChangesNoCallsNeedsNoCanary(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.apply(text(rollout("20%", "10m", "2x"), "https://api.a.test"))
	v := b.apply("# A comment moves every line.\n" + text(rollout("50%", "20m", "3x"), "https://api.a.test"))
	if v.Status != "running" || len(b.applied) != 2 {
		t.Errorf("got %s, applied %d", v.Status, len(b.applied))
	}
	for what, other := range map[string]string{
		"a line":      text(rollout("20%", "10m", "2x"), "https://api.b.test"),
		"a range":     text("egress:\n  deny: {ranges: [198.51.100.0/24]}\n  rollout: {canary: 20%}\n", "https://api.a.test"),
		"another app": text("  blog: {egress: {mode: open}}\n"+rollout("20%", "10m", "2x"), "https://api.a.test"),
	} {
		if v := b.apply(other); v.Status != "canary" {
			t.Errorf("%s: got %s", what, v.Status)
		}
	}
}

// An agent takes no policy whose serial is not above its own. So whatever ends a canary
// gives every instance that had it a later one.
func TestTheEndOfACanaryIsNewsForItsInstances(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(b *bench){
		"rollback": func(b *bench) {
			if _, err := b.Rollback(t.Context(), "tok_1 admin", api.RollbackRequest{}); err != nil {
				t.Fatal(err)
			}
		},
		"promotion": func(b *bench) {
			if _, err := b.Promote(t.Context(), "tok_1 admin"); err != nil {
				t.Fatal(err)
			}
		},
	} {
		b := newBench(t, nil)
		b.apply(text("", "https://api.a.test"))
		b.apply(text(rollout("20%", "10m", "2x"), "https://api.b.test"))
		before := map[string]int64{}
		for n := range 100 {
			instance := fmt.Sprintf("web.%d", n)
			before[instance] = b.Of("shop", instance).Policy().Serial
		}
		end(b)
		for instance, serial := range before {
			if now := b.Of("shop", instance).Policy(); now.Serial <= serial {
				t.Errorf("%s: %s has serial %d after %d", name, instance, now.Serial, serial)
				break
			}
		}
	}
}
