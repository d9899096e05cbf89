package policies

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/relay"
)

// Limits of orders.
const (
	maxOrders    = 1000 // in force at once
	maxOrderTime = 366 * 24 * time.Hour
	maxOwner     = 64

	// settleTime is how long a deny waits for the agents to have it before live calls
	// are cut for the second time.
	settleTime = 500 * time.Millisecond
)

// Order makes an emergency deny or an exception. It is in force when Order returns. Of
// a deny, the answer says how many live calls were cut at the relay: at once, and again
// when all agents have the deny, or after half a second, for calls that were decided
// before it and began after the first cut.
func (p *Policies) Order(ctx context.Context, by string, req api.OrderRequest) (api.Order, error) {
	o, err := p.newOrder(by, req)
	if err != nil {
		return api.Order{}, err
	}
	made, err := p.enact(ctx, o)
	if err != nil {
		return api.Order{}, err
	}
	out := p.viewOrder(o)
	if o.Kind == relay.OrderDeny {
		out.Cut = p.cfg.Cut()
		p.roster.settle(ctx, made, settleTime)
		out.Cut += p.cfg.Cut()
	}
	return out, nil
}

// enact stores o and puts it in force.
func (p *Policies) enact(ctx context.Context, o relay.Order) (*state, error) {
	if err := p.take(ctx); err != nil {
		return nil, err
	}
	defer p.give()
	ctx, cancel := finish(ctx)
	defer cancel()
	if len(p.state.Load().orders) >= maxOrders {
		return nil, relay.Errorf(relay.Conflict, "there are %d orders in force already; end some, or write them into the manifest", maxOrders)
	}
	if err := p.cfg.Store.CreateOrder(ctx, o); err != nil {
		return nil, fmt.Errorf("create order: %w", err)
	}
	made := p.change(func(next *state) { next.orders = append(slices.Clip(next.orders), o) })
	action := didDeny
	if o.Kind == relay.OrderAllow {
		action = didAllow
	}
	p.audit(ctx, o.By, o.App, action, o.ID, fmt.Sprintf("%s until %s: %s", o.What, o.Until.Format(time.RFC3339), o.Reason))
	return made, nil
}

// EndOrder ends an order before its time.
func (p *Policies) EndOrder(ctx context.Context, by, id string) (api.Order, error) {
	if err := p.take(ctx); err != nil {
		return api.Order{}, err
	}
	defer p.give()
	ctx, cancel := finish(ctx)
	defer cancel()
	o, err := p.cfg.Store.EndOrder(ctx, id, p.now())
	if err != nil {
		return api.Order{}, fmt.Errorf("end order: %w", err)
	}
	p.change(func(next *state) {
		next.orders = slices.DeleteFunc(slices.Clone(next.orders), func(have relay.Order) bool { return have.ID == id })
	})
	p.audit(ctx, by, o.App, didEnd, o.ID, o.What)
	return p.viewOrder(o), nil
}

// Orders lists those in force, or the newest besides, newest first.
func (p *Policies) Orders(ctx context.Context, all bool) (api.OrderList, error) {
	orders, err := p.cfg.Store.Orders(ctx, p.cfg.Now(), all)
	if err != nil {
		return api.OrderList{}, fmt.Errorf("list orders: %w", err)
	}
	list := api.OrderList{Orders: make([]api.Order, 0, len(orders))}
	for _, o := range orders {
		list.Orders = append(list.Orders, p.viewOrder(o))
	}
	return list, nil
}

