package policy

import "net/netip"

// Cause classifies a refusal where somebody branches on it. Causes are part of the
// public answers and never renamed.
type Cause string

// The causes, each with the HTTP status, the error of RFC 9209 and the SOCKS reply
// that Refusal gives it.
const (
	BadTarget     Cause = "bad_target"            // 400 http_request_error            1  it cannot be read
	Denied        Cause = "denied"                // 403 http_request_denied           2  a line denies it, or none allows it
	Emergency     Cause = "emergency_deny"        // 403 http_request_denied           2
	Undeclared    Cause = "no_policy"             // 403 http_request_denied           2  the manifest says nothing of the app's calls
	Prohibited    Cause = "prohibited_address"    // 403 destination_ip_prohibited     2  private, special, or denied
	SNIMismatch   Cause = "sni_mismatch"          // 403 http_request_denied           2  the TLS hello is for another name
	NotTLS        Cause = "not_tls"               // 403 http_request_denied           2  where TLS is expected
	Loop          Cause = "loop"                  // 508 proxy_loop_detected           2  the relay itself
	RateLimited   Cause = "rate_limited"          // 429 http_request_denied           1  requests a second, or a quota
	TooMany       Cause = "too_many"              // 503 connection_limit_reached      1  open at once
	TooLarge      Cause = "too_large"             // 413 http_request_denied           1  more is uploaded than allowed
	NoSuchName    Cause = "dns_error"             // 502 dns_error                     4
	DNSTimeout    Cause = "dns_timeout"           // 504 dns_timeout                   4
	Refused       Cause = "connection_refused"    // 502 connection_refused            5
	Unreachable   Cause = "unreachable"           // 502 destination_ip_unroutable     3
	DialTimeout   Cause = "connection_timeout"    // 504 connection_timeout            4
	Cut           Cause = "connection_terminated" // 502 connection_terminated       1
	TLSFailed     Cause = "tls_error"             // 502 tls_certificate_error         1  of a request that is upgraded
	AnswerTimeout Cause = "answer_timeout"        // 504 http_response_timeout         1
	RelayLost     Cause = "relay_unreachable"     // 502 proxy_internal_response       1  the agent has no tunnel
	Unavailable   Cause = "unavailable"           // 503 proxy_internal_error          1  the relay is stopping, or out of memory
)

// Call is what is judged.
type Call struct {
	Target Target
	// Of a Request.
	Method string
	Path   string // as the client sent it, without the query
}

// Decision is the answer for one call.
type Decision struct {
	Allow bool
	Would bool  // in report mode: what enforce would have refused, for Reason
	Cause Cause // why not; "" when allowed
	// Where is the line that decided: of the manifest, of an exception, or "default",
	// "mode", "addresses", "names".
	Where  string
	Line   int
	Reason string // one sentence
	Rule   *Rule  // the allow line that fits, nil when none; the Policy's, not to be changed
	// Of a tunnel that is allowed: with TLS set it must begin with a TLS hello, which
	// CheckHello judges. Without, a hello is judged where there is one, unless SNI is
	// SNIOff.
	SNI SNIMode
	TLS bool

	advice advice     // of a refusal
	addr   netip.Addr // of adviceHole
}
