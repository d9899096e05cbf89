package protocol

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
)

// MaxFrame is the largest message in bytes, its two length bytes not counted.
// Every message is a big-endian uint16 length followed by that many bytes of
// JSON; length 0 is the empty message, which only Reply uses.
const MaxFrame = 16 << 10

// FrameType says what a control message means.
type FrameType string

// The control messages, by who sends them.
const (
	FrameHello   FrameType = "hello"   // agent, first  {versions, features, instance, boot_id, ...}
	FrameWelcome FrameType = "welcome" // relay, answer {version, features, session, node, heartbeat_ms, slot_ms}
	FrameRefuse  FrameType = "refuse"  // relay, answer {code, message, retry_after_ms}; the session ends
	FramePing    FrameType = "ping"    // both          {id}
	FramePong    FrameType = "pong"    // both          {id}
	FrameDrain   FrameType = "drain"   // both          {message, grace_ms, reconnect_ms}
	FrameDrained FrameType = "drained" // both          {} answers drain: no stream will be opened to you
	FrameState   FrameType = "state"   // agent         {state, message}
	FrameClose   FrameType = "close"   // both          {code, message}; the session ends
)

// Control is any message on the control stream. Only the fields of its type
// are set. A receiver ignores types and fields it does not know, so that later
// versions can add some.
type Control struct {
	Type FrameType `json:"type"`

	ID uint64 `json:"id,omitempty"` // ping, pong

	Hello   *Hello   `json:"hello,omitempty"`
	Welcome *Welcome `json:"welcome,omitempty"`

	Code    Code   `json:"code,omitempty"`    // refuse, close
	Message string `json:"message,omitempty"` // refuse, close; drain, state: the reason

	State AppState `json:"state,omitempty"` // state

	GraceMS      int64 `json:"grace_ms,omitempty"`       // drain: time left before the sender ends
	ReconnectMS  int64 `json:"reconnect_ms,omitempty"`   // drain: wait this long before dialing again
	RetryAfterMS int64 `json:"retry_after_ms,omitempty"` // refuse
}

// maxReason is how many bytes of a message for a person are sent: the text of
// an error can repeat what the peer sent, and must not outgrow a frame.
const maxReason = 1 << 10

// clip shortens a message for a person to maxReason.
func clip(message string) string {
	if len(message) <= maxReason {
		return message
	}
	return strings.ToValidUTF8(message[:maxReason], "") + "…"
}

// appendFrame appends one message holding v as JSON.
func appendFrame(dst []byte, v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode message: %w", err)
	}
	if len(body) > MaxFrame {
		return nil, Errorf(CodeBadMessage, "message of %d bytes, at most %d are allowed", len(body), MaxFrame)
	}
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(body)))
	return append(dst, body...), nil
}

// readFrame reads one message. The result is valid until buf is used again; a
// nil result is the empty message. Errors of r pass through unchanged.
func readFrame(r io.Reader, buf []byte) ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n == 0 {
		return nil, nil
	}
	if n > MaxFrame {
		return nil, Errorf(CodeBadMessage, "message of %d bytes, at most %d are allowed", n, MaxFrame)
	}
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return buf, nil
}

// DecodeControl reads the JSON of one control message and checks its limits.
func DecodeControl(body []byte) (Control, error) {
	var c Control
	if err := decodeJSON(body, &c); err != nil {
		return Control{}, err
	}
	switch {
	case c.Type == "":
		return Control{}, Errorf(CodeBadMessage, "control message without a type")
	case c.Type == FrameHello && c.Hello == nil, c.Type == FrameWelcome && c.Welcome == nil:
		return Control{}, Errorf(CodeBadMessage, "%s message without its content", c.Type)
	case c.GraceMS < 0 || c.ReconnectMS < 0 || c.RetryAfterMS < 0:
		return Control{}, Errorf(CodeBadMessage, "%s message with a negative time", c.Type)
	}
	if c.Hello != nil {
		if err := c.Hello.validate(); err != nil {
			return Control{}, err
		}
	}
	if c.Welcome != nil {
		if err := c.Welcome.validate(); err != nil {
			return Control{}, err
		}
	}
	return c, nil
}

// decodeJSON decodes one JSON object into v.
func decodeJSON(body []byte, v any) error {
	if len(body) > MaxFrame {
		return Errorf(CodeBadMessage, "message of %d bytes, at most %d are allowed", len(body), MaxFrame)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return &Error{Code: CodeBadMessage, Message: "message is not the JSON object expected", Err: err}
	}
	return nil
}

// millis is ms as a Duration, at most max: a peer cannot make us wait for ever.
func millis(ms int64, max time.Duration) time.Duration {
	if ms > max.Milliseconds() {
		return max
	}
	return time.Duration(ms) * time.Millisecond
}
