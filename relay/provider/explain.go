package provider

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"

	"github.com/posternhq/postern/relay"
)

// Bounds of what Explain does: it runs on requests that anybody may send.
const (
	maxExplainBody = 1 << 20
	maxExplainWork = 32 << 20 // bytes signed, all attempts together
	maxAttempts    = 64
)

// Explain looks for the likely cause of a refusal and says it in one or more
// plain sentences, or says nothing. It changes the body, the URL and the secrets
// in the ways in which they usually get damaged, and tells which change would
// have made the signature hold. What it says is free of the sender's bytes.
func (v *Rules) Explain(ep relay.Endpoint, in relay.Incoming) string {
	p := lookup(ep.Provider)
	if p == nil || p.Name == "none" || in.Method == http.MethodGet && !p.readsGet ||
		in.Method == http.MethodHead || in.Method == http.MethodOptions {
		return ""
	}
	if sentence := misdirected(p, ep, in); sentence != "" {
		return sentence
	}
	if len(in.Body) > maxExplainBody {
		return ""
	}
	x := explainer{row: p, r: request{ctx: context.Background(), rules: v, ep: ep, in: in, trial: true}}
	if x.holds(x.r) {
		return x.aged(in)
	}
	for _, search := range []func() string{x.secrets, x.bodies, x.urls, x.algorithms} {
		if sentence := search(); sentence != "" {
			return sentence
		}
	}
	return x.mode()
}

type explainer struct {
	row      *row
	r        request
	attempts int
}

// holds reports whether the signature of r is right, whenever it was made.
func (x *explainer) holds(r request) bool {
	if x.spent() {
		return false
	}
	x.attempts++
	r.ep.Tolerance = forever
	return x.row.judge(r).OK
}

// sharedMarks are the marks that several senders have.
var sharedMarks = map[string]string{
	"X-Hub-Signature-256": "github or meta", "X-Hub-Signature": "bitbucket or intercom",
}

// spent reports whether the search has used up what it may cost.
func (x *explainer) spent() bool {
	each := (len(x.r.in.Body) + 1) * max(1, len(x.r.ep.Secrets))
	return x.attempts >= maxAttempts || (x.attempts+1)*each > maxExplainWork
}

// misdirected notices webhooks of another sender, and those that lost their
// headers on the way.
func misdirected(p *row, ep relay.Endpoint, in relay.Incoming) string {
	own := ""
	if len(p.marks) > 0 {
		own = p.marks[0]
	}
	if p.Name == "hmac" && ep.HMAC != nil {
		own = ep.HMAC.Header
	}
	if own == "" || len(in.Header.Values(own)) > 0 ||
		p.Name == "svix" && len(in.Header.Values(standardScheme.header)) > 0 ||
		p.Name == "gitlab" && len(in.Header.Values(standardScheme.header)) > 0 {
		return ""
	}
	if p.Name == "github" && len(in.Header.Values("X-Hub-Signature")) > 0 {
		return "Only GitHub's old SHA-1 signature is there, and X-Hub-Signature-256 is not: " +
			"the sender is older than that header, or something in between removed it."
	}
	for i := range table {
		other := &table[i]
		for _, mark := range other.marks {
			if other.Name != p.Name && sharedMarks[mark] == "" && len(in.Header.Values(mark)) > 0 {
				return fmt.Sprintf("This looks like a webhook of %s: it has the header %s. The endpoint's provider is %s.", other.Name, mark, p.Name)
			}
		}
	}
	for _, mark := range []string{"X-Hub-Signature-256", "X-Hub-Signature"} {
		if sharedMarks[mark] != "" && len(in.Header.Values(mark)) > 0 {
			return fmt.Sprintf("This looks like a webhook of %s: it has the header %s. The endpoint's provider is %s.", sharedMarks[mark], mark, p.Name)
		}
	}
	for _, mark := range p.marks[min(1, len(p.marks)):] {
		if len(in.Header.Values(mark)) > 0 {
			return fmt.Sprintf("The webhook is of %s but not signed: no secret is set at the sender, or something in between removed %s.", p.Name, own)
		}
	}
	return ""
}

// aged is for signatures that are right.
func (x *explainer) aged(in relay.Incoming) string {
	r := x.r
	r.ep.Tolerance = forever
	sentAt := x.row.judge(r).SentAt
	if sentAt.IsZero() || in.ReceivedAt.IsZero() {
		return ""
	}
	switch age := in.ReceivedAt.Sub(sentAt); {
	case age > 0:
		return fmt.Sprintf("The signature is right, but it is %d s old: this is a replay, or the webhook waited somewhere, or a clock is wrong.", ceilSeconds(age))
	case age < 0:
		return fmt.Sprintf("The signature is right, but made %d s in the future: a clock is wrong, here or at the sender.", ceilSeconds(-age))
	}
	return ""
}

