package admin

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/relay"
)

// knows refuses an app that is not there. "" is all apps.
func (s *Server) knows(ctx context.Context, app relay.AppID) error {
	if app == "" {
		return nil
	}
	known, err := s.cfg.Known(ctx, app)
	if err == nil && !known {
		err = relay.Errorf(relay.NotFound, "there is no app %s: it is not in the manifest, and no agent of it was ever connected", quoted(string(app)))
	}
	return err
}

// instances lists what is connected of app, by app, name and age.
func (s *Server) instances(app relay.AppID) []relay.Instance {
	list := slices.Clone(s.cfg.Agents.Instances(app))
	slices.SortFunc(list, func(a, b relay.Instance) int {
		return cmp.Or(cmp.Compare(a.App, b.App), cmp.Compare(a.Name, b.Name), a.Since.Compare(b.Since), cmp.Compare(a.BootID, b.BootID))
	})
	return list
}

func (s *Server) listInstances(c *call) (any, error) {
	if err := s.knows(c.ctx(), c.app); err != nil {
		return nil, err
	}
	list := api.InstanceList{Instances: []api.Instance{}}
	for _, i := range s.instances(c.app) {
		list.Instances = append(list.Instances, instanceView(i))
	}
	return list, nil
}

func instanceView(i relay.Instance) api.Instance {
	view := api.Instance{
		App: string(i.App), Instance: i.Name, BootID: i.BootID,
		Platform: i.Platform, Process: i.Process, Release: i.Release, Commit: i.Commit, Region: i.Region, Agent: i.Agent,
		Since: i.Since.UTC(), Tunnels: i.Tunnels, Draining: i.Draining, InFlight: i.InFlight,
		State: string(i.State), Why: i.Why, Findings: i.Findings,
	}
	if i.Vitals != nil {
		v := *i.Vitals
		v.At = jsonTime(v.At)
		view.Vitals = &v
	}
	return view
}

// jsonTime is at as JSON can have it: an agent may say any year.
func jsonTime(at time.Time) time.Time {
	at = at.UTC()
	if at.Year() < 1 || at.Year() > 9999 {
		return time.Time{}
	}
	return at
}

func (s *Server) listLastWords(c *call) (any, error) {
	if err := s.knows(c.ctx(), c.app); err != nil {
		return nil, err
	}
	all, err := s.cfg.Store.LastWords(c.ctx(), relay.LastWordsFilter{
		App: c.app, Instance: c.query.text(paramInstance.name), Limit: c.query.number("limit", 0),
	})
	if err != nil {
		return nil, err
	}
	list := api.LastWordsList{LastWords: []api.LastWords{}}
	for _, w := range all {
		list.LastWords = append(list.LastWords, lastWordsView(w))
	}
	return list, nil
}

func lastWordsView(w relay.LastWords) api.LastWords {
	view := api.LastWords{
		ID: string(w.ID), App: string(w.App), Instance: w.Instance, BootID: w.BootID,
		Platform: w.Platform, Process: w.Process, Release: w.Release, Commit: w.Commit, Region: w.Region,
		StartedAt: w.StartedAt.UTC(), EndedAt: w.EndedAt.UTC(), Exit: w.Exit, Reason: w.Reason, Limit: w.Limit,
		// Never null.
		Lines: append([]protocol.Line{}, w.Lines...), Memory: []api.MemoryPoint{},
		Sockets: append([]protocol.Socket{}, w.Sockets...), Findings: append([]protocol.Finding{}, w.Findings...),
	}
	for _, p := range w.Memory {
		view.Memory = append(view.Memory, api.MemoryPoint(p))
	}
	return view
}
