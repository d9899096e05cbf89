// Package rig runs the product's own binaries for the end-to-end tests: a relay
// on free ports with a data folder of its own, agents beside apps, and clients
// from outside.
//
//	Main         TestMain's body; plays the app when this binary is re-executed
//	StartRelay   postern-relay serve, ready        → Relay
//	Relay.Token  an offline verb on the same data
//	Relay.StartAgent, Relay.StartRun               → Agent, its tunnels open
//	Postern, StartPostern                          the CLI, to its end or watched
//	Process.Tree, SignalEach, KillTree             what a platform does to a container
//	Relay.Client, Relay.Dial                       the outside, above and below HTTP
//	Serve, ServeRaw                                the app, in this process
//	ServeDNS                                       a name server that remembers what it is asked
//	Relay.AwaitPolicy, Flows, Rewrite              calls to the outside
//
// Apps are handlers in the test's own process, so that a test sees what arrived
// without asking. Where a real process is wanted, behind postern run, AppCommand
// is one that hands its connections to such a handler.
//
// The one rule to know: whatever was started is ended by its own pid when the
// test ends, and its log is printed when the test failed.
package rig
