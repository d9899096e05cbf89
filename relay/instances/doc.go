// Package instances keeps what agents report about the apps beside them: the
// latest lines, samples of memory and sockets, the port doctor's findings. When an
// instance ends, or is lost, it makes the last words of that and has them stored.
//
//	Tracker.Serve     one stream of protocol.KindReport, in its caller's goroutine
//	├── open          a record for the boot; a newer stream takes an older one's place
//	├── read          ReadReport, metered, until the exit, the end or a limit
//	├── ended         with an exit: Save, then FIN, which tells the agent that it
//	│                 is kept
//	└── lost          without one: the record waits for the agent to come back
//	Tracker.Run       judges what waits: after Grace without a stream and without a
//	                  tunnel of that boot, the instance was lost, and Save keeps that
//
// It starts no goroutines. Serve returns with its stream and Run with its context;
// whoever calls them waits for them. It knows no tunnels: it is told of them by a
// function.
//
// What is kept of an end. Crashes, kills, losses and exits that nobody asked for
// are kept whole, a worker's exit with code 0 among them: a platform starts such
// an app again, so it is news. An orderly stop (asked for, and code 0, 130 or 143)
// happens at every deploy; kept, it would push what matters out of the store. It
// is kept only when it leaves the app without any agent, because then somebody may
// ask why nothing is there, and short: no lines, no memory, no sockets.
//
// When the relay stops, end Run's context first, before agents are told to leave.
// What waits then and has no tunnel is saved, with a word that the relay stopped
// before it was certain; should the agent be alive after all, its real end replaces
// that. Streams that end from then on without an exit end because of the relay:
// they leave nothing behind, and the agents report to the relay that comes next.
//
// The one rule to know: an agent is not trusted with memory, time or the store. A
// record is at most some 128 KiB, an app has at most maxPerApp of them, a stream
// is read at a bounded rate, a message has to arrive whole within a minute, and an
// app's last words are saved at a bounded rate. Times that order anything are the
// relay's own.
package instances
