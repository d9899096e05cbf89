package protocol

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/coder/websocket"
)

// AcceptConfig is what the relay brings to a handshake.
type AcceptConfig struct {
	Config
	// Welcome answers a valid Hello. It fills Session, Node, HeartbeatMS and
	// SlotMS; version and features are negotiated here. An *Error refuses the
	// session with its code.
	Welcome func(Hello) (Welcome, error)
}

// Accept takes over the upgrade request of an agent whose token the caller has
// checked, and runs the handshake. On failure it has answered the request or
// closed the connection. The caller calls Run on the Session; r's context does
// not end it.
func Accept(w http.ResponseWriter, r *http.Request, cfg AcceptConfig) (*Session, error) {
	cw := &framerWriter{ResponseWriter: w}
	ws, err := websocket.Accept(cw, r, &websocket.AcceptOptions{
		Subprotocols: []string{Subprotocol},
		// Browsers cannot send our Authorization header across origins, and
		// agents send no Origin at all.
		InsecureSkipVerify: true,
	})
	if err != nil {
		return nil, fmt.Errorf("accept WebSocket: %w", err)
	}
	if ws.Subprotocol() != Subprotocol {
		ws.Close(websocket.StatusPolicyViolation, "subprotocol "+Subprotocol+" expected")
		return nil, Errorf(CodeVersion, "the client does not offer subprotocol %s", Subprotocol)
	}
	s := newSession(newWSConn(ws, cw.conn), false, cfg.Config)
	stop := s.limitHandshake(context.Background())
	defer stop()
	if err := s.welcomeAgent(cfg.Welcome); err != nil {
		s.mux.close(err)
		return nil, fmt.Errorf("handshake: %w", err)
	}
	return s, nil
}

// limitHandshake ends the connection when the handshake takes too long or ctx
// ends. The returned func lifts both.
func (s *Session) limitHandshake(ctx context.Context) (stop func()) {
	timer := time.AfterFunc(handshakeTimeout, func() { s.conn.fail(Errorf(CodeTimeout, "handshake took too long")) })
	undo := context.AfterFunc(ctx, func() { s.conn.fail(ctx.Err()) })
	return func() {
		timer.Stop()
		undo()
	}
}

// welcomeAgent is the relay's half: read Hello, write Welcome or Refuse.
func (s *Session) welcomeAgent(welcome func(Hello) (Welcome, error)) error {
	control, err := s.mux.accept()
	if err != nil {
		return fmt.Errorf("wait for the control stream: %w", err)
	}
	control.urgent = true
	s.control = control
	body, err := readFrame(pump{s.mux, control}, nil)
	if err != nil {
		return fmt.Errorf("read hello: %w", err)
	}
	c, err := DecodeControl(body)
	if err == nil && c.Type != FrameHello {
		err = Errorf(CodeBadMessage, "first message is %q, expected hello", c.Type)
	}
	if err != nil {
		return s.refuse(err)
	}
	s.hello = *c.Hello
	version, features, ok := negotiate(c.Hello)
	if !ok {
		return s.refuse(Errorf(CodeVersion, "this relay speaks version %d, the agent %v", Version, c.Hello.Versions))
	}
	if s.welcome, err = welcome(s.hello); err != nil {
		return s.refuse(err)
	}
	s.welcome.Version, s.welcome.Features = version, features
	if s.welcome.HeartbeatMS == 0 {
		s.welcome.HeartbeatMS = DefaultHeartbeat.Milliseconds()
	}
	return s.send(Control{Type: FrameWelcome, Welcome: &s.welcome})
}

// refuse tells the agent why there is no session and returns the reason.
func (s *Session) refuse(why error) error {
	c := Control{Type: FrameRefuse, Code: CodeShutdown, Message: "the relay cannot take this session now"}
	if e := (*Error)(nil); errors.As(why, &e) {
		c.Code, c.Message = e.Code, e.Message // what it wraps is for our log
	}
	if err := s.send(c); err != nil {
		return why
	}
	// The agent hangs up when it has read this. Were we to do so first, our end
	// could overtake our words.
	s.conn.drain(closeTimeout)
	timer := time.AfterFunc(closeTimeout, func() { s.conn.fail(errStays) })
	defer timer.Stop()
	for s.mux.receiveFrame() == nil {
	}
	return why
}

var errStays = errors.New("the agent did not hang up")

// HandshakeError is a relay's answer to an upgrade request, or to a Hello, that
// ends without a session.
type HandshakeError struct {
	Status     int           // HTTP status; 0 when it was refused after the upgrade
	Reason     string        // machine-readable: token_expired, draining, version, …
	Message    string        // one sentence
	RetryAfter time.Duration // what the relay asks for, 0 when it asks for nothing
}

func (e *HandshakeError) Error() string {
	switch {
	case e.Reason == "http":
		return fmt.Sprintf("%d %s, and not in a relay's words: is this the URL of the relay?", e.Status, e.Message)
	case e.Status != 0:
		return fmt.Sprintf("relay refused the tunnel (%d %s): %s", e.Status, e.Reason, e.Message)
	}
	return fmt.Sprintf("relay refused the tunnel (%s): %s", e.Reason, e.Message)
}

// Permanent reports whether trying again with the same token is of no use: it
// was revoked, or it is not a token at all. Everything else may heal: a clock,
// a key that is being rotated, a relay that is being replaced.
func (e *HandshakeError) Permanent() bool {
	return e.Reason == "token_revoked" || e.Reason == "token_malformed"
}

// answer is the JSON of every error the relay sends.
type answer struct {
	Error struct {
		Code    string `json:"code"`
		Reason  string `json:"reason,omitempty"`
		Message string `json:"message"`
	} `json:"error"`
}

// decodeRefusal reads the body of a refused upgrade; the library gives us its
// first KiB.
func decodeRefusal(status int, retryAfter string, body []byte) *HandshakeError {
	e := &HandshakeError{Status: status, Reason: "http", Message: http.StatusText(status)}
	var a answer
	if json.Unmarshal(body, &a) == nil && a.Error.Code != "" {
		e.Reason, e.Message = a.Error.Code, a.Error.Message
		if a.Error.Reason != "" {
			e.Reason = a.Error.Reason
		}
	}
	if secs, err := time.ParseDuration(retryAfter + "s"); err == nil && secs > 0 {
		e.RetryAfter = min(secs, maxGrace)
	}
	return e
}
