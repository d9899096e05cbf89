package policy

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
)

// Refusal is what the app is told: over HTTP, in a SOCKS reply, or in the answer to a
// stream. It is never secret.
type Refusal struct {
	Cause      Cause  `json:"code"`
	Message    string `json:"message"` // one sentence
	Where      string `json:"rule,omitempty"`
	Line       int    `json:"line,omitempty"`
	Suggestion string `json:"suggestion,omitempty"` // an edit of the manifest that would allow it
	Flow       string `json:"flow_id,omitempty"`
	RetryAfter int    `json:"retry_after,omitempty"` // seconds; of 429 and 503
}

// answers is the table of causes. The errors are those of RFC 9209, section 2.3, the
// replies those of RFC 1928, section 6.
var answers = map[Cause]struct {
	status int
	proxy  string
	socks  byte
}{
	BadTarget:     {http.StatusBadRequest, "http_request_error", 1},
	Denied:        {http.StatusForbidden, "http_request_denied", 2},
	Emergency:     {http.StatusForbidden, "http_request_denied", 2},
	Undeclared:    {http.StatusForbidden, "http_request_denied", 2},
	Prohibited:    {http.StatusForbidden, "destination_ip_prohibited", 2},
	SNIMismatch:   {http.StatusForbidden, "http_request_denied", 2},
	NotTLS:        {http.StatusForbidden, "http_request_denied", 2},
	Loop:          {http.StatusLoopDetected, "proxy_loop_detected", 2},
	RateLimited:   {http.StatusTooManyRequests, "http_request_denied", 1},
	TooMany:       {http.StatusServiceUnavailable, "connection_limit_reached", 1},
	TooLarge:      {http.StatusRequestEntityTooLarge, "http_request_denied", 1},
	NoSuchName:    {http.StatusBadGateway, "dns_error", 4},
	DNSTimeout:    {http.StatusGatewayTimeout, "dns_timeout", 4},
	Refused:       {http.StatusBadGateway, "connection_refused", 5},
	Unreachable:   {http.StatusBadGateway, "destination_ip_unroutable", 3},
	DialTimeout:   {http.StatusGatewayTimeout, "connection_timeout", 4},
	Cut:           {http.StatusBadGateway, "connection_terminated", 1},
	TLSFailed:     {http.StatusBadGateway, "tls_certificate_error", 1},
	AnswerTimeout: {http.StatusGatewayTimeout, "http_response_timeout", 1},
	RelayLost:     {http.StatusBadGateway, "proxy_internal_response", 1},
	Unavailable:   {http.StatusServiceUnavailable, "proxy_internal_error", 1},
}

// NewRefusal is a refusal that no line of the manifest made.
func NewRefusal(cause Cause, message string) *Refusal {
	return &Refusal{Cause: cause, Message: message}
}

// Refusal is what the app is told of a call that d refuses, with an edit that would
// allow it where one should; nil when d allows.
func (d Decision) Refusal(c *Compiled, call Call) *Refusal {
	if d.Allow {
		return nil
	}
	return &Refusal{
		Cause:      d.Cause,
		Message:    d.Reason,
		Where:      d.Where,
		Line:       d.Line,
		Suggestion: d.suggestion(c.policy.App, call),
	}
}

// Error is the sentence, with the line that decided.
func (r *Refusal) Error() string {
	if r.Where == "" {
		return r.Message
	}
	return r.Message + " (" + r.Where + ")"
}

// Status is the HTTP status; 502 for a cause of a newer version.
func (r *Refusal) Status() int {
	if a, ok := answers[r.Cause]; ok {
		return a.status
	}
	return http.StatusBadGateway
}

// ProxyError is the error type of RFC 9209.
func (r *Refusal) ProxyError() string {
	if a, ok := answers[r.Cause]; ok {
		return a.proxy
	}
	return "proxy_internal_error"
}

// SOCKS is the reply code of RFC 1928.
func (r *Refusal) SOCKS() byte {
	if a, ok := answers[r.Cause]; ok {
		return a.socks
	}
	return 1
}

// ProxyStatus is the value of the Proxy-Status field. pseudonym is who we are.
func (r *Refusal) ProxyStatus(pseudonym string) string {
	details := r.Message
	if r.Where != "" {
		details = r.Where + ": " + details
	}
	return item(pseudonym) + "; error=" + r.ProxyError() + "; details=" + quoted(details)
}

// item writes a name as a token of RFC 9651, section 3.3.4, or as a string where it is
// none.
func item(s string) string {
	for i := range len(s) {
		c := s[i]
		letter := 'a' <= c|0x20 && c|0x20 <= 'z'
		if !letter && (i == 0 && c != '*' || !('0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~:/", c) >= 0)) {
			return quoted(s)
		}
	}
	if s == "" {
		return quoted(s)
	}
	return s
}

// maxDetails bounds the header field.
const maxDetails = 512

// quoted writes a string of RFC 9651, section 3.3.3, which has printable ASCII only.
func quoted(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := 0; i < len(s) && b.Len() < maxDetails; i++ {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c >= 0x7f:
			b.WriteByte('?')
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// WriteHTTP answers a request with the refusal.
func (r *Refusal) WriteHTTP(w http.ResponseWriter, pseudonym string) {
	body, err := json.Marshal(struct {
		Error *Refusal `json:"error"`
	}{r})
	if err != nil { // strings and numbers
		panic("policy: refusal cannot be written: " + err.Error())
	}
	body = append(body, '\n')
	status := r.Status()
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Proxy-Status", r.ProxyStatus(pseudonym))
	if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
		h.Set("Retry-After", strconv.Itoa(max(1, r.RetryAfter)))
	}
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// suggestion is an edit of the manifest that would allow the call.
func (d Decision) suggestion(app string, call Call) string {
	t := call.Target
	section := "apps." + app + ".egress"
	switch d.advice {
	case adviceAllow:
		return "under " + section + ".allow add: - " + asLine(t)
	case adviceScheme:
		other := "call https:// instead"
		if t.Form == Tunnel {
			other = "call http:// without a tunnel"
		}
		return other + ", or under " + section + ".allow add: - " + asLine(t)
	case adviceTell:
		return "add " + section + ": {mode: enforce, allow: [" + strconv.Quote(asLine(t)) + "]}"
	case adviceRules:
		path := call.Path
		if path == "" {
			path = "/"
		}
		return "under " + d.Where + ".rules add: - {methods: [" + call.Method + "], paths: [" + strconv.Quote(path) + "]}"
	case adviceName:
		return "if it is meant, under " + section + ".allow add: - " + asLine(t) +
			" and under egress.allow_ranges a hole for its address"
	case adviceHole:
		r := netip.PrefixFrom(d.addr, d.addr.BitLen()).String()
		return "if it is meant, under egress.allow_ranges add: - {range: " + strconv.Quote(r) +
			", ports: [" + strconv.Itoa(int(t.Port)) + "], reason: …}"
	}
	return ""
}

// asLine writes a target as a line of the allow list.
func asLine(t Target) string {
	host := t.HostPort()
	switch {
	case t.Form == Request:
		return "http://" + strings.TrimSuffix(host, ":80")
	case t.Port == 443:
		return "https://" + strings.TrimSuffix(host, ":443")
	default:
		return "tcp://" + host
	}
}
