// Package run starts the app as a child of the agent and stays out of its way:
// the app must behave as if nobody had wrapped it.
//
//	Command.Run
//	├─ start        argv verbatim, ChildEnv, own process group
//	├─ started      OnStart
//	├─ supervise    until the child has exited
//	│  ├─ forward   a signal, to the whole group
//	│  ├─ beginStop SIGTERM or the end of ctx: OnStop ─► SIGTERM to the group ─► SIGKILL before the grace ends
//	│  ├─ interrupt SIGINT: forwarded; the second one kills
//	│  └─ adopter   reaps the orphans of the whole container, where that is our duty
//	├─ reap         the child's status, which becomes our own
//	├─ ended        OnExit: how it ended, in full
//	├─ sweep        whatever the child left in its group, then the adopted orphans
//	└─ outputs.wait the last bytes it wrote
//
// Exec replaces the agent by the app for good, and WaitPort tells when the app
// accepts connections.
//
// What it does not do: it never restarts the app, does not interpret its output,
// knows nothing of the relay or of platforms, and does not call signal.Notify (but for
// SIGCHLD, which is nobody else's, where it has orphans to look after); the caller hands
// it the signals, and the grace of the place it runs in.
//
// The one rule to know: only the goroutine of Run signals the child's group, and
// only while somebody is in it. The group's number cannot be given to a stranger until
// the child is reaped, nor after that while a member remains; so the child is reaped
// by the same goroutine, and the group is looked at before it is signalled again. Orphans
// are signalled and reaped by it too, for the same reason.
package run
