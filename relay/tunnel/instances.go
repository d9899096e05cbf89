package tunnel

import (
	"cmp"
	"context"
	"net"
	"slices"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// Instances lists the connected instances of app, of all apps when it is empty,
// by app and age. What reports say is not in them.
func (r *Registry) Instances(app relay.AppID) []relay.Instance {
	type key struct {
		app        relay.AppID
		name, boot string
	}
	at := map[key]int{}
	var all []relay.Instance
	for _, t := range r.Tunnels() { // oldest first
		if app != "" && t.app != app {
			continue
		}
		h := t.sess.Hello()
		k := key{t.app, h.Instance, h.BootID}
		i, known := at[k]
		if !known {
			i = len(all)
			at[k] = i
			all = append(all, relay.Instance{
				App: t.app, Name: h.Instance, BootID: h.BootID, Since: t.since, Draining: true,
				Platform: h.Platform, Process: h.Process, Release: h.Release, Commit: h.Commit, Region: h.Region, Agent: h.Agent,
			})
		}
		in := &all[i]
		in.Tunnels++
		in.InFlight += t.InFlight()
		in.Draining = in.Draining && t.current() >= draining
		if state, why := t.AppState(); in.State != protocol.StateReady {
			in.State, in.Why = state, why
		}
	}
	slices.SortStableFunc(all, func(a, b relay.Instance) int {
		return cmp.Or(cmp.Compare(a.App, b.App), a.Since.Compare(b.Since))
	})
	return all
}

// OpenInstance starts a stream to one instance of app and waits until its agent
// has accepted it. Unlike Open it asks nothing of the app: an instance that is
// starting, failed or draining is asked all the same. boot may be empty: then it
// is the latest one of that name. A stream counts against the app's memory as any
// other. NotFound says that no such instance is connected.
func (r *Registry) OpenInstance(ctx context.Context, app relay.AppID, instance, boot string, o protocol.Open) (net.Conn, error) {
	t := r.tunnelOf(app, instance, boot)
	if t == nil {
		return nil, relay.Errorf(relay.NotFound, "instance %q of app %s is not connected", instance, app)
	}
	if !r.budgetOf(app).openStream() {
		return nil, relay.Errorf(relay.Overloaded, "app %s has as many streams open as the relay allows it", app)
	}
	t.inFlight.Add(1)
	s, err := t.sess.Open(ctx, o)
	if err == nil {
		if err = s.AwaitReply(ctx); err == nil {
			return &counted{Stream: s, release: func() { r.release(t) }}, nil
		}
		s.Close()
	}
	r.release(t)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, translate(err, app)
}

// tunnelOf is the tunnel of an instance that has the least to do, those that are
// on their way out last; nil when there is none.
func (r *Registry) tunnelOf(app relay.AppID, instance, boot string) *Tunnel {
	var found []*Tunnel
	for _, t := range r.Tunnels() {
		if t.app == app && t.Instance() == instance && t.current() < gone {
			found = append(found, t)
		}
	}
	if boot == "" && len(found) > 0 {
		boot = found[len(found)-1].sess.Hello().BootID // the youngest
	}
	found = slices.DeleteFunc(found, func(t *Tunnel) bool { return t.sess.Hello().BootID != boot })
	if len(found) == 0 {
		return nil
	}
	return slices.MinFunc(found, func(a, b *Tunnel) int {
		return cmp.Or(cmp.Compare(a.current(), b.current()), cmp.Compare(a.InFlight(), b.InFlight()))
	})
}
