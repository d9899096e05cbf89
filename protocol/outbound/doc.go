// Package outbound opens connections to the outside world, for calls that package
// policy has let through. The relay uses it, and the agent where it dials itself. It
// decides nothing by itself, keeps no pool and knows nothing of streams.
//
//	Dialer.Dial      Target → connection
//	  Resolver.Lookup    the one lookup; Cache remembers, System asks
//	  Compiled.CheckAddr every address, at every dial, also of an answer out of the cache
//	  race               Happy Eyeballs (RFC 8305) over the addresses that passed
//	  explain            why none of them could be reached → Refusal
//	ReadFirst        the first bytes of a tunnel, for Compiled.CheckHello
//
// The one rule to know: a name is looked up once for a dial, and the addresses that
// were checked are the ones that are dialed. No code below the check knows the name.
package outbound
