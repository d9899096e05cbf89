// Package bridge passes TCP connections on to the app, byte for byte. It is what
// stands on the platform's port where the app does not: by choice (--front), or
// because the app listens in the wrong place (--rescue).
//
//	Listen, ListenRescue   bind, so that a port that is taken is told at once
//	Bridge.Run
//	└─ accept              as long as there is room for more
//	   └─ carry            dial the target ─► join
//	      └─ half ×2       copy one direction; in the kernel on Linux (splice)
//	Bridge.Drain           accept no more; what is under way ends by itself, or with ctx
//
// It reads and changes nothing. The end of one direction is passed on as the end of that
// direction, and a reset as a reset, so that neither side takes a broken transfer for a
// complete one.
//
// What it cannot do: the app sees the connections come from us, and the client's
// address is lost to it. Behind a platform's router that is no loss, because there the
// peer is the router anyway and the client stands in X-Forwarded-For; the bridge adds
// nothing to that. And a client is connected before the app is, so an app that takes no
// connection shows as a reset and not as "connection refused".
//
// The one rule to know: bind only when the app is ready. From the first moment on
// platforms take an open port for a living app.
package bridge
