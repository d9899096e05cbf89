package instances

import (
	"fmt"
	"strings"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// Sentences for an agent that said no exit. What is behind the colon is a guess.
const (
	reasonLost = "the agent was lost without a word: killed together with its app (out of memory?), or the network is gone"
	reasonLate = "the agent was lost while it was stopping: killed at the end of the grace period, or the network is gone"
	addStopped = "; the relay stopped before it was certain"
)

// nearLimit is the part of its memory limit at which an app is suspected to have
// been killed for it.
const nearLimit = 0.9

// orderly reports whether e is a stop that was asked for and went well.
func orderly(e protocol.Exit) bool {
	return e.Asked && (e.Code == 0 || e.Code == 128+2 || e.Code == 128+15) // SIGINT, SIGTERM
}

// tidyExit is e as it may be kept.
func tidyExit(e protocol.Exit, now time.Time) *protocol.Exit {
	e.At, e.Signal, e.Reason = tidyTime(e.At, now), clip(e.Signal, maxName), clip(e.Reason, maxReason)
	return &e
}

// words are r's last ones.
func (r *record) words(ended time.Time, exit *protocol.Exit, reason string) relay.LastWords {
	h := &r.hello
	w := relay.LastWords{
		ID: relay.NewLastWordsID(ended), App: r.app, Instance: r.instance, BootID: r.boot,
		Platform: h.Platform, Process: h.Process, Release: h.Release, Commit: h.Commit, Region: h.Region,
		StartedAt: r.started.UTC(), EndedAt: ended.UTC(), Exit: exit, Reason: reason,
		Lines: r.lines, Memory: r.memory, Findings: r.findings,
	}
	if r.vitals != nil {
		w.Limit, w.Sockets = r.vitals.Limit, r.vitals.Sockets
	}
	return w
}

// short is w for an orderly stop.
func short(w relay.LastWords) relay.LastWords {
	w.Lines, w.Memory, w.Sockets, w.Findings = nil, nil, nil, nil
	return w
}

// exitReason is one sentence on e.
func (r *record) exitReason(e *protocol.Exit) string {
	reason := e.Reason
	switch {
	case reason != "":
	case e.Signal != "":
		reason = "the app was ended by " + e.Signal
	default:
		reason = fmt.Sprintf("the app exited with code %d", e.Code)
	}
	killed := e.Signal == "SIGKILL" || e.Code == 128+9
	if _, near := r.memoryHint(); killed && near && !strings.Contains(reason, "memory") {
		reason += "; out of memory, it seems"
	}
	return r.withMemory(reason, killed)
}

// lostReason is one sentence on an agent that did not come back.
func (r *record) lostReason() string {
	if r.leaving {
		return r.withMemory(reasonLate, true)
	}
	return r.withMemory(reasonLost, true)
}

// withMemory adds what the memory was, where that may explain something.
func (r *record) withMemory(reason string, always bool) string {
	hint, near := r.memoryHint()
	if hint == "" || !always && !near {
		return reason
	}
	return reason + "; memory was at " + hint
}

// memoryHint is the last sample beside its limit, and whether the last ones came
// near it.
func (r *record) memoryHint() (hint string, near bool) {
	if r.vitals == nil || r.vitals.Limit == 0 || len(r.memory) == 0 {
		return "", false
	}
	last := r.memory[max(len(r.memory)-3, 0):]
	var most int64
	for _, p := range last {
		most = max(most, p.RSS)
	}
	limit := r.vitals.Limit
	return fmt.Sprintf("%s of %s", mebibytes(most), mebibytes(limit)), float64(most) >= nearLimit*float64(limit)
}

func mebibytes(n int64) string { return fmt.Sprintf("%d MiB", n>>20) }
