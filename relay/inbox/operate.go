package inbox

import (
	"context"

	"github.com/posternhq/postern/relay"
)

// Requeue makes a dead or cancelled delivery ready again, now. Errors are those
// of relay.EventStore.RequeueDelivery.
func (b *Inbox) Requeue(ctx context.Context, id relay.DeliveryID) (relay.Delivery, error) {
	d, err := b.cfg.Store.RequeueDelivery(ctx, id, b.cfg.Now())
	if err == nil {
		b.usage.wait(d.App, 1)
		b.hint(laneOf(d), d.NextAt)
	}
	return d, err
}

// CancelDelivery gives a delivery up that nobody works on. What waited behind it
// for the order's sake goes on. Errors are those of
// relay.EventStore.CancelDelivery.
func (b *Inbox) CancelDelivery(ctx context.Context, id relay.DeliveryID) (relay.Delivery, error) {
	d, err := b.cfg.Store.CancelDelivery(ctx, id)
	if err == nil {
		b.usage.wait(d.App, -1)
		b.hint(laneOf(d), b.cfg.Now())
	}
	return d, err
}
