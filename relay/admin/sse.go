package admin

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"
)

// eventWriter writes server-sent events (the HTML standard, section 9.2). Every
// write has a deadline: a reader that takes nothing is cut off.
type eventWriter struct {
	w  http.ResponseWriter
	rc *http.ResponseController
}

// newEventWriter begins the answer.
func newEventWriter(w http.ResponseWriter, r *http.Request) (*eventWriter, error) {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // nginx would gather what is live
	if r.ProtoMajor == 1 {
		// The last deadline stays on the connection, so no other request may follow.
		h.Set("Connection", "close")
	}
	o := &eventWriter{w: w, rc: http.NewResponseController(w)}
	w.WriteHeader(http.StatusOK)
	return o, o.write("retry: 2000\n\n")
}

// send writes one message. Its id, when it has one, is what a reader resumes
// behind; a message without one leaves the id as it was.
func (o *eventWriter) send(kind, id string, data any) error {
	body, err := json.Marshal(data) // on one line: JSON escapes line breaks
	if err != nil {
		return err
	}
	var b strings.Builder
	b.Grow(len(body) + 128)
	b.WriteString("event: " + kind + "\n")
	if id != "" {
		b.WriteString("id: " + id + "\n")
	}
	b.WriteString("data: ")
	b.Write(body)
	b.WriteString("\n\n")
	return o.write(b.String())
}

// mark moves the id alone: what came up to it is nothing for this reader. Without
// data, no message is dispatched.
func (o *eventWriter) mark(id string) error { return o.write("id: " + id + "\n\n") }

// beat shows a quiet reader that the stream is alive.
func (o *eventWriter) beat() error { return o.write(": still here\n\n") }

func (o *eventWriter) write(text string) error {
	if err := o.rc.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return err
	}
	if _, err := o.w.Write([]byte(text)); err != nil {
		return err
	}
	return o.rc.Flush()
}
