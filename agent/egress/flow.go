package egress

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/outbound"
	"github.com/posternhq/postern/protocol/policy"
)

// flow is the record of one call. It is owned by the goroutine that serves the call.
type flow struct{ protocol.Flow }

// idEncoding is Crockford's base32 in lower case.
var idEncoding = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// newFlowID makes flo_ and 26 characters: 48 bits of milliseconds and 80 random bits.
// Later ones sort later.
func newFlowID(now time.Time) string {
	var raw [16]byte
	rand.Read(raw[:])
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(now.UnixMilli()))
	copy(raw[:6], ms[2:])
	return "flo_" + idEncoding.EncodeToString(raw[:])
}

// newFlow begins the record of a tunnel.
func (p *Proxy) newFlow(c *call) *flow {
	now := time.Now()
	return &flow{protocol.Flow{
		ID: newFlowID(now), App: p.cfg.App, Instance: p.cfg.Instance,
		Form: string(c.target.Form), From: c.from, Target: c.target.HostPort(),
		Via: "relay", Traceparent: c.trace, StartedAt: now, Verdict: "allow",
	}}
}

// judge notes what was decided, and by which policy.
func (f *flow) judge(snap *snapshot, d policy.Decision) {
	f.Policy = since(f.StartedAt)
	f.Version, f.Serial = snap.policy().Version, snap.policy().Serial
	f.Rule, f.Reason = d.Where, d.Reason
	switch {
	case !d.Allow:
		f.Verdict, f.Cause = "deny", string(d.Cause)
	case d.Would:
		f.Verdict, f.Cause = "report", string(d.Cause)
	}
}

func (f *flow) dialed(c *outbound.Conn) {
	f.Dialed = c.Addr.String()
	f.DNS, f.Dial = milliseconds(c.DNS), milliseconds(c.Dial)
}

// refused is the record of a call that ends with its decision.
func (f *flow) refused(r *policy.Refusal) protocol.Flow {
	f.Verdict, f.Cause, f.Reason = "deny", string(r.Cause), r.Message
	if !byPolicy(r.Cause) {
		f.Verdict = "allow" // it was, and came to nothing
	}
	if r.Where != "" {
		f.Rule = r.Where
	}
	f.Ended, f.Duration = true, since(f.StartedAt)
	return f.Flow
}

// byPolicy reports whether a cause is somebody's decision, and not a misfortune.
func byPolicy(c policy.Cause) bool {
	switch c {
	case policy.NoSuchName, policy.DNSTimeout, policy.Refused, policy.Unreachable, policy.DialTimeout,
		policy.Cut, policy.TLSFailed, policy.AnswerTimeout, policy.RelayLost, policy.Unavailable:
		return false
	}
	return true
}

// begun is the record at the decision of a call that goes on.
func (f *flow) begun() protocol.Flow { return f.Flow }

// ended is the record at the end. cause is why it ended before its time, or "".
func (f *flow) ended(cause policy.Cause) protocol.Flow {
	if cause != "" {
		f.Cause = string(cause)
	}
	f.Ended, f.Duration = true, since(f.StartedAt)
	return f.Flow
}

func since(t time.Time) float64 { return milliseconds(time.Since(t)) }

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