// variant is one way of damage: what becomes of a text, and the sentence for it.
type variant struct {
	change   func(s string) (string, bool)
	sentence string
}

func (x *explainer) secrets() string {
	for _, v := range secretVariants {
		r := x.r
		r.ep.Secrets = nil
		for _, secret := range x.r.ep.Secrets {
			if changed, ok := v.change(secret.Reveal()); ok && changed != secret.Reveal() && changed != "" {
				r.ep.Secrets = append(r.ep.Secrets, relay.Secret(changed))
			}
		}
		if len(r.ep.Secrets) > 0 && x.holds(r) {
			return v.sentence
		}
	}
	return ""
}

var secretVariants = []variant{
	{func(s string) (string, bool) { return strings.TrimSpace(s), true },
		"The signature would hold if the secret had no blank or line end around it: trim the secret where it is stored."},
	{func(s string) (string, bool) { return strings.CutPrefix(s, sharedKey) },
		"The signature would hold under the secret without its whsec_: store it without."},
	{func(s string) (string, bool) { return sharedKey + s, !strings.HasPrefix(s, sharedKey) },
		"The signature would hold under the secret with whsec_ in front: store it whole."},
	{func(s string) (string, bool) {
		key, err := decodeKey(strings.TrimPrefix(s, sharedKey))
		return string(key), err == nil
	}, "The signature would hold under the secret decoded from base64: the sender uses the decoded key."},
	{func(s string) (string, bool) { key, err := hex.DecodeString(s); return string(key), err == nil },
		"The signature would hold under the secret decoded from hex: the sender uses the decoded key."},
	{func(s string) (string, bool) { return base64.StdEncoding.EncodeToString([]byte(s)), true },
		"The signature would hold under the secret's own bytes, not decoded: the sender does not decode the key."},
	{func(s string) (string, bool) { return strings.Trim(s, `"'`), true },
		"The signature would hold if the secret had no quotation marks around it."},
}

func (x *explainer) bodies() string {
	r := x.r
	for _, v := range bodyVariants {
		if x.spent() {
			break
		}
		changed, ok := v.change(string(x.r.in.Body))
		if !ok || changed == string(x.r.in.Body) || len(changed) > 4*maxExplainBody {
			continue
		}
		r.in.Body = []byte(changed)
		if x.holds(r) {
			return v.sentence
		}
	}
	return ""
}

func (x *explainer) urls() string {
	if s, problem := x.row.schemeFor(x.r); problem != "" || !strings.Contains(s.signed, "{url}") && !strings.Contains(s.signed, "{path}") {
		return ""
	}
	r := x.r
	for _, v := range urlVariants {
		changed, ok := v.change(x.r.in.PublicURL)
		if !ok || changed == x.r.in.PublicURL {
			continue
		}
		r.in.PublicURL = changed
		if x.holds(r) {
			return v.sentence
		}
	}
	return ""
}

// algorithms tries what else the signature may be, as far as its length fits.
func (x *explainer) algorithms() string {
	s, problem := x.row.schemeFor(x.r)
	if problem != "" || s.pairs != nil {
		return ""
	}
	for _, name := range []string{"sha1", "sha256", "sha384", "sha512"} {
		for _, e := range []encoding{inHex, inBase64, inBase64URL} {
			prefixes := []string{s.prefix, name + "=", ""}
			for _, prefix := range prefixes {
				other := *s
				other.hash, other.encoding, other.prefix = hashes[name], e, prefix
				if _, problem := other.read(x.r.in); problem != "" || x.spent() {
					continue
				}
				r := x.r
				r.ep.Tolerance = forever
				x.attempts++
				if other.verify(r).OK {
					return fmt.Sprintf("The signature would hold as HMAC-%s written in %s with the prefix %q: that is another scheme than the endpoint's.", strings.ToUpper(name), e, prefix)
				}
			}
		}
	}
	return ""
}

// mode tells Stripe's test events from live ones: each mode has its own secret.
func (x *explainer) mode() string {
	if x.row.Name != "stripe" || len(x.r.in.Header.Values(stripeScheme.header)) == 0 {
		return ""
	}
	switch live, found := topLevelBool(x.r.in.Body, "livemode"); {
	case !found:
		return ""
	case live:
		return "The event is of Stripe's live mode: is the endpoint's secret the one of a test address, or of the Stripe CLI?"
	}
	return "The event is of Stripe's test mode: is the endpoint's secret the one of the live address? The Stripe CLI has a secret of its own too."
}
