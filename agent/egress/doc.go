// Package egress is the app's way out: a proxy on loopback that the app finds in its
// environment. It decides by the relay's policy what may leave, and hands it to the
// relay as a stream of the tunnel that is there already.
//
//	Proxy.Run
//	  accept → serveConn          the first byte: 5 is SOCKS5, all else HTTP
//	    readConnect, readSOCKS    → tunnel
//	    net/http                  → request (absolute form), or tunnel
//	  forward.accept              → tunnel
//	tunnel    parse → own address? → Decide → refuse | relayTunnel | directTunnel
//	request   parse → own address? → Decide → refuse | a stream of requests | direct
//	ServePolicy                   the relay sends a policy: take it, cut what it ends
//	journal                       tells the relay of calls that it has not seen
//	Environment                   what the app is told
//
// Where a rule does not say otherwise, a tunnel that is allowed here is answered
// before the relay has dialed (an early answer): the app's first bytes ride behind the
// Open. The relay judges again. When it refuses, or cannot connect, the app's
// connection is reset, so that it looks like what it is.
//
// The one rule to know: a target is parsed once, by package policy, out of the request
// line as it was sent. Nothing here looks at a Host field or at a URL that somebody
// else has parsed.
package egress
