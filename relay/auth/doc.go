// Package auth makes and checks the tokens that agents, developers and
// operators show to the relay: JSON Web Tokens (RFC 7519) signed with Ed25519
// (RFC 8037) by keys in the relay's data folder.
//
// It does not decide what a principal may do to a record, does not write HTTP
// answers and never stores or logs a token. Tokens of other issuers are not
// accepted.
//
// The one rule to know: nothing in a token is believed before its signature
// holds, and nothing in its header ever selects anything but one of our own
// keys by name.
//
//	issue    Issuer.Issue → Keyring.sign → TokenStore.CreateToken
//	check    Verifier.Authorize → Bearer → Verify
//	         Verify → split (size, alphabet, members) → checkHeader (alg, typ, crit, kid)
//	                → Keyring.Public → signature → readClaims
//	                → checkClaims (iss, aud, exp, nbf, iat) → checkReach (scope, sub)
//	                → Revocations
//	revoke   TokenStore.RevokeToken, here or in another process
//	         → Revocations.Run (every second) → Changed → live tunnels are cut
//	rotate   Keyring.Rotate, here or in another process → the folder is read again
//
// Every refusal is a *relay.Error whose cause is a Reason; see ReasonOf.
package auth
