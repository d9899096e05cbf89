package agent

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/posternhq/postern/agent/proc"
	"github.com/posternhq/postern/protocol"
)

const (
	// An app that is late is watched a little longer than its platform would, to see
	// how much time it needs.
	watchAtLeast = 10 * time.Second
	watchBeyond  = 5 * time.Second

	// repeatAfter is when a platform that repeats its signal does so here.
	repeatAfter = time.Second
)

// parting is how a stop went.
type parting struct {
	took  time.Duration  // from the signal until the app was gone, or until the watch ended
	late  bool           // that was after the platform's grace
	never bool           // it was still there when the watch ended
	first proc.Process   // the first process, as it was before the stop
	below []proc.Process // all others before the stop

	// Where a container ends with its first process: who still ran then, and whether
	// one of them is a server.
	left    []proc.Process
	serving bool
}

// untold reports whether the app ended, or did not end, because nobody told it.
func (p *parting) untold() bool {
	return p.serving || isShell(p.first) && len(p.below) > 0 && (p.never || len(p.left) > 0)
}

// stop ends the app as its platform does and adds what that has shown.
func (r *rehearsing) stop(ctx context.Context) error {
	r.actor.mu.Lock()
	r.actor.asked = true
	r.actor.mu.Unlock()
	p, err := r.part(ctx)
	if err != nil {
		return err
	}
	r.result.StopMS, r.result.StopSignal = p.took.Milliseconds(), signalName(r.As.Signal)
	r.result.Obeyed = !p.late && !p.never && (r.As.Broadcast || !p.untold())
	// Of an app with several processes, or behind a shell, the first one's end says
	// nothing about the server.
	_, exit := r.actor.state()
	r.result.Untrapped = exit != nil && exit.Signal == r.result.StopSignal && len(p.below) == 0
	r.judge(p)
	return nil
}

// part sends the signals and watches.
func (r *rehearsing) part(ctx context.Context) (parting, error) {
	var p parting
	for _, m := range r.actor.members() {
		if m.PID == r.actor.pid {
			p.first = m
		} else {
			p.below = append(p.below, m)
		}
	}
	grace := r.As.Grace
	watch := r.Watch
	if watch <= 0 {
		watch = max(watchAtLeast, grace+watchBeyond)
	}
	began, repeated := time.Now(), !r.As.Repeats
	r.actor.signal(r.As.Signal, r.As.Broadcast)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return p, ctx.Err()
		case <-tick.C:
		}
		p.took = time.Since(began)
		if !repeated && p.took >= repeatAfter {
			repeated = true
			r.actor.signal(r.As.Signal, r.As.Broadcast)
		}
		if r.actor.ended() {
			left := r.actor.members()
			if len(left) > 0 && !r.As.Broadcast {
				p.left, p.serving, left = left, listensAny(left), nil
			}
			if len(left) == 0 {
				p.late = p.took > grace
				return p, nil
			}
		}
		if p.took >= watch {
			p.late, p.never = true, true
			return p, nil
		}
	}
}

// judge turns what the stop has shown into findings.
func (r *rehearsing) judge(p parting) {
	untold := !r.As.Broadcast && p.untold()
	switch {
	case untold:
		r.replace(r.untoldFinding(p))
	case !p.never:
		// Whatever it looked like, the signal has reached everybody.
		r.drop("PORT18")
	}
	if !untold && p.late {
		r.replace(r.graceFinding(p))
	}
}

func (r *rehearsing) untoldFinding(p parting) protocol.Finding {
	name, sig := p.first.Name, signalName(r.As.Signal)
	between := "a shell"
	if !isShell(p.first) {
		between = name
	}
	behind, outcome := p.below, fmt.Sprintf("did not pass it on for %s", tenths(p.took))
	if len(p.left) > 0 {
		behind, outcome = p.left, fmt.Sprintf("ended after %s and left the app alone", tenths(p.took))
	}
	return protocol.Finding{
		Code: "PORT18", Severity: protocol.SeverityWarning,
		Cause: fmt.Sprintf("%s stands between %s and the app: the app does not hear %s, or not in time, and is killed in the middle of its requests", between, r.As.Says, sig),
		Evidence: fmt.Sprintf("%s went to %s (pid %d), which %s; still running: %s",
			sig, name, p.first.PID, outcome, processList(behind)),
		Fix: "put exec before the app in the shell's command, as in sh -c 'exec node server.js', or leave the shell out",
	}
}

