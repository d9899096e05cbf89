package egress

import (
	"context"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/relay"
)

// pipes dials pipes that nobody answers on.
func pipes(context.Context, netip.AddrPort) (net.Conn, error) {
	ours, _ := net.Pipe()
	return ours, nil
}

func limitRig(t *testing.T, app policy.Limits, ofRule policy.Limits) *rig {
	t.Helper()
	db := rule(policy.TCP, "db.test", 5432)
	db.Limits = ofRule
	p := policy.Policy{Limits: app, Allow: []policy.Rule{db, rule(policy.TCP, "other.test", 5432), rule(policy.HTTP, "db.test", 80)}}
	r := newRig(t, p, rigOptions{dial: pipes})
	r.names.put("db.test", "93.184.216.36")
	r.names.put("other.test", "93.184.216.36")
	return r
}

func TestTunnelsOpenAtOnceAreLimited(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]*rig{
		"apps.shop.egress.limits":   limitRig(t, policy.Limits{Tunnels: 2}, policy.Limits{}),
		"apps.shop.egress.allow[0]": limitRig(t, policy.Limits{}, policy.Limits{Tunnels: 2}),
	} {
		first, second := r.open("db.test:5432", protocol.EgressOpen{}), r.open("db.test:5432", protocol.EgressOpen{})
		if refusal(t, first) != nil || refusal(t, second) != nil {
			t.Fatalf("%s: the first two were refused", name)
		}
		got := refusal(t, r.open("db.test:5432", protocol.EgressOpen{}))
		if got == nil || got.Cause != policy.TooMany || got.Status() != 503 || got.RetryAfter < 1 || got.Where != name {
			t.Errorf("%s: the third: %+v", name, got)
		}
		// A new version of the policy does not begin anew.
		other := refusal(t, r.open("other.test:5432", protocol.EgressOpen{}))
		if byApp := strings.HasSuffix(name, "limits"); (other != nil) != byApp {
			t.Errorf("%s: another target: %+v", name, other)
		}
		first.Close()
		r.until("the first tunnel is open", func() bool { return r.e.limits.meterOf("shop", "tcp://db.test:5432") < 2 })
		if got := refusal(t, r.open("db.test:5432", protocol.EgressOpen{})); got != nil {
			t.Errorf("%s: after one has ended: %+v", name, got)
		}
	}
}

// meterOf is how many tunnels a rule has open.
func (l *limiter) meterOf(app relay.AppID, rule string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m := l.meters[meterKey{app, rule}]; m != nil {
		return m.tunnels
	}
	return 0
}

func TestTheRelayHasItsOwnLimitOfTunnels(t *testing.T) {
	t.Parallel()
	r := newRig(t, policy.Policy{Mode: policy.Open}, rigOptions{dial: pipes, cfg: Config{MaxTunnels: 1}})
	r.names.put("db.test", "93.184.216.36")
	if refusal(t, r.open("db.test:5432", protocol.EgressOpen{})) != nil {
		t.Fatal("the first was refused")
	}
	if got := refusal(t, r.open("db.test:5432", protocol.EgressOpen{})); got == nil || got.Cause != policy.TooMany {
		t.Errorf("the second: %+v", got)
	}
}

// TestRatesCountTunnelsAndRequests is about a limiter alone, in a bubble.
func TestRatesCountTunnelsAndRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(1000)
		p := &policy.Policy{Limits: policy.Limits{RPS: 2, Burst: 4, Connects: 1}}
		ask := func(form policy.Form) *policy.Refusal {
			taken, refused := l.admit(context.Background(), "shop", p, policy.Decision{}, form, -1)
			taken.release()
			return refused
		}
		if r := ask(policy.Tunnel); r != nil {
			t.Fatal(r)
		}
		if r := ask(policy.Tunnel); r == nil || r.Cause != policy.RateLimited || r.Status() != 429 || r.RetryAfter != 1 {
			t.Fatalf("the second tunnel in a second: %+v", r)
		}
		for range 3 {
			if r := ask(policy.Request); r != nil {
				t.Fatal(r) // the refused tunnel took nothing
			}
		}
		r := ask(policy.Request)
		if r == nil || r.RetryAfter != 1 {
			t.Fatalf("the fifth call at once: %+v", r)
		}
		time.Sleep(time.Duration(r.RetryAfter) * time.Second)
		if r := ask(policy.Request); r != nil {
			t.Errorf("after Retry-After: %v", r)
		}
	})
}

func TestUploadsOfAnHourAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(1000)
		p := &policy.Policy{Limits: policy.Limits{UploadHour: 1000}}
		admit := func(length int64) (lease, *policy.Refusal) {
			return l.admit(context.Background(), "shop", p, policy.Decision{}, policy.Request, length)
		}
		time.Sleep(30 * time.Second) // within a minute
		taken, _ := admit(-1)
		for range 10 {
			if r := taken.upload(90); r != nil {
				t.Fatal(r)
			}
		}
		if r := taken.upload(200); r == nil || r.Cause != policy.RateLimited {
			t.Errorf("bytes over the limit: %+v", r)
		}
		_, r := admit(200)
		if r == nil || r.Status() != 429 {
			t.Fatalf("a request that does not fit: %+v", r)
		}
		const almost = 59*time.Minute + 45*time.Second
		time.Sleep(almost)
		if _, early := admit(200); early == nil {
			t.Error("it fits before an hour has passed")
		}
		time.Sleep(time.Duration(r.RetryAfter)*time.Second - almost)
		if _, r := admit(200); r != nil {
			t.Errorf("after Retry-After: %v", r)
		}
	})
}

