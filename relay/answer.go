package relay

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/posternhq/postern/protocol"
)

// RetryAfter is what a 503 asks its sender to wait. Providers that honour it
// come back soon; those that do not have their own schedule.
const RetryAfter = 5 * time.Second

// WriteError answers a request with err in the one form all refusals have:
//
//	{"error":{"code":"no_agent","message":"…","request_id":"req_…"}}
//
// Only an *Error's own message is shown; any other error is an "internal" one
// whose text stays in the log.
func WriteError(w http.ResponseWriter, requestID string, err error) {
	WriteDiagnosis(w, requestID, err, nil)
}

// WriteDiagnosis is WriteError for somebody who may see the inside of the app:
// the answer has what the port doctor found besides.
//
//	{"error":{…},"findings":[{"code":"PORT02","cause":"…","evidence":"…","fix":"…"}]}
func WriteDiagnosis(w http.ResponseWriter, requestID string, err error, findings []protocol.Finding) {
	code, message, reason := Code("internal"), "the relay failed; its log has the reason under this request id", ""
	var e *Error
	if errors.As(err, &e) {
		code, message, reason = e.Code, e.Message, e.Reason
	}
	status := code.Status()
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Del("Content-Length")
	if requestID != "" {
		h.Set(protocol.HeaderRequestID, requestID)
	}
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		h.Set("Retry-After", strconv.Itoa(int(RetryAfter/time.Second)))
	}
	type detail struct {
		Code      Code   `json:"code"`
		Reason    string `json:"reason,omitempty"`
		Message   string `json:"message"`
		RequestID string `json:"request_id,omitempty"`
	}
	body, _ := json.Marshal(struct {
		Error    detail             `json:"error"`
		Findings []protocol.Finding `json:"findings,omitempty"`
	}{detail{code, reason, message, requestID}, findings})
	w.WriteHeader(status)
	w.Write(append(body, '\n'))
}