func (r *rehearsing) graceFinding(p parting) protocol.Finding {
	sig := signalName(r.As.Signal)
	f := protocol.Finding{
		Code: "PORT19", Severity: protocol.SeverityWarning,
		Evidence: fmt.Sprintf("after %s it was gone in %s; %s waits %s", sig, tenths(p.took), r.As.Says, graceWords(r.As.Grace)),
	}
	need := (p.took + 2*time.Second).Round(time.Second)
	switch {
	case p.never:
		f.Cause = fmt.Sprintf("the app does not stop when it is told to, and is killed: %s", r.As.AfterStop)
		f.Evidence = fmt.Sprintf("%s after %s still running: %s", tenths(p.took), sig, processList(append([]proc.Process{p.first}, p.below...)))
		f.Fix = fmt.Sprintf("handle %s: take no new connections, finish the open requests, exit", sig)
		return f
	case r.As.Grace == 0:
		f.Cause = fmt.Sprintf("%s gives the app no time to stop: %s", r.As.Says, r.As.AfterStop)
	default:
		f.Cause = fmt.Sprintf("the app needs longer to stop than %s waits: %s", r.As.Says, r.As.AfterStop)
	}
	switch {
	case r.As.GraceKey == "":
		f.Fix = fmt.Sprintf("stop within %s: %s lets nobody have more", r.As.Grace, r.As.Says)
	case r.As.GraceMax > 0 && need > r.As.GraceMax:
		f.Fix = fmt.Sprintf("stop faster, and set %s to its most, %d seconds", r.As.GraceKey, int(r.As.GraceMax.Seconds()))
	default:
		f.Fix = fmt.Sprintf("set %s to at least %d seconds", r.As.GraceKey, int(max(need, 10*time.Second).Seconds()))
	}
	return f
}

// replace puts f in the place of a finding with its code, which was a guess.
func (r *rehearsing) replace(f protocol.Finding) {
	for _, old := range r.result.Findings {
		if old.Code == f.Code && f.Framework == "" {
			f.Framework = old.Framework
			if f.Code == "PORT18" && old.Fix != "" {
				f.Fix = old.Fix // it knows the command
			}
		}
	}
	r.drop(f.Code)
	r.result.Findings = append(r.result.Findings, f)
}

func (r *rehearsing) drop(code string) {
	r.result.Findings = slices.DeleteFunc(r.result.Findings, func(f protocol.Finding) bool { return f.Code == code })
}

// listensAny reports whether one of the processes has a listener.
func listensAny(list []proc.Process) bool {
	sockets, err := proc.Sockets(list)
	return err == nil && slices.ContainsFunc(sockets, proc.Socket.Listens)
}

// isShell reports whether p is one that runs a script, by its name.
func isShell(p proc.Process) bool {
	name := p.Name
	if len(p.Args) > 0 && name == "" {
		name = filepath.Base(p.Args[0])
	}
	return slices.Contains([]string{"sh", "bash", "dash", "ash", "busybox", "zsh", "ksh", "mksh"}, strings.TrimPrefix(name, "-"))
}

// processList names a few processes.
func processList(list []proc.Process) string {
	const most = 4
	var names []string
	for _, p := range list {
		if p.PID == 0 {
			continue
		}
		if len(names) == most {
			names = append(names, fmt.Sprintf("and %d more", len(list)-most))
			break
		}
		if p.PID < 0 { // a group
			names = append(names, p.Name)
			continue
		}
		names = append(names, fmt.Sprintf("%s (pid %d)", p.Name, p.PID))
	}
	return strings.Join(names, ", ")
}

// tenths is a duration as people say it: 0.2 s.
func tenths(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

func graceWords(d time.Duration) string {
	if d == 0 {
		return "not at all"
	}
	return tenths(d)
}
