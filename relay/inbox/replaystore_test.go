package inbox

import (
	"context"
	"slices"
	"time"

	"github.com/posternhq/postern/relay"
)

// step is one call of StepReplay.
type step struct {
	at   time.Time
	made int
}

// replayLocked finds a replay and counts what became of its deliveries.
func (s *memStore) replayLocked(id relay.ReplayID) (*relay.Replay, error) {
	i := slices.IndexFunc(s.replays, func(r relay.Replay) bool { return r.ID == id })
	if i < 0 {
		return nil, relay.Errorf(relay.NotFound, "there is no replay %s", id)
	}
	r := &s.replays[i]
	r.Made, r.Done, r.Dead, r.Cancelled = 0, 0, 0, 0
	for _, d := range s.deliveries {
		if d.Replay != id {
			continue
		}
		r.Made++
		switch d.State {
		case relay.DeliveryDone:
			r.Done++
		case relay.DeliveryDead:
			r.Dead++
		case relay.DeliveryCancelled:
			r.Cancelled++
		}
	}
	return r, nil
}

func (s *memStore) Replay(ctx context.Context, id relay.ReplayID) (relay.Replay, error) {
	return s.onReplay(ctx, id, func(*relay.Replay) error { return nil })
}

func (s *memStore) Replays(ctx context.Context, _ relay.AppID) ([]relay.Replay, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.replays), s.refuse(ctx)
}

func (s *memStore) StartReplay(ctx context.Context, id relay.ReplayID) (relay.Replay, error) {
	return s.onReplay(ctx, id, func(r *relay.Replay) error {
		if r.State != relay.ReplayPlanned {
			return relay.Errorf(relay.Conflict, "it is %v", r.State)
		}
		r.State = relay.ReplayRunning
		return nil
	})
}

func (s *memStore) CancelReplay(ctx context.Context, id relay.ReplayID) (relay.Replay, error) {
	return s.onReplay(ctx, id, func(r *relay.Replay) error {
		r.State = relay.ReplayCancelled
		for _, d := range s.deliveries {
			if d.Replay == id && d.State == relay.DeliveryReady {
				d.State = relay.DeliveryCancelled
			}
		}
		return nil
	})
}

// StepReplay replays the event that the replay's filter names first, as often as
// is planned.
func (s *memStore) StepReplay(ctx context.Context, id relay.ReplayID, limit int, now time.Time) (relay.Replay, error) {
	return s.onReplay(ctx, id, func(r *relay.Replay) error {
		if r.State != relay.ReplayRunning {
			return relay.Errorf(relay.Conflict, "it is %v", r.State)
		}
		n := min(limit, r.Planned-r.Made)
		for range n {
			d := relay.Delivery{
				ID: relay.NewDeliveryID(now), Event: r.Filter.IDs[0], App: r.App, Endpoint: testEndpoint,
				Trigger: relay.TriggerReplay, Replay: id, NextAt: now,
			}
			s.deliveries = append(s.deliveries, &d)
		}
		if s.steps = append(s.steps, step{now, n}); r.Made+n == r.Planned {
			r.State = relay.ReplayDone
		}
		return nil
	})
}

func (s *memStore) onReplay(ctx context.Context, id relay.ReplayID, what func(*relay.Replay) error) (relay.Replay, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refuse(ctx); err != nil {
		return relay.Replay{}, err
	}
	r, err := s.replayLocked(id)
	if err == nil {
		err = what(r)
	}
	if err != nil {
		return relay.Replay{}, err
	}
	r, err = s.replayLocked(id)
	return *r, err
}
