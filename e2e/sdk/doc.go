// Package sdk holds relay/provider against the senders' own libraries for Go:
// what they sign must pass, what they refuse must be refused, and what the relay
// signs anew must pass them hours later. It has nothing but tests, in the module
// of the end-to-end tests, so that no sender's library becomes a dependency of
// the product.
package sdk
