package policies

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/relay"
)

// order makes one that has to be good.
func (b *bench) order(req api.OrderRequest) api.Order {
	b.t.Helper()
	if req.Reason == "" {
		req.Reason = "because"
	}
	if req.ForMS == 0 {
		req.ForMS = time.Hour.Milliseconds()
	}
	o, err := b.Order(b.t.Context(), "tok_1 admin", req)
	if err != nil {
		b.t.Fatalf("Order %+v: %v", req, err)
	}
	return o
}

func TestAnEmergencyDenyBeatsTheManifestAndEndsByItself(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil)
		b.run()
		b.apply(text("", "https://api.a.test", "https://api.b.test"))
		a := b.agent("shop", "web.1").run(0)
		<-a.got
		o := b.order(api.OrderRequest{Kind: "deny", What: "API.a.test.", Reason: "leak"})
		if !strings.HasPrefix(o.ID, "den_") || o.What != "api.a.test" || !o.Live || o.By != "tok_1 admin" {
			t.Errorf("order: %+v", o)
		}
		b.wantVerdict("https://api.a.test", "deny")
		b.wantVerdict("https://api.b.test", "allow")
		if got := <-a.got; len(got.Emergency) != 1 || got.Emergency[0].Reason != "leak" || got.Emergency[0].Where != "emergency "+o.ID {
			t.Errorf("the agent got %+v", got.Emergency)
		}
		time.Sleep(time.Hour)
		b.wantVerdict("https://api.a.test", "allow") // to the moment, whatever Run does
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := <-a.got; len(got.Emergency) != 0 {
			t.Errorf("when it is over, the agent got %+v", got.Emergency)
		}
		list, err := b.Orders(t.Context(), false)
		if err != nil || len(list.Orders) != 0 {
			t.Errorf("in force: %+v, %v", list, err)
		}
		list, err = b.Orders(t.Context(), true)
		if err != nil || len(list.Orders) != 1 || list.Orders[0].Live {
			t.Errorf("all: %+v, %v", list, err)
		}
		if want := "egress.deny by tok_1 admin, egress.expire by relay"; !strings.HasSuffix(b.store.actions(), want) {
			t.Errorf("audit: %s", b.store.actions())
		}
	})
}

func TestWhatADenyRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct{ what, app, refused, passes, written string }{
		{"api.a.test", "", "tcp://api.a.test:5432", "https://x.api.a.test", "api.a.test"},
		{"*.a.test", "", "https://x.y.a.test", "https://a.test", "*.a.test"},
		{"api.a.test:443", "", "https://api.a.test", "https://api.a.test:8443", "api.a.test:443"},
		{"1.2.3.0/24", "", "https://1.2.3.4", "https://1.2.4.4", "1.2.3.0/24"},
		{"1.2.3.99/24", "", "https://1.2.3.4", "https://1.2.4.4", "1.2.3.0/24"},
		{"::ffff:1.2.3.0/120", "", "https://1.2.3.4", "https://1.2.4.4", "1.2.3.0/24"},
		{"1.2.3.4", "", "https://1.2.3.4", "https://1.2.3.5", "1.2.3.4"},
		{"2606:4700::1", "", "https://[2606:4700::1]", "https://[2606:4700::2]", "2606:4700::1"},
		{"[2606:4700::1]:443", "", "https://[2606:4700::1]", "https://[2606:4700::1]:8443", "[2606:4700::1]:443"},
		{"app:shop", "", "https://api.a.test", "", "app:shop"},
		{"app:shop", "shop", "https://api.a.test", "", "app:shop"},
		{"api.a.test", "shop", "https://api.a.test", "https://b.test", "api.a.test"},
	}
	for _, tt := range tests {
		t.Run(tt.what, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, nil)
			b.apply("version: 1\napps:\n  shop: {egress: {mode: open}}\n  blog: {egress: {mode: open}}\n")
			b.wantVerdict(tt.refused, "allow")
			if o := b.order(api.OrderRequest{Kind: "deny", What: tt.what, App: tt.app}); o.What != tt.written {
				t.Errorf("written %q, want %q", o.What, tt.written)
			}
			b.wantVerdict(tt.refused, "deny")
			if tt.passes != "" {
				b.wantVerdict(tt.passes, "allow")
			}
			want := "deny"
			if tt.app != "" || strings.HasPrefix(tt.what, "app:") {
				want = "allow"
			}
			if got := b.verdictOf("blog", "web.1", tt.refused); got != want {
				t.Errorf("of another app: %s, want %s", got, want)
			}
		})
	}
}