func TestUploadsOfATunnelHaveALimit(t *testing.T) {
	t.Parallel()
	r, d, addr := tcpRig(t, func(p *policy.Policy) { p.Limits.UploadBytes = 100 << 10 })
	s := r.open(addr, protocol.EgressOpen{})
	conn := d.next(t)
	go func() {
		for range 1000 {
			if _, err := s.Write(make([]byte, 1000)); err != nil {
				return
			}
		}
	}()
	data, _ := io.ReadAll(conn)
	if len(data) > 100<<10 || len(data) < 30<<10 {
		t.Errorf("the destination got %d bytes", len(data))
	}
	if _, err := io.Copy(io.Discard, s); protocol.CodeOf(err) != protocol.CodeLimit {
		t.Errorf("the tunnel ended with %v", err)
	}
	if f := r.lastFlow(); f.Cause != string(policy.TooLarge) {
		t.Errorf("the last line is %+v", f)
	}
}

// TestAQuotaIsSharedFairly has one app that asks for far more than there is, and one
// that asks for a little: the little one gets what it asks for.
func TestAQuotaIsSharedFairly(t *testing.T) {
	if raced {
		t.Skip("thousands of timers in a bubble of synctest crash the race detector's own code (Go 1.26); the test runs without it")
	}
	for _, wait := range []time.Duration{0, 2 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			q := policy.Quota{Name: "partner", RPS: 10, Burst: 5, Wait: wait}
			of := newQuota(q, time.Now())
			ctx, stop := context.WithCancel(context.Background())
			var mu sync.Mutex
			got := map[relay.AppID]int{}
			ask := func(app relay.AppID) {
				if of.take(ctx, app, q) == nil {
					mu.Lock()
					got[app]++
					mu.Unlock()
				}
			}
			const seconds = 60
			var wg sync.WaitGroup
			for range 50 { // 500 calls a second, or 50 that always wait
				wg.Go(func() {
					for ctx.Err() == nil {
						ask("greedy")
						time.Sleep(100 * time.Millisecond)
					}
				})
			}
			modest := 0
			wg.Go(func() {
				for range 3 * seconds { // 3 calls a second of 10
					modest++
					wg.Go(func() { ask("modest") })
					time.Sleep(time.Second / 3)
				}
				stop()
			})
			wg.Wait()
			total := got["greedy"] + got["modest"]
			t.Logf("wait %v: %v of %d modest calls", wait, got, modest)
			if got["modest"] < modest*85/100 {
				t.Errorf("wait %v: the modest app got %d of %d calls", wait, got["modest"], modest)
			}
			if total > 10*(seconds+2)+5 {
				t.Errorf("wait %v: %d calls, more than the quota", wait, total)
			}
			if total < 10*seconds*80/100 {
				t.Errorf("wait %v: %d calls only, much of the quota was not used", wait, total)
			}
		})
	}
}

func TestRetryAfterOfAQuotaIsTrue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := policy.Quota{Name: "partner", RPS: 0.5, Burst: 1, Wait: time.Second}
		of := newQuota(q, time.Now())
		ctx := context.Background()
		if r := of.take(ctx, "shop", q); r != nil {
			t.Fatal(r)
		}
		start := time.Now()
		r := of.take(ctx, "shop", q)
		if r == nil || r.Cause != policy.RateLimited || r.RetryAfter != 2 || r.Where != "egress.quotas.partner" {
			t.Fatalf("the second call: %+v", r)
		}
		if time.Since(start) > 0 {
			t.Error("it waited although that was of no use")
		}
		time.Sleep(2 * time.Second)
		if r := of.take(ctx, "shop", q); r != nil {
			t.Errorf("after Retry-After: %v", r)
		}
		// One that waits is granted its turn.
		time.Sleep(1500 * time.Millisecond)
		start = time.Now()
		if r := of.take(ctx, "shop", q); r != nil || time.Since(start) != 500*time.Millisecond {
			t.Errorf("after %v: %v", time.Since(start), r)
		}
	})
}

func TestARequestOverItsQuotaIsToldWhen(t *testing.T) {
	t.Parallel()
	r, url := httpRig(t, func(http.ResponseWriter, *http.Request) {}, func(p *policy.Policy) {
		p.Allow[0].Quota = "partner"
		p.Quotas = []policy.Quota{{Name: "partner", RPS: 0.1, Burst: 1}}
	})
	for i, want := range []int{200, 429} {
		resp := r.raw("POST " + url + "/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
		if resp.StatusCode != want {
			t.Errorf("answer %d is %s", i, resp.Status)
		}
		if after, _ := strconv.Atoi(resp.Header.Get("Retry-After")); want == 429 && (after < 9 || after > 41) {
			t.Errorf("Retry-After is %q", resp.Header.Get("Retry-After"))
		}
	}
}

func TestLevelDividesFairly(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		demand []float64
		room   float64
		want   float64
	}{
		{[]float64{100, 3}, 10, 7}, {[]float64{100, 100}, 10, 5}, {[]float64{1, 2, 100}, 12, 9}, {[]float64{1, 2}, 10, math.Inf(1)}, {[]float64{6, 6, 1}, 10, 4.5},
	} {
		if got := level(c.demand, c.room); got != c.want {
			t.Errorf("level(%v, %v) = %v, expected %v", c.demand, c.room, got, c.want)
		}
	}
}
