// Package doctor is the port doctor: it watches the app from beside it and finds
// out why nothing reaches it. "It works on my machine" has some twenty causes on a
// platform, and each of them shows in what the kernel says about the app's sockets
// and processes, in the answer to a connection, or in the environment.
//
// One examination goes like this:
//
//	Doctor.Run → Examine (at 1, 2, 5, 10, 20, 40, 50 s, on changes, when poked)
//	  gather → Sight      the facts: proc.Take, dials, the app's answers, its last lines
//	  judge  → State      ready, starting, failed
//	  checks → findings   one function for each family of codes, facts in, findings out
//
// What touches the world is in world.go and probe.go; all that decides is a pure
// function of a sight, so each mistake can be tested without making it. codes.go is
// the one table of the codes, frameworks.go the one table of frameworks and fixes.
//
// How little the app is bothered: while it boots, the table of sockets is read, and a
// connection is made only when the app is seen to listen. One connection carries a few
// bytes that no health path asked for (see probe.go). Once the app is ready it is never
// dialed again unless the relay's connection failed; that it still listens is one
// readlink every few seconds. Where there is no /proc, it is dialed rarely.
//
// The one rule to know: a finding is given only with proof. What cannot be seen here,
// or may still come right by itself, is silence, never a guess; a correct app yields
// no finding at all. Nothing an app's arguments or environment contain is shown,
// except PORT, addresses, and names of programs: they may carry secrets.
package doctor
