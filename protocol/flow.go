package protocol

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"time"
)

// Flow is one call of an app to the outside: a tunnel, or a request. It is written
// once when the call was decided and once when it is over, with the same ID.
type Flow struct {
	ID       string `json:"id"` // flo_ and 26 characters
	App      string `json:"app,omitempty"`
	Team     string `json:"team,omitempty"`
	Instance string `json:"instance,omitempty"`

	Form   string `json:"form"`   // tunnel, request
	From   string `json:"from"`   // connect, socks, forward, http
	Target string `json:"target"` // host:port as it was judged; what could not be read, quoted
	Method string `json:"method,omitempty"`
	Path   string `json:"path,omitempty"` // without the query
	SNI    string `json:"sni,omitempty"`
	ECH    bool   `json:"ech,omitempty"`
	Via    string `json:"via"` // relay; direct: the agent dialed; agent: it refused the call

	Verdict string `json:"verdict"`              // allow, report (enforce would refuse), deny
	Cause   string `json:"cause,omitempty"`      // a policy.Cause: of a refusal, or of how it failed later
	Rule    string `json:"rule,omitempty"`       // which line decided
	Reason  string `json:"reason,omitempty"`     // one sentence
	Version int64  `json:"version"`              // of the manifest
	Serial  int64  `json:"serial"`               // of the policy
	Fresh   bool   `json:"first_seen,omitempty"` // the app never called this host and port before

	Traceparent string `json:"traceparent,omitempty"`

	StartedAt time.Time `json:"started_at"`
	// Ended is false in what is written at the decision of a call that goes on.
	Ended    bool    `json:"ended"`
	Duration float64 `json:"duration_ms,omitempty"`
	// Phases, in milliseconds; 0: none, or too short to tell.
	Policy float64 `json:"policy_ms,omitempty"`
	DNS    float64 `json:"dns_ms,omitempty"`
	Dial   float64 `json:"dial_ms,omitempty"`
	TLS    float64 `json:"tls_ms,omitempty"`
	TTFB   float64 `json:"ttfb_ms,omitempty"` // from the start to the first byte of the answer

	Dialed string `json:"dialed,omitempty"` // the address and port
	Status int    `json:"status,omitempty"` // of a request's answer
	Up     int64  `json:"up"`               // bytes of the app's
	Down   int64  `json:"down"`             // bytes of the answer
}

// PolicyAck says that an agent decides by the policy with this serial from now on.
type PolicyAck struct {
	Serial int64  `json:"serial"`
	Error  string `json:"error,omitempty"` // it could not be used; the one before stays
}

// MaxPolicy is the largest policy in bytes of JSON.
const MaxPolicy = 32 << 20

// WriteMessage writes v as one message of a stream that has messages larger than
// MaxFrame: a big-endian uint32 length, then so many bytes of JSON.
func WriteMessage(w io.Writer, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	out := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body)))
	_, err = w.Write(append(out, body...))
	return err
}

// ReadMessage reads one message of at most limit bytes into v. io.EOF is the end of
// the stream between two of them.
func ReadMessage(r io.Reader, limit int, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if int64(n) > int64(limit) {
		return Errorf(CodeBadMessage, "message of %d bytes, at most %d are allowed", n, limit)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return &Error{Code: CodeBadMessage, Message: "message is not the JSON expected", Err: err}
	}
	return nil
}