func TestOrdersThatAreRefused(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	good := api.OrderRequest{Kind: "allow", App: "shop", What: "https://api.a.test", ForMS: 1000, Reason: "r"}
	if _, err := b.Order(t.Context(), "tok_1", good); err != nil {
		t.Fatalf("the good one: %v", err)
	}
	for name, edit := range map[string]func(*api.OrderRequest){
		"an unknown kind":        func(r *api.OrderRequest) { r.Kind = "cut" },
		"no reason":              func(r *api.OrderRequest) { r.Reason = " " },
		"a reason in two lines":  func(r *api.OrderRequest) { r.Reason = "a\nb" },
		"a long reason":          func(r *api.OrderRequest) { r.Reason = strings.Repeat("x", 501) },
		"a long owner":           func(r *api.OrderRequest) { r.Owner = strings.Repeat("x", 65) },
		"no time":                func(r *api.OrderRequest) { r.ForMS = 0 },
		"a time that overflows":  func(r *api.OrderRequest) { r.ForMS = 1 << 62 },
		"no app":                 func(r *api.OrderRequest) { r.App = "" },
		"an app that is none":    func(r *api.OrderRequest) { r.App = "Shop!" },
		"nothing":                func(r *api.OrderRequest) { r.What = "" },
		"a path":                 func(r *api.OrderRequest) { r.What = "https://api.a.test/v1" },
		"a user":                 func(r *api.OrderRequest) { r.What = "https://u:hunter2@api.a.test" },
		"a scheme that is none":  func(r *api.OrderRequest) { r.What = "ftp://api.a.test" },
		"tcp without a port":     func(r *api.OrderRequest) { r.What = "tcp://api.a.test" },
		"a port that is none":    func(r *api.OrderRequest) { r.What = "tcp://api.a.test:65536" },
		"everybody's names":      func(r *api.OrderRequest) { r.What = "https://*.co.uk" },
		"every host":             func(r *api.OrderRequest) { r.What = "https://*" },
		"a deny of nothing":      func(r *api.OrderRequest) { r.Kind, r.What = "deny", "" },
		"a deny of a URL":        func(r *api.OrderRequest) { r.Kind, r.What = "deny", "https://hunter2@api.a.test" },
		"a deny of no app":       func(r *api.OrderRequest) { r.Kind, r.What = "deny", "app:" },
		"a deny of two apps":     func(r *api.OrderRequest) { r.Kind, r.What = "deny", "app:blog" },
		"a deny of an odd range": func(r *api.OrderRequest) { r.Kind, r.What = "deny", "1.2.3.4/33" },
		"a deny with a zone":     func(r *api.OrderRequest) { r.Kind, r.What = "deny", "fe80::1%eth0" },
	} {
		req := good
		edit(&req)
		_, err := b.Order(t.Context(), "tok_1", req)
		if relay.CodeOf(err) != relay.Invalid {
			t.Errorf("%s: got %v, want invalid", name, err)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: a password is in the error: %v", name, err)
		}
	}
	if len(b.store.orders) != 1 {
		t.Errorf("%d orders are stored, want 1", len(b.store.orders))
	}
}

