package protocol

import "encoding/json"

// Kind is what a stream is for.
type Kind string

// The kinds. Each says who opens it and what its bytes are.
const (
	KindHTTP Kind = "http" // relay: HTTP/1.1 to the app, kept alive over many requests
	KindTCP  Kind = "tcp"  // relay: plain bytes to Addr beside the app, "" is the app's own port

	KindReport Kind = "report" // agent: a Report after the other, for as long as the app runs
	KindLogs   Kind = "logs"   // relay: Reports with the lines that Logs asks for come back

	KindEgress     Kind = "egress"      // agent: plain bytes to Addr in the outside world, as Egress says
	KindEgressHTTP Kind = "egress-http" // agent: HTTP/1.1 requests in absolute form, kept alive over many
	KindPolicy     Kind = "policy"      // relay: a policy.Policy after the other; the agent answers each with a PolicyAck
	KindFlows      Kind = "flows"       // agent: a Flow after the other, of calls that did not go through the relay
)

// Open starts a stream: it is the first message on it, from the side that
// opened it. The opener may write the stream's bytes right behind it and need
// not wait for the Reply.
type Open struct {
	Kind Kind `json:"kind"`
	// Addr is host:port for kinds that need one, at most 262 bytes: a name of
	// 255, a colon and a port.
	Addr string `json:"addr,omitempty"`
	// Logs is the question of KindLogs.
	Logs *LogQuery `json:"logs,omitempty"`
	// Egress is what KindEgress is told besides.
	Egress *EgressOpen `json:"egress,omitempty"`
}

// EgressOpen comes with a call to the outside. Whose call it is the relay knows from
// the session.
type EgressOpen struct {
	Flow string `json:"flow,omitempty"` // the agent's name for the call, see Flow.ID
	// Early is set when the app has been told already that it is connected, by a
	// decision under the policy with Serial.
	Early       bool   `json:"early,omitempty"`
	Serial      int64  `json:"serial,omitempty"`
	From        string `json:"from,omitempty"` // connect, socks, forward
	Traceparent string `json:"traceparent,omitempty"`
}

const maxAddr = 262

func (o *Open) validate() error {
	if o.Kind == "" {
		return Errorf(CodeBadMessage, "open names no kind")
	}
	if len(o.Addr) > maxAddr {
		return Errorf(CodeBadMessage, "open has an address of %d bytes, at most %d are allowed", len(o.Addr), maxAddr)
	}
	if err := checkName(string(o.Kind)); err != nil {
		return err
	}
	if e := o.Egress; e != nil {
		for _, s := range []string{e.Flow, e.From, e.Traceparent} {
			if err := checkName(s); err != nil {
				return err
			}
		}
	}
	for i := range len(o.Addr) {
		if o.Addr[i] <= 0x20 || o.Addr[i] >= 0x7f {
			return Errorf(CodeBadMessage, "open has an address with byte 0x%02x", o.Addr[i])
		}
	}
	return nil
}

// DecodeOpen reads the JSON of an Open and checks its limits.
func DecodeOpen(body []byte) (Open, error) {
	var o Open
	if err := decodeJSON(body, &o); err != nil {
		return Open{}, err
	}
	if err := o.validate(); err != nil {
		return Open{}, err
	}
	return o, nil
}

// Reply answers an Open: it is the first message in the other direction. The
// empty message (two zero bytes) accepts; otherwise the JSON says why not, and
// the stream ends.
type Reply struct {
	Code    Code   `json:"code"`
	Message string `json:"message,omitempty"`
	// Detail is more about the refusal, for machines: of KindEgress a policy.Refusal.
	Detail json.RawMessage `json:"detail,omitempty"`
}

// DecodeReply reads a Reply; nil means accepted. A refusal is an *Error with
// Unsent set: the peer discards the bytes that came behind the Open.
func DecodeReply(body []byte) error {
	if len(body) == 0 {
		return nil
	}
	var r Reply
	if err := decodeJSON(body, &r); err != nil {
		return err
	}
	if r.Code == "" {
		return Errorf(CodeBadMessage, "reply without a code")
	}
	return &Error{Code: r.Code, Message: r.Message, Detail: r.Detail, Unsent: true}
}
