// Package egress carries the calls of all apps to the outside: tunnels and requests
// that agents open streams for. It judges each by the app's policy, dials, moves the
// bytes, keeps every app to its limits, and writes what happened. What may leave it is
// told by a function (package policy decides), where the names lead by package
// outbound. It starts no listener and knows no manifest.
//
//	Egress.ServeTunnel   a stream of protocol.KindEgress, in its caller's goroutine
//	Egress.ServeHTTP     a stream of protocol.KindEgressHTTP: request after request
//	Egress.TakeFlows     a stream of protocol.KindFlows: calls that an agent made itself
//	Egress.Cut           ends what an emergency deny covers, at once
//	Egress.Run           stores sums each second, gives back what nobody uses
//	Egress.Explain, Recent, Watch, Targets, Usage, WriteMetrics
//
// Every call is a call value from begin to finish, whatever becomes of it. DESIGN.md
// has the order of decisions, what is cut when, and the bounds of memory.
//
// The one rule to know: not a byte of an app goes to its destination before all has
// been judged that can be: the target before its name is looked up, the address before
// it is dialed, the TLS hello before it is passed on. And no call ends without its
// line in the log: started = logged + in flight, at every moment.
package egress