// newOrder checks what somebody asks for.
func (p *Policies) newOrder(by string, req api.OrderRequest) (relay.Order, error) {
	now := p.now()
	o := relay.Order{Kind: relay.OrderKind(req.Kind), App: relay.AppID(req.App), What: strings.TrimSpace(req.What),
		Reason: strings.TrimSpace(req.Reason), Owner: strings.TrimSpace(req.Owner), By: by, CreatedAt: now}
	if o.Reason == "" || len(o.Reason) > maxReason || hasControl(o.Reason) {
		return o, relay.Errorf(relay.Invalid, "expected a reason of at most %d bytes in one line", maxReason)
	}
	if len(o.Owner) > maxOwner || hasControl(o.Owner) {
		return o, relay.Errorf(relay.Invalid, "expected an owner of at most %d bytes in one line", maxOwner)
	}
	if req.ForMS <= 0 || req.ForMS > maxOrderTime.Milliseconds() {
		return o, relay.Errorf(relay.Invalid, "expected a time above 0 of at most 366 days")
	}
	o.Until = now.Add(time.Duration(req.ForMS) * time.Millisecond)
	if o.App != "" && o.App.Validate() != nil {
		return o, relay.Errorf(relay.Invalid, "expected the name of an app, found %s", strconv.Quote(string(o.App)))
	}
	if err := checkWhat(&o); err != nil {
		return o, err
	}
	if o.Kind == relay.OrderAllow {
		if err := p.checkLine(o); err != nil {
			return o, err
		}
	}
	o.ID = relay.NewOrderID(o.Kind, now)
	return o, nil
}

// checkLine holds an exception to what the manifest holds a line to, which is more than
// that it can be read: nobody may allow *.com.
func (p *Policies) checkLine(o relay.Order) error {
	_, err := p.cfg.Parse(fmt.Appendf(nil, "version: 1\napps:\n  %q:\n    egress:\n      allow: [%q]\n", o.App, o.What))
	var problems relay.ManifestErrors
	switch {
	case errors.As(err, &problems) && len(problems) > 0:
		return relay.Errorf(relay.Invalid, "%s", problems[0].Message)
	case err != nil:
		return relay.Errorf(relay.Invalid, "the target cannot stand in a manifest")
	}
	return nil
}

// checkWhat brings o.What into the form in which it is compared.
func checkWhat(o *relay.Order) error {
	switch o.Kind {
	case relay.OrderAllow:
		if o.App == "" {
			return relay.Errorf(relay.Invalid, "expected the app that the exception is for")
		}
		rule, err := parseRule(o.What)
		if err != nil {
			return err
		}
		o.Owner = cmp.Or(o.Owner, o.By)
		o.What = ruleText(rule)
	case relay.OrderDeny:
		deny, err := parseDeny(o.What)
		if err != nil {
			return err
		}
		if deny.All {
			name := relay.AppID(strings.TrimPrefix(o.What, "app:"))
			if o.App != "" && o.App != name {
				return relay.Errorf(relay.Invalid, "expected no other app beside app:%s", name)
			}
			o.App = name
		}
		o.What = denyText(deny, o.App)
	default:
		return relay.Errorf(relay.Invalid, "expected deny or allow, found %s", strconv.Quote(string(o.Kind)))
	}
	return nil
}

// parseDeny reads host, host:port, an address, a CIDR or app:NAME. The error of an
// input never repeats it: a URL with a password may have been pasted.
func parseDeny(what string) (policy.Deny, error) {
	wrong := relay.Errorf(relay.Invalid, "expected a host such as api.example.com or *.example.com, an address, a range such as 192.0.2.0/24, or app:NAME")
	if name, ok := strings.CutPrefix(what, "app:"); ok {
		if relay.AppID(name).Validate() != nil {
			return policy.Deny{}, wrong
		}
		return policy.Deny{All: true}, nil
	}
	if prefix, err := netip.ParsePrefix(what); err == nil {
		if prefix.Addr().Is4In6() && prefix.Bits() >= 96 {
			prefix = netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-96)
		}
		return policy.Deny{Range: prefix.Masked()}, nil
	}
	host, port, ok := hostAndPort(what)
	if !ok {
		return policy.Deny{}, wrong
	}
	if addr, err := netip.ParseAddr(host); err == nil && port == 0 {
		if addr.Zone() != "" {
			return policy.Deny{}, wrong
		}
		// Wherever the name that leads there comes from.
		return policy.Deny{Range: netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen())}, nil
	}
	host, err := policy.ParsePattern(host)
	if err != nil {
		return policy.Deny{}, wrong
	}
	return policy.Deny{Host: host, Port: port}, nil
}

