package outbound

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/protocol/policy"
)

func TestHappyEyeballs(t *testing.T) {
	t.Parallel()
	const ms = time.Millisecond
	all := []string{four1, four2, four3, six1, six2}
	for _, test := range []struct {
		name    string
		addrs   []string
		answers map[string]answer
		won     string // "": a refusal
		after   time.Duration
		dialed  []string
	}{
		{"the first at once", all, map[string]answer{six1: {}}, six1, 0, []string{six1}},
		{"the first just in time", all, map[string]answer{six1: {after: 249 * ms}}, six1, 249 * ms, []string{six1}},
		{"IPv6 dead", all, map[string]answer{four1: {after: 20 * ms}}, four1, 270 * ms, []string{six1, four1}},
		{"both slow, the first wins", all, map[string]answer{six1: {after: 300 * ms}, four1: {after: 100 * ms}},
			six1, 300 * ms, []string{six1, four1}},
		{"refused: the next one at once", all,
			map[string]answer{six1: {after: 10 * ms, err: syscall.ECONNREFUSED}, four1: {}}, four1, 10 * ms, []string{six1, four1}},
		{"the last of all", all, map[string]answer{four3: {}}, four3, 1000 * ms, []string{six1, four1, six2, four2, four3}},
		{"refused everywhere", []string{four1, six1},
			map[string]answer{six1: {err: syscall.ECONNREFUSED}, four1: {err: syscall.ECONNREFUSED}}, "", 0, []string{six1, four1}},
		{"dead everywhere", []string{four1, six1}, nil, "", 10 * time.Second, []string{six1, four1}},
		{"one slow, the other refused", []string{four1, six1},
			map[string]answer{six1: {after: 2 * time.Second}, four1: {err: syscall.ECONNREFUSED}}, six1, 2 * time.Second, []string{six1, four1}},
		// A loser whose connection came although it was told to give up is closed.
		{"a loser that comes late", []string{four1, six1},
			map[string]answer{six1: {after: 300 * ms, deaf: true}, four1: {}}, four1, 300 * ms, []string{six1, four1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				n := &network{answers: test.answers}
				d := &Dialer{Resolver: &asked{answer: found(time.Minute, test.addrs...)}, DialAddr: n.dial}
				start := time.Now()
				conn, err := d.Dial(t.Context(), open(), host)
				if took := time.Since(start); took != test.after {
					t.Errorf("it took %v, expected %v", took, test.after)
				}
				var dialed []string
				for _, a := range n.dialed {
					dialed = append(dialed, netip.MustParseAddrPort(a).Addr().String())
				}
				if !slices.Equal(dialed, test.dialed) {
					t.Errorf("dialed %v, expected %v", dialed, test.dialed)
				}
				if test.won == "" {
					refusal(t, conn, err)
				} else if err != nil || conn.Addr.Addr().String() != test.won {
					t.Fatalf("got %+v and error %v, expected %s", conn, err, test.won)
				} else if n.open != 1 {
					t.Errorf("%d connections are open, expected the winner's", n.open)
				} else {
					conn.Close()
				}
				if n.open != 0 {
					t.Errorf("%d connections are left open", n.open)
				}
			})
		})
	}
}

// The private addresses of a mixed answer are no candidates, however slow the others.
func TestTheRaceKnowsOnlyCheckedAddresses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := &network{answers: map[string]answer{"10.0.0.1": {}, "::1": {}}}
		d := &Dialer{Resolver: &asked{answer: found(time.Minute, "10.0.0.1", six1, "::1", four1)}, DialAddr: n.dial}
		conn, err := d.Dial(t.Context(), open(), host)
		if r := refusal(t, conn, err); r.Cause != policy.DialTimeout {
			t.Errorf("got %s", r)
		}
		if got := strings.Join(n.dialed, " "); got != "["+six1+"]:443 "+four1+":443" {
			t.Errorf("dialed %s", got)
		}
	})
}

func TestTheOrderOfAddresses(t *testing.T) {
	t.Parallel()
	parse := func(list ...string) (addrs []netip.Addr) {
		for _, s := range list {
			addrs = append(addrs, netip.MustParseAddr(s))
		}
		return addrs
	}
	var many []string
	for i := range 100 {
		many = append(many, fmt.Sprintf("93.184.217.%d", i))
	}
	for _, test := range []struct {
		name     string
		in, want []string
	}{
		{"in turns", []string{four1, four2, six1, six2}, []string{six1, four1, six2, four2}},
		{"more of one", []string{four1, six1, six2, six3}, []string{six1, four1, six2, six3}},
		{"one family", []string{four2, four1}, []string{four2, four1}},
		{"each once", []string{four1, six1, four1, six1}, []string{six1, four1}},
		{"a mapped one is IPv4", []string{"::ffff:93.184.216.34", six1}, []string{six1, "::ffff:93.184.216.34"}},
		{"not all of a hundred, and the other family still", append(slices.Clone(many), six1),
			append([]string{six1}, many[:maxAttempts-1]...)},
	} {
		var f families
		if got := f.order(parse(test.in...), time.Now()); !slices.Equal(got, parse(test.want...)) {
			t.Errorf("%s: got %v, expected %v", test.name, got, test.want)
		}
	}
}

// Where IPv6 is silently lost, not every connection waits for it.
func TestIPv4GoesFirstForAWhileWhereIPv6IsLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := &network{answers: map[string]answer{four1: {}}}
		d := &Dialer{Resolver: &asked{answer: found(time.Minute, six1, four1)}, DialAddr: n.dial}
		took := func() time.Duration {
			t.Helper()
			start := time.Now()
			conn, err := d.Dial(t.Context(), open(), host)
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
			return time.Since(start)
		}
		for i := range lostInARow {
			if got := took(); got != 250*time.Millisecond {
				t.Errorf("dial %d took %v, expected 250ms", i, got)
			}
		}
		if got := took(); got != 0 {
			t.Errorf("then it took %v", got)
		}
		time.Sleep(fourFirst)
		if got := took(); got != 250*time.Millisecond {
			t.Errorf("after a while it took %v, expected that IPv6 is tried again", got)
		}
		// A success in between makes the losses start anew.
		n.answers[six1] = answer{}
		took()
		delete(n.answers, six1)
		for range lostInARow {
			if got := took(); got != 250*time.Millisecond {
				t.Errorf("it took %v", got)
			}
		}
	})
}
