// Package dns is the relay's outbound.Resolver: it asks recursive name servers for the
// addresses of a name and says how long they hold. It caches nothing, validates no
// signatures and knows no search domains and no hosts file.
//
//	Lookup     A and AAAA at the same time, one answer
//	  ask      one question to one server after the other
//	    exchange  UDP; TCP when the answer did not fit
//	    matches   an answer counts only with the question's own id, name and type
//	  addresses   along the chain of CNAMEs, with the smallest TTL on it
//
// The package uses github.com/miekg/dns for the format of messages and of resolv.conf.
// The standard library's resolver tells no TTL, without which a cache either keeps an
// address that its owner has moved, or asks for every call. golang.org/x/net's
// dnsmessage reads messages too, but leaves all around them to us: framing over TCP,
// names as text, resolv.conf, and a server for the tests. Of miekg's client only the
// connection is used: its Exchange takes the first message with the right id for the
// answer, whatever the question in it, and gives up on one that cannot be parsed, so
// that whoever can send us packets could end a lookup.
//
// The one rule to know: a message that does not fit the question is as if it had not
// come; we wait on for the right one. Every question has a random id and, by a socket
// of its own, a random port.
package dns
