// Package relay holds the relay's nouns: apps, endpoints, events, deliveries,
// tokens, the manifest that declares them, the interfaces of the store that
// keeps them, and the pure decisions about them.
//
// It runs nothing: no goroutine, no socket, no file. Machinery lives in the
// packages below it (relay/inbox, relay/tunnel, relay/ingress, ...), which
// never import one another; relay/node alone knows them all and hands the parts
// to each other. What a decision needs (time, randomness) is passed in, so that
// every rule here is a table in a test.
package relay
