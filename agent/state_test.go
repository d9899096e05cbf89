package agent

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol"
)

// until reads states until want comes, and fails when it does not, or when
// another comes behind it.
func until(t *testing.T, s *session, want protocol.AppState) {
	t.Helper()
	for {
		if got := within(t, s.states, "the state "+string(want)); got == want {
			return
		}
	}
}

func TestTheStateReachesEveryTunnelAndLaterOnesToo(t *testing.T) {
	g := newGate(t, protocol.Welcome{HeartbeatMS: 20000}, nil)
	a, _ := g.start(t.Context(), Config{Tunnels: 2, Hello: protocol.Hello{State: protocol.StateStarting}})
	first, second := g.next(), g.next()
	for _, s := range []*session{first, second} {
		if s.Hello().State != protocol.StateStarting {
			t.Errorf("hello says %q", s.Hello().State)
		}
	}
	a.SetState(protocol.StateReady, "")
	until(t, first, protocol.StateReady)
	until(t, second, protocol.StateReady)
	a.SetState(protocol.StateFailed, "gone")
	first.Close(protocol.CodeReset, "test")
	again := g.next()
	if again.Hello().State != protocol.StateFailed {
		t.Errorf("a later tunnel says %q in its hello", again.Hello().State)
	}
	until(t, again, protocol.StateFailed)
}

// Whatever happens at the same time, the last word is the latest.
func TestTheLastStateToldIsTheLatest(t *testing.T) {
	g := newGate(t, protocol.Welcome{HeartbeatMS: 20000}, nil)
	a, _ := g.start(t.Context(), Config{Tunnels: 1})
	s := g.next()
	all := []protocol.AppState{protocol.StateStarting, protocol.StateReady, protocol.StateFailed}
	for i := range 1000 {
		a.SetState(all[i%3], "")
	}
	a.SetState(protocol.StateNone, "")
	until(t, s, protocol.StateNone)
	for { // the last word may come twice
		select {
		case got := <-s.states:
			if got != protocol.StateNone {
				t.Errorf("%s was told after the last word", got)
			}
			continue
		case <-time.After(20 * time.Millisecond):
		}
		break
	}
}

func TestOpenFindsATunnelThatKnowsTheKind(t *testing.T) {
	g := newGate(t, protocol.Welcome{HeartbeatMS: 20000}, nil)
	a, _ := g.start(t.Context(), Config{Tunnels: 1})
	g.next()
	within(t, a.Ready(), "a tunnel")
	_, err := a.Open(t.Context(), "later", protocol.Open{Kind: "later"})
	if protocol.CodeOf(err) != protocol.CodeUnsupported {
		t.Errorf("a feature that the relay lacks: %v", err)
	}
	// The gate serves no streams, and says so.
	if _, err = a.Open(t.Context(), protocol.FeatureReport, protocol.Open{Kind: protocol.KindReport}); protocol.CodeOf(err) != protocol.CodeUnsupported {
		t.Errorf("a stream that the relay refuses: %v", err)
	}
	a.Close()
	if _, err = a.Open(context.Background(), protocol.FeatureReport, protocol.Open{Kind: protocol.KindReport}); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("without a tunnel: %v", err)
	}
	if !slices.Contains(protocol.Features(), protocol.FeatureReport) {
		t.Error("reports are no feature any more")
	}
}
