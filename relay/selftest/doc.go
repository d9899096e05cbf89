// Package selftest proves what the relay promises of webhooks, by killing it: a
// 2xx means that the event is stored and will be delivered at least once.
//
//	Run        a relay of its own under load, killed again and again, then judged
//	Load       senders with signed webhooks         → Ledger.Send, Ledger.Answer
//	App        the app that gets the deliveries     → Ledger.Observe
//	Journal    Observe for an app that is killed itself
//	Relay      the relay as a child process; Process, any other
//	Ledger     everything that happened, in order   → Ledger.Check
//
// Run is what "postern-relay selftest --kill" does. The end-to-end tests use the
// parts, and kill more than the relay.
//
// The one rule to know: a fact is in the ledger before anybody can act on it. A
// send is written down before its first byte leaves, a delivery before the app
// answers it. So nothing that happened is missing, whoever dies in between.
//
// It cannot prove what a power cut does: what a killed process has handed to the
// kernel is still written to the disk, synced or not.
package selftest