// The first cut is for the calls under way, the second for those that were decided
// before the deny and began after the first.
func TestADenyCutsAtOnceAndWhenAllAgentsHaveIt(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		agent func(*bench)
		wait  time.Duration
	}{
		"no agent":                   {func(b *bench) {}, 0},
		"one that takes its time":    {func(b *bench) { <-b.agent("shop", "web.1").run(200 * time.Millisecond).got }, 200 * time.Millisecond},
		"one that never answers":     {func(b *bench) { b.agent("shop", "web.1") }, settleTime},
		"one that has nothing to do": {func(b *bench) { <-b.agent("blog", "web.1").run(200 * time.Millisecond).got }, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, nil)
				b.apply(text("", "https://api.a.test"))
				tt.agent(b)
				synctest.Wait()
				start := time.Now()
				var at []time.Duration
				b.cfg.Cut = func() int {
					if b.verdictOf("shop", "web.1", "https://api.a.test") != "deny" {
						t.Error("cut before the deny is in force")
					}
					at = append(at, time.Since(start))
					return len(at)
				}
				o := b.order(api.OrderRequest{Kind: "deny", What: "api.a.test", App: "shop"})
				if len(at) != 2 || at[0] != 0 || at[1] != tt.wait || o.Cut != 3 {
					t.Errorf("cut at %v, %d calls; want at 0 and %v, 3 calls", at, o.Cut, tt.wait)
				}
			})
		})
	}
}

func TestOrdersEndBeforeTheirTime(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.apply(text("", "https://api.a.test"))
	o := b.order(api.OrderRequest{Kind: "deny", What: "api.a.test"})
	b.wantVerdict("https://api.a.test", "deny")
	ended, err := b.EndOrder(t.Context(), "tok_2", o.ID)
	if err != nil || ended.Live || ended.EndedAt.IsZero() {
		t.Errorf("EndOrder: %+v, %v", ended, err)
	}
	b.wantVerdict("https://api.a.test", "allow")
	if _, err := b.EndOrder(t.Context(), "tok_2", o.ID); relay.CodeOf(err) != relay.Conflict {
		t.Errorf("again: got %v, want conflict", err)
	}
	if _, err := b.EndOrder(t.Context(), "tok_2", "den_none"); relay.CodeOf(err) != relay.NotFound {
		t.Errorf("none: got %v, want not_found", err)
	}
	if !strings.HasSuffix(b.store.actions(), "egress.end by tok_2") {
		t.Errorf("audit: %s", b.store.actions())
	}
}

func TestAnExceptionIsOneMoreLineOfOneApp(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.apply("version: 1\napps:\n  shop: {egress: {allow: ['https://api.a.test']}}\n  blog: {egress: {allow: []}}\n")
	blog := b.Of("blog", "web.1")
	o := b.order(api.OrderRequest{Kind: "allow", App: "shop", What: "*.B.test"})
	if o.What != "https://*.b.test" || o.Owner != "tok_1 admin" || !strings.HasPrefix(o.ID, "exc_") || o.Cut != 0 || b.cuts.Load() != 0 {
		t.Errorf("order: %+v", o)
	}
	b.wantVerdict("https://x.b.test", "allow")
	b.wantVerdict("https://b.test", "deny")
	b.wantVerdict("https://api.a.test", "allow")
	if b.Of("blog", "web.1") != blog {
		t.Error("an exception of shop changed the policy of blog")
	}
	if got := b.verdictOf("blog", "web.1", "https://x.b.test"); got != "deny" {
		t.Errorf("of blog: %s", got)
	}
	// Of an app of which the manifest says nothing, too; nothing else is let through.
	b.order(api.OrderRequest{Kind: "allow", App: "other", What: "tcp://db.test:5432"})
	for call, want := range map[string]string{"tcp://db.test:5432": "allow", "https://db.test": "deny"} {
		if got := b.verdictOf("other", "web.1", call); got != want {
			t.Errorf("other: %s: %s, want %s", call, got, want)
		}
	}
	// A deny beats it, whoever came first.
	b.order(api.OrderRequest{Kind: "deny", What: "x.b.test"})
	b.wantVerdict("https://x.b.test", "deny")
}

// warnings waits for d and tells what Status, the log and the audit log say by then.
func (b *bench) warnings(d time.Duration) (status []string, warned, expired int) {
	time.Sleep(d)
	synctest.Wait()
	return b.Status("shop").Warnings, strings.Count(b.store.actions(), didWarn), strings.Count(b.store.actions(), didExpire)
}