// parseRule reads https://host[:port], http://host[:port], tcp://host:port, or a host
// alone, which is https.
func parseRule(what string) (policy.Rule, error) {
	wrong := relay.Errorf(relay.Invalid, "expected a target such as https://api.example.com, http://api.example.com:8080 or tcp://db.example.com:5432")
	scheme, rest, ok := strings.Cut(what, "://")
	if !ok {
		scheme, rest = string(policy.HTTPS), what
	}
	rule := policy.Rule{Scheme: policy.Scheme(strings.ToLower(scheme))}
	host, port, ok := hostAndPort(strings.TrimSuffix(rest, "/"))
	if !ok {
		return rule, wrong
	}
	var err error
	if rule.Host, err = policy.ParsePattern(host); err != nil {
		return rule, wrong
	}
	switch rule.Scheme {
	case policy.HTTPS:
		rule.Port = cmp.Or(port, 443)
	case policy.HTTP:
		rule.Port = cmp.Or(port, 80)
	case policy.TCP:
		rule.Port = port
	}
	if rule.Port == 0 {
		return rule, wrong
	}
	return rule, nil
}

// hostAndPort takes host, host:port, [v6]:port or a bare IPv6 address apart; port 0 is
// none.
func hostAndPort(s string) (host string, port uint16, ok bool) {
	if addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")); err == nil && addr.Zone() == "" {
		return addr.Unmap().String(), 0, true
	}
	host, digits, found := s, "", false
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		host, digits, found = s[:i], s[i+1:], true
	}
	if found {
		n, err := strconv.ParseUint(digits, 10, 16)
		if err != nil || n == 0 {
			return "", 0, false
		}
		port = uint16(n)
	}
	if inner, bracketed := strings.CutPrefix(host, "["); bracketed {
		host = strings.TrimSuffix(inner, "]")
	}
	return host, port, host != "" && !strings.ContainsAny(host, "/@?#[] ")
}

// denyOf is o as a policy has it.
func denyOf(o relay.Order) policy.Deny {
	deny, _ := parseDeny(o.What) // it was checked
	deny.ID, deny.Where, deny.Until, deny.Reason = o.ID, "emergency "+o.ID, o.Until, o.Reason
	return deny
}

// ruleOf is o as a policy has it.
func ruleOf(o relay.Order) policy.Rule {
	rule, _ := parseRule(o.What) // it was checked
	rule.Where, rule.Expires, rule.Owner = "exception "+o.ID, o.Until, o.Owner
	return rule
}

func denyText(d policy.Deny, app relay.AppID) string {
	switch {
	case d.All:
		return "app:" + string(app)
	case d.Range.IsValid() && d.Range.IsSingleIP():
		return d.Range.Addr().String()
	case d.Range.IsValid():
		return d.Range.String()
	case d.Port != 0:
		return joinPort(d.Host, d.Port)
	}
	return d.Host
}

// ruleText is a rule as the manifest has it, without a port that goes without saying.
func ruleText(r policy.Rule) string {
	if r.Scheme == policy.HTTPS && r.Port == 443 || r.Scheme == policy.HTTP && r.Port == 80 {
		return string(r.Scheme) + "://" + bracketed(r.Host)
	}
	return string(r.Scheme) + "://" + joinPort(r.Host, r.Port)
}

func joinPort(host string, port uint16) string {
	return bracketed(host) + ":" + strconv.Itoa(int(port))
}

func bracketed(host string) string {
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c == 0x7f || c == 0xfffd })
}
