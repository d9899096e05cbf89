package admin

import (
	"context"

	"github.com/posternhq/postern/relay"
)

func (s *Server) requeueDelivery(c *call) (any, error) {
	return s.changeDelivery(c, s.cfg.Inbox.Requeue)
}

func (s *Server) cancelDelivery(c *call) (any, error) {
	return s.changeDelivery(c, s.cfg.Inbox.CancelDelivery)
}

// changeDelivery does change to the delivery that the path names, if the token
// reaches it.
func (s *Server) changeDelivery(c *call, change func(context.Context, relay.DeliveryID) (relay.Delivery, error)) (any, error) {
	id := relay.DeliveryID(c.path())
	missing := relay.Errorf(relay.NotFound, "there is no delivery %s", quoted(c.path()))
	if !validID(c.path()) {
		return nil, missing
	}
	d, err := s.cfg.Store.Delivery(c.ctx(), id)
	if relay.CodeOf(err) == relay.NotFound || err == nil && !c.may(d.App) {
		return nil, missing
	}
	if err != nil {
		return nil, err
	}
	if d, err = change(c.ctx(), id); err != nil {
		return nil, err
	}
	return deliveryView(d), nil
}