func TestExceptionsWarnBeforeTheyEnd(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ length, ahead time.Duration }{
		"a tenth of an hour":      {time.Hour, 6 * time.Minute},
		"a day of a long time":    {30 * 24 * time.Hour, 24 * time.Hour},
		"a tenth of half a month": {100 * time.Hour, 10 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, nil)
				b.run()
				o := b.order(api.OrderRequest{Kind: "allow", App: "shop", What: "https://api.a.test", Owner: "ann", ForMS: tt.length.Milliseconds()})
				if w, warned, _ := b.warnings(tt.length - tt.ahead - 2*time.Second); len(w) != 0 || warned != 0 {
					t.Errorf("too early: %q, %d", w, warned)
				}
				w, warned, expired := b.warnings(4 * time.Second)
				if len(w) != 1 || warned != 1 || expired != 0 || !strings.Contains(w[0], o.ID+" for https://api.a.test ends at ") || !strings.Contains(w[0], "owner ann") {
					t.Errorf("before the end: %q, %d, %d", w, warned, expired)
				}
				if log := b.log.String(); strings.Count(log, "level=WARN") != 1 || !strings.Contains(log, "owner=ann") {
					t.Errorf("log:\n%s", log)
				}
				b.wantVerdict("https://api.a.test", "allow")

				// A restart says it in its status and not in the audit log again.
				again := newBench(t, b.store)
				stop := again.run()
				if w, warned, _ := again.warnings(time.Second); len(w) != 1 || warned != 1 {
					t.Errorf("after a restart: %q, %d", w, warned)
				}
				stop()
				w, warned, expired = b.warnings(tt.ahead)
				if len(w) != 1 || warned != 1 || expired != 1 || !strings.Contains(w[0], "has ended at") {
					t.Errorf("after the end: %q, %d, %d", w, warned, expired)
				}
				b.wantVerdict("https://api.a.test", "deny")
				again = newBench(t, b.store)
				again.run()
				if w, warned, expired := again.warnings(2 * time.Second); len(w) != 1 || warned != 1 || expired != 1 {
					t.Errorf("after the end and a restart: %q, %d, %d", w, warned, expired)
				}
				if w, _, _ := b.warnings(24 * time.Hour); len(w) != 0 {
					t.Errorf("a day later: %q", w)
				}
			})
		})
	}
}

func TestLinesWithAnEndWarnToo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, nil)
		b.run()
		// The clock of a bubble begins on 2000-01-01.
		line := "{host: api.a.test, expires: 2000-01-20T00:00:00Z, owner: ann}"
		b.apply(text("", line))
		time.Sleep(17 * 24 * time.Hour)
		// That it is applied anew gives it no more time.
		b.apply("# edited\n" + text("", "https://api.b.test", line))
		if w, warned, _ := b.warnings(24*time.Hour - 2*time.Second); len(w) != 0 || warned != 0 {
			t.Errorf("too early: %q, %d", w, warned)
		}
		w, warned, _ := b.warnings(4 * time.Second)
		if len(w) != 1 || warned != 1 || !strings.Contains(w[0], "apps.shop.egress.allow[1]") {
			t.Errorf("a day before: %q, %d", w, warned)
		}
		w, warned, expired := b.warnings(24 * time.Hour)
		if len(w) != 1 || warned != 1 || expired != 1 || !strings.Contains(w[0], "has ended") {
			t.Errorf("after: %q, %d, %d", w, warned, expired)
		}
		b.wantVerdict("https://api.a.test", "deny")
	})
}

func TestTooManyOrders(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.take(t.Context())
	b.change(func(next *state) { next.orders = make([]relay.Order, maxOrders) })
	b.give()
	_, err := b.Order(t.Context(), "tok_1", api.OrderRequest{Kind: "deny", What: "api.a.test", ForMS: 1000, Reason: "r"})
	if relay.CodeOf(err) != relay.Conflict {
		t.Errorf("got %v, want conflict", err)
	}
}
