// Package protocol is the wire between an agent and a relay: the one WebSocket
// an agent dials, the handshake on it, the streams inside it and the messages
// that start, watch and end them. SPEC.md beside this file says the same without
// Go, exactly enough to write an agent in another language.
//
// It knows bytes, not policy: which app a session speaks for, where a stream is
// carried and who may open one is decided by the packages above it.
//
// Life of a session, seen from both ends:
//
//	agent                                   relay
//	Dial                                    (HTTP upgrade: token checked by the caller)
//	  dialer (proxy, TLS) → framer            Accept
//	  websocket upgrade  ───────────────▶       websocket.Accept over framer
//	  Hello              ── control ────▶       check versions, identity
//	                     ◀─ control ─────       Welcome (or Refuse, then close)
//	Session.Run                             Session.Run
//	  serveStream   → Handler.Stream          serveStream → Handler.Stream
//	  readControl   → ping, drain, ...        readControl
//	  beat          → ping, dead peer         beat
//	Session.Open    ── Open, bytes ─────▶     (either side may open)
//	                ◀─ Reply, bytes ────
//	Session.Drain   ── drain ───────────▶     no new streams towards us
//	                ◀─ drained ─────────
//	Session.Close   ── close ───────────▶
//
// The one rule to know: whoever got a Stream must Close or Reset it. Close is
// not a half-close: it tells the peer that nobody reads any more. To end one
// direction, CloseWrite.
//
// Bytes move like this, and nothing on the way waits for a timer:
//
//	Stream.Write → muxStream → wsConn.writeFrame (append to the gather buffer)
//	  wsConn.send (by whoever finds nobody sending): everything gathered
//	    → framer.writeMessage: header, mask, one write to the socket
//	mux.run → wsConn.next → frameReader → muxStream.deliver → Stream.Read
//
// Under light load a frame leaves at once; under load many leave together.
package protocol
