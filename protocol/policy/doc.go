// Package policy decides which calls of an app may leave, and says why. It is pure:
// it looks nothing up, dials nothing and knows no clock but the one it is given, so
// that the relay and the agent beside the app come to the same decision.
//
//	Target    where a call wants to go, parsed once, by one strict function
//	Policy    what one app may do: the manifest's lines for it, and what holds for all
//	Decide    Target → Decision, before any name is looked up
//	CheckAddr the looked-up address → Decision, before it is dialed
//	CheckHello the first bytes of a tunnel → Decision, before they are passed on
//	Refusal   what the app is told
//
// The one rule to know: the name judged is the name that is looked up, the address
// judged is the address that is dialed, and the name in the TLS hello is the name
// judged. Nothing is parsed or looked up twice.
package policy
