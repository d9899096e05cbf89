package agent

import (
	"errors"
	"time"

	"github.com/posternhq/postern/agent/proc"
	"github.com/posternhq/postern/agent/run"
	"github.com/posternhq/postern/protocol"
)

var errNotRunning = errors.New("the app does not run")

// sample is what the app's processes use at this moment.
func (w *wrapper) sample() (protocol.Vitals, error) {
	pid, exit := w.child()
	if pid == 0 || exit != nil {
		return protocol.Vitals{}, errNotRunning
	}
	tree, err := proc.Tree(pid)
	if err != nil {
		return protocol.Vitals{}, err
	}
	v := protocol.Vitals{At: time.Now(), Limit: proc.MemoryLimit(), Processes: len(tree)}
	for _, p := range tree {
		v.RSS += p.RSS
		v.Threads += p.Threads
		v.CPU += p.CPU.Milliseconds()
	}
	return v, nil
}

// sockets are the app's TCP sockets at this moment. They cost several times as much
// as a sample: the kernel walks the tables of the whole container.
func (w *wrapper) sockets() []protocol.Socket {
	pid, exit := w.child()
	if pid == 0 || exit != nil {
		return nil
	}
	tree, err := proc.Tree(pid)
	if err != nil {
		return nil
	}
	list, _ := proc.Sockets(tree) // none when they cannot be read
	var out []protocol.Socket
	for _, s := range list[:min(len(list), protocol.MaxSockets)] {
		socket := protocol.Socket{PID: s.PID, State: s.State, Local: s.Local.String()}
		if s.Remote.IsValid() && s.Remote.Port() != 0 {
			socket.Remote = s.Remote.String()
		}
		out = append(out, socket)
	}
	return out
}

// exitOf is how the app ended, for the relay.
func exitOf(e run.Exit) protocol.Exit {
	after := e.Ended.Sub(e.Began)
	if after < time.Minute {
		after = after.Round(10 * time.Millisecond)
	}
	return protocol.Exit{
		At: e.Ended, Code: e.Code, Signal: e.Signal, Asked: e.Asked,
		Reason: e.Reason() + ", after " + after.Round(time.Millisecond).String(),
	}
}
