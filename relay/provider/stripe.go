package provider

import (
	"encoding/hex"
	"strconv"
	"strings"
	"time"

	"github.com/posternhq/postern/relay"
)

const (
	stripeHeader    = "Stripe-Signature" // t=<unix seconds>,v1=<hex>[,v1=<hex>][,v0=<hex>]
	stripeTolerance = 300 * time.Second  // the default of Stripe's own libraries
	maxUnixSeconds  = 253402300799       // the end of the year 9999; later times do not fit the store
)

// verifyStripe checks Stripe's scheme: HMAC-SHA256 over t + "." + body, where
// the key is the whole secret with its "whsec_" in front, not decoded.
//
// Like Stripe's own libraries it refuses only what is too old, not what comes
// from the future: a fast clock at the sender is no attack, and a replay is
// always old. The age is judged last, so that "too old" also tells that the
// signature itself was right.
func verifyStripe(r Request) relay.Verdict {
	value, problem := single(r.Header, stripeHeader)
	if problem != "" {
		return refuse("%s", problem)
	}
	sig, problem := parseStripe(value)
	if problem != "" {
		return refuse("%s", problem)
	}
	if problem = checkHMAC(r.Secrets, sig.v1, []byte(sig.t), []byte("."), r.Body); problem != "" {
		return refuse("%s", problem)
	}
	if r.ReceivedAt.IsZero() {
		return refuse("the time of arrival is not known, so the timestamp cannot be checked")
	}
	sentAt := time.Unix(sig.unix, 0).UTC()
	if over := r.ReceivedAt.Sub(sentAt) - stripeTolerance; over > 0 {
		return refuse("the timestamp is too old by %ds", int64((over+time.Second-1)/time.Second))
	}
	fields := topLevelStrings(r.Body, "id", "type")
	return relay.Verdict{
		OK: true, Verified: true, SentAt: sentAt,
		DedupeKey: label(fields["id"]), Type: label(fields["type"]),
	}
}

// stripeSignature is a parsed Stripe-Signature.
type stripeSignature struct {
	t    string // as sent: the signature covers these digits
	unix int64
	v1   [][]byte
}

// parseStripe reads the header's value. Schemes other than v1 are skipped, as
// Stripe asks; a second t is refused, because one of the two is not signed. The
// second result says what is wrong, "" when nothing is.
func parseStripe(value string) (stripeSignature, string) {
	var sig stripeSignature
	for item := range strings.SplitSeq(value, ",") {
		key, val, ok := strings.Cut(item, "=")
		if !ok {
			return sig, "the header " + stripeHeader + " is malformed"
		}
		switch key {
		case "t":
			n, err := strconv.ParseInt(val, 10, 64)
			if err != nil || n < 0 || n > maxUnixSeconds || strconv.FormatInt(n, 10) != val {
				return sig, "the timestamp in " + stripeHeader + " is malformed"
			}
			if sig.t != "" {
				return sig, "the header " + stripeHeader + " has more than one timestamp"
			}
			sig.t, sig.unix = val, n
		case "v1":
			// One that is not hex cannot match; another may.
			if raw, err := hex.DecodeString(val); err == nil && len(raw) > 0 {
				sig.v1 = append(sig.v1, raw)
			}
		}
	}
	if sig.t == "" {
		return sig, "the header " + stripeHeader + " has no timestamp"
	}
	if len(sig.v1) == 0 {
		return sig, "the header " + stripeHeader + " has no v1 signature"
	}
	return sig, ""
}
