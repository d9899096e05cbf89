// Package admin is the relay's HTTP API under /api/v1: what operators and
// developers look at and steer, from the command line, from programs and from a
// browser. Its JSON is that of protocol/api.
//
//	Server.ServeHTTP   request id, panics
//	  routes           the whole API in one table
//	  funnel           authenticate → authorize → query → body → handler
//	    handler        (value, error); it writes nothing itself
//	  answer           JSON, a file, or a stream; relay.WriteError for errors
//
// It keeps no record and delivers nothing: events are in the store, work is the
// inbox's, tokens are judged by a function it is given. What may leave the relay is
// decided, signed and written into the audit log by Policies, and the calls
// themselves are those of Calls; here is only who may ask for what.
//
// The one rule to know: no handler shows an event of the store as it is. All of
// them, lists, exports and streams, go through Server.sight, which takes out what
// the endpoint hides. That includes what can be found: a search never answers
// for a value that its asker may not see.
package admin
