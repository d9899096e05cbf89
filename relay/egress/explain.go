package egress

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/protocol/outbound"
	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/relay"
)

// Explain says what would become of a call of an instance of app, and which line
// decides. It dials nothing, counts nothing, and looks a name up only when the policy
// lets it through. method "" is GET. The error is a *policy.TargetError when url
// cannot be read.
func (e *Egress) Explain(ctx context.Context, app relay.AppID, instance, url, method string) (api.Explanation, error) {
	call, err := policy.ParseCall(url)
	if err != nil {
		return api.Explanation{}, err
	}
	if call.Target.Form == policy.Request {
		call.Method = strings.ToUpper(method)
		if method == "" {
			call.Method = http.MethodGet
		}
	}
	c := e.cfg.Policy(app, instance)
	p, d := c.Policy(), c.Decide(call, e.cfg.Now())
	x := api.Explanation{
		App: string(app), URL: urlOf(call), Method: call.Method, Verdict: allowed,
		Rule: d.Where, Line: d.Line, Text: textOf(p, d), Reason: d.Reason,
		Version: p.Version, Mode: string(p.Mode),
	}
	if !d.Allow {
		refuse(&x, d.Refusal(c, call))
		return x, nil
	}
	if d.Would {
		x.Verdict = reported
	}
	dial := call.Target
	x.Via, x.OnLoss = "relay", "closed"
	if r := d.Rule; r != nil {
		if r.Via == "direct" {
			x.Via = "direct"
		}
		if r.OnRelayLoss == "direct" {
			x.OnLoss = "direct"
		}
		if r.Upgrade && call.Target.Form == policy.Request {
			dial.Port = 443
		}
	}
	e.explainAddresses(ctx, &x, c, dial)
	return x, nil
}

// explainAddresses looks the name up and says what is said of each address.
func (e *Egress) explainAddresses(ctx context.Context, x *api.Explanation, c *policy.Compiled, t policy.Target) {
	answer := outbound.Answer{}
	if t.Addr.IsValid() {
		answer.Addrs = append(answer.Addrs, t.Addr)
	} else {
		resolver := e.cfg.Dialer.Resolver
		if resolver == nil {
			resolver = outbound.System()
		}
		ctx, cancel := context.WithTimeout(ctx, lookupTime)
		defer cancel()
		var err error
		if answer, err = resolver.Lookup(ctx, t.Host); err != nil {
			x.DNSError = clip(err.Error(), maxText)
			return
		}
	}
	now := e.cfg.Now()
	passed := 0
	var refused policy.Decision
	for _, a := range answer.Addrs {
		d := c.CheckAddr(t, a, now)
		one := api.ExplainedAddress{Address: a.String(), Allowed: d.Allow}
		if d.Allow {
			passed++
		} else {
			one.Reason, refused = d.Reason, d
		}
		x.Addresses = append(x.Addresses, one)
	}
	if passed == 0 && refused.Cause != "" {
		x.Rule, x.Line, x.Text = refused.Where, refused.Line, textOf(c.Policy(), refused)
		refuse(x, refused.Refusal(c, policy.Call{Target: t}))
	}
}

// lookupTime is how long an explanation waits for name servers, who may be the reason
// for asking.
const lookupTime = 5 * time.Second

func refuse(x *api.Explanation, r *policy.Refusal) {
	x.Verdict, x.Cause, x.Status = denied, string(r.Cause), r.Status()
	x.Reason, x.Suggestion = r.Message, r.Suggestion
}

// urlOf is a call as a URL, without what the one who asked may have written of
// passwords and queries.
func urlOf(call policy.Call) string {
	if call.Target.Form == policy.Request {
		return "http://" + hostLine(call.Target, 80) + call.Path
	}
	if call.Target.Port == 443 {
		return "https://" + hostLine(call.Target, 443)
	}
	return "tcp://" + call.Target.HostPort()
}

// textOf is the line that decided, as far as the policy has it.
func textOf(p *policy.Policy, d policy.Decision) string {
	if d.Rule != nil {
		return fmt.Sprintf("%s://%s:%d", d.Rule.Scheme, d.Rule.Host, d.Rule.Port)
	}
	for _, lines := range [2][]policy.Deny{p.Emergency, p.Deny} {
		for i := range lines {
			if lines[i].Where == d.Where {
				return textOfDeny(&lines[i])
			}
		}
	}
	for i := range p.Allow {
		if p.Allow[i].Where == d.Where {
			return ruleName(&p.Allow[i])
		}
	}
	for i := range p.Holes {
		if p.Holes[i].Where == d.Where {
			return fmt.Sprintf("%v, ports %v", p.Holes[i].Range, p.Holes[i].Ports)
		}
	}
	return ""
}

func textOfDeny(l *policy.Deny) string {
	switch {
	case l.All:
		return "everything"
	case l.Range.IsValid():
		return l.Range.String()
	case l.Port != 0:
		return fmt.Sprintf("%s:%d", l.Host, l.Port)
	}
	return l.Host
}
