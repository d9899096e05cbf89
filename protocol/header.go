package protocol

// Names of HTTP headers that Postern sets. Requests from outside lose every
// header that begins with HeaderPrefix before anything else happens.
const (
	HeaderPrefix     = "Postern-"
	HeaderEventID    = "Postern-Event-Id"
	HeaderDeliveryID = "Postern-Delivery-Id"
	HeaderAttempt    = "Postern-Attempt"
	HeaderEndpoint   = "Postern-Endpoint"
	HeaderReceivedAt = "Postern-Received-At" // RFC 3339 with nanoseconds, UTC
	HeaderVerified   = "Postern-Verified"    // "true" or "false"
	HeaderRequestID  = "Postern-Request-Id"  // on every request to the app and every error answer

	// HeaderResignSecret is the one header of this family that the relay takes from
	// outside, and only in its own API: the secret to sign streamed events with.
	HeaderResignSecret = "Postern-Resign-Secret"
	// HeaderAuthorization is an operator's token on a request for an app, which may
	// have an Authorization of its own. The app does not get it.
	HeaderAuthorization = HeaderPrefix + "Authorization"
)
