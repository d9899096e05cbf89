package admin

import (
	"slices"
	"strings"

	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/relay"
)

// allOf is in front of an app's name in a deny of everything that it calls.
const allOf = "app:"

// listOrders lists what changes the policy of the apps that the token reaches:
// their own orders, and those that hold for all.
func (s *Server) listOrders(c *call) (any, error) {
	p, err := s.policies()
	if err != nil {
		return nil, err
	}
	all, _ := c.query.flag("all")
	list, err := p.Orders(c.ctx(), all)
	if err != nil {
		return nil, err
	}
	shown := api.OrderList{Orders: []api.Order{}}
	for _, o := range list.Orders {
		if c.home() == "" || c.concerns(o) {
			shown.Orders = append(shown.Orders, o)
		}
	}
	return shown, nil
}

// concerns reports whether o is about the one app that the token reaches.
func (c *call) concerns(o api.Order) bool {
	if name, ok := strings.CutPrefix(o.What, allOf); ok {
		return relay.AppID(name) == c.home()
	}
	return o.App == "" || relay.AppID(o.App) == c.home()
}

// createOrder makes a deny or an exception. What it may be is the policies' to
// say; whom it may be about is said here.
func (s *Server) createOrder(c *call) (any, error) {
	p, err := s.policies()
	if err != nil {
		return nil, err
	}
	req := *c.body.(*api.OrderRequest)
	switch {
	case req.Kind != string(relay.OrderDeny) && req.Kind != string(relay.OrderAllow):
		return nil, relay.Errorf(relay.Invalid, "kind is deny or allow")
	case req.What == "":
		return nil, relay.Errorf(relay.Invalid, "what is missing: say which calls")
	case req.ForMS < 1 || req.ForMS > maxSpanMS:
		return nil, relay.Errorf(relay.Invalid, "for_ms is from 1 to %d", maxSpanMS)
	}
	if err := checkTexts(field{"what", req.What}, field{"reason", req.Reason}, field{"owner", req.Owner}); err != nil {
		return nil, err
	}
	app, err := s.reached(c, req.App)
	if err != nil {
		return nil, err
	}
	if name, ok := strings.CutPrefix(req.What, allOf); ok {
		if name == "" {
			return nil, relay.Errorf(relay.Invalid, "what: %q has the name of an app behind it", allOf)
		}
		if _, err := s.reached(c, name); err != nil {
			return nil, err
		}
	}
	req.App = string(app) // a token of one app changes nothing for others
	return shown(p.Order(c.ctx(), by(c), req))
}

// reached is the app with this name, which there must be; "" is all that the token
// reaches.
func (s *Server) reached(c *call, name string) (relay.AppID, error) {
	app, err := c.pick(name)
	if err == nil {
		err = s.knows(c.ctx(), app)
	}
	return app, err
}

func (s *Server) endOrder(c *call) (any, error) {
	p, err := s.policies()
	if err != nil {
		return nil, err
	}
	missing := relay.Errorf(relay.NotFound, "there is no order %s", quoted(c.path()))
	if !validID(c.path()) {
		return nil, missing
	}
	if c.home() != "" { // then it must be the app's own
		list, err := p.Orders(c.ctx(), true)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(list.Orders, func(o api.Order) bool {
			return o.ID == c.path() && c.concerns(o) && (o.App != "" || strings.HasPrefix(o.What, allOf))
		}) {
			return nil, missing
		}
	}
	return shown(p.EndOrder(c.ctx(), by(c), c.path()))
}
