package ingress

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httputil"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// webhookBodyTime is how long a sender may take for the whole body. Providers
// send from data centres; what is slower is not one of them.
const webhookBodyTime = time.Minute

// serveWebhook takes /hooks/<app>/<endpoint>[/…].
func (s *Server) serveWebhook(w http.ResponseWriter, r *http.Request) {
	c := callOf(r)
	ep, ok := s.cfg.Directory.Endpoint(relay.AppID(chi.URLParam(r, "app")), chi.URLParam(r, "endpoint"))
	if !ok {
		relay.WriteError(w, c.id, relay.Errorf(relay.NotFound, "there is no webhook endpoint at %s", r.URL.Path))
		return
	}
	body, err := s.readBody(w, r, ep.MaxBody)
	if err != nil {
		s.refuse(w, c, ep, err)
		return
	}
	in := s.incoming(r, c, body)
	switch {
	case ep.Mode == relay.ModeSync:
		s.passToApp(w, r, c, ep, in)
	case r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodOptions:
		s.shakeHands(w, r, c, ep, in)
	default:
		s.receive(w, r, c, ep, in)
	}
}

// receive has the inbox take a webhook, and maybe try it on the app at once.
func (s *Server) receive(w http.ResponseWriter, r *http.Request, c *call, ep relay.Endpoint, in relay.Incoming) {
	receipt, answer, err := s.cfg.Inbox.Receive(r.Context(), ep, in)
	if err != nil {
		s.refuse(w, c, ep, err)
		return
	}
	if receipt.ID == "" {
		s.answerHandshake(w, c, ep, answer)
		return
	}
	s.log.Debug("webhook stored", "request_id", c.id, "app", ep.App, "endpoint", ep.Name,
		"event", receipt.ID, "duplicate", receipt.Duplicate, "answered", answer != nil)
	if answer == nil {
		accepted(w, receipt, cmp.Or(s.cfg.Facts(ep.Provider).Accepted, http.StatusAccepted))
		return
	}
	w.Header().Set(protocol.HeaderEventID, string(receipt.ID))
	writeAnswer(w, answer)
}

// shakeHands answers a request that cannot be an event: some senders prove with
// GET that the address is theirs to use.
func (s *Server) shakeHands(w http.ResponseWriter, r *http.Request, c *call, ep relay.Endpoint, in relay.Incoming) {
	verdict, err := s.cfg.Inbox.Check(r.Context(), ep, in)
	if err == nil && verdict.Answer != nil {
		s.answerHandshake(w, c, ep, verdict.Answer)
		return
	}
	if err != nil && verdict.Handshake {
		s.refuse(w, c, ep, err)
		return
	}
	w.Header().Set("Allow", http.MethodPost)
	s.refuse(w, c, ep, relay.Errorf(relay.BadMethod, "%s", cmp.Or(verdict.Reason, "webhooks are sent with POST")))
}

// answerHandshake gives the sender what its provider's rules made of a handshake.
func (s *Server) answerHandshake(w http.ResponseWriter, c *call, ep relay.Endpoint, a *relay.Answer) {
	s.log.Info("handshake answered", "request_id", c.id, "app", ep.App, "endpoint", ep.Name,
		"provider", ep.Provider, "status", a.Status)
	writeAnswer(w, a)
}

func writeAnswer(w http.ResponseWriter, a *relay.Answer) {
	writeHeader(w, a.Status, a.Header)
	w.Write(a.Body)
}

// writeHeader begins an answer that is somebody else's. What only we may say stays
// ours, and nothing is guessed about a body that has no type.
func writeHeader(w http.ResponseWriter, status int, fields []relay.Field) {
	theirs := http.Header{}
	for _, f := range fields {
		theirs.Add(f.Name, f.Value)
	}
	stripOwn(theirs)
	h := w.Header()
	maps.Copy(h, theirs)
	if _, typed := h["Content-Type"]; !typed {
		h["Content-Type"] = nil
	}
	w.WriteHeader(status)
}

// accepted is the answer for a webhook that is on disk.
func accepted(w http.ResponseWriter, receipt relay.Receipt, status int) {
	body, _ := json.Marshal(struct {
		ID        relay.EventID `json:"id"`
		Duplicate bool          `json:"duplicate,omitempty"`
	}{receipt.ID, receipt.Duplicate})
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set(protocol.HeaderEventID, string(receipt.ID))
	w.WriteHeader(status)
	if status != http.StatusNoContent {
		w.Write(append(body, '\n'))
	}
}

func (s *Server) refuse(w http.ResponseWriter, c *call, ep relay.Endpoint, err error) {
	s.log.Warn("webhook refused", "request_id", c.id, "app", ep.App, "endpoint", ep.Name, "err", err)
	relay.WriteError(w, c.id, err)
}

// trustedLength is the largest Content-Length for which a buffer is made before
// the bytes are there.
const trustedLength = 64 << 10

// readBody reads a webhook's body whole, within its limits of size and time.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	control := http.NewResponseController(w)
	control.SetReadDeadline(time.Now().Add(webhookBodyTime))
	defer control.SetReadDeadline(time.Time{})
	limited := http.MaxBytesReader(w, r.Body, limit)
	var body []byte
	var err error
	if n := r.ContentLength; n >= 0 && n <= min(limit, trustedLength) {
		body = make([]byte, n)
		_, err = io.ReadFull(limited, body)
	} else {
		body, err = io.ReadAll(limited)
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, relay.Errorf(relay.TooLarge, "the body is longer than %d bytes", limit)
	case err != nil:
		return nil, relay.Errorf(relay.Invalid, "the body did not arrive whole")
	}
	return body, nil
}

func (s *Server) incoming(r *http.Request, c *call, body []byte) relay.Incoming {
	header := r.Header.Clone()
	return relay.Incoming{
		Method:     r.Method,
		Target:     restOf(target(r)),
		PublicURL:  strings.TrimSuffix(s.cfg.PublicURL.String(), "/") + target(r),
		Header:     header,
		Body:       body,
		RemoteIP:   c.remote.String(),
		ReceivedAt: c.received,
	}
}

// restOf is what follows /hooks/<app>/<endpoint> in a target, as it was sent.
func restOf(target string) string {
	rest := strings.TrimPrefix(target, "/hooks/")
	for range 2 {
		i := strings.IndexAny(rest, "/?")
		if i < 0 {
			return ""
		}
		if rest[i] == '?' {
			return rest[i:]
		}
		rest = rest[i+1:]
		if len(rest) == 0 {
			return "/"
		}
	}
	return "/" + rest
}

// passToApp is sync mode: the sender waits for the app's own answer. What
// happened is recorded, but the sender, not we, tries again.
func (s *Server) passToApp(w http.ResponseWriter, r *http.Request, c *call, ep relay.Endpoint, in relay.Incoming) {
	verdict, err := s.cfg.Inbox.Check(r.Context(), ep, in)
	if err != nil {
		s.refuse(w, c, ep, err)
		return
	}
	if verdict.Answer != nil {
		s.answerHandshake(w, c, ep, verdict.Answer)
		return
	}
	if err := s.cfg.Inbox.Admit(r.Context(), ep, int64(len(in.Body))); err != nil {
		s.refuse(w, c, ep, err)
		return
	}
	draft := s.cfg.Inbox.Draft(ep, in, verdict)
	w.Header().Set(protocol.HeaderEventID, string(draft.Event.ID))
	attempt := relay.Attempt{StartedAt: time.Now()}
	req, err := s.cfg.Inbox.Request(r.Context(), ep, draft)
	if err == nil {
		var resp *http.Response
		if resp, err = s.cfg.Apps.RoundTrip(req); err == nil {
			defer s.record(r, draft, &attempt)
			s.giveAnswer(w, r, ep, resp, &attempt)
			return
		}
	}
	attempt.Outcome, attempt.Error = relay.OutcomeOf(err), err.Error()
	s.record(r, draft, &attempt)
	s.refuse(w, c, ep, err)
}

// record stores what became of a sync webhook. The sender has its answer
// already, so a failure is only logged.
func (s *Server) record(r *http.Request, draft relay.Lease, a *relay.Attempt) {
	a.EndedAt = time.Now()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 10*time.Second)
	defer cancel()
	if _, err := s.cfg.Inbox.RecordSync(ctx, draft, *a); err != nil {
		s.log.Error("event not recorded", "request_id", callOf(r).id, "event", draft.Event.ID, "err", err)
	}
}

// maxKept is how much of an answer the record keeps.
const maxKept = 64 << 10

// giveAnswer passes the app's answer on as it comes and notes it in a.
func (s *Server) giveAnswer(w http.ResponseWriter, r *http.Request, ep relay.Endpoint, resp *http.Response, a *relay.Attempt) {
	defer abortLoudly(r)
	defer resp.Body.Close()
	a.Status, a.Outcome = resp.StatusCode, relay.OutcomeRejected
	if resp.StatusCode/100 == 2 {
		a.Outcome = relay.OutcomeDone
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		a.Outcome, a.Error = relay.OutcomeRejected, "the app answered a webhook with an upgrade"
		relay.WriteError(w, callOf(r).id, relay.Errorf(relay.AppReset, "the app answered a webhook with an upgrade"))
		return
	}
	if s.cfg.Inbox.Withheld(ep, resp.StatusCode) {
		a.Error = "the answer was not passed on: it would end the subscription"
		relay.WriteError(w, callOf(r).id, relay.Errorf(relay.AppRejected,
			"the app answered %d, which %s takes for the end of the subscription; allow_unsubscribe passes it on", resp.StatusCode, ep.Provider))
		return
	}
	relay.RemoveHopByHop(resp.Header)
	a.Header = relay.FieldsOf(resp.Header)
	writeHeader(w, resp.StatusCode, a.Header)
	iw := &idleWriter{ResponseWriter: w, control: http.NewResponseController(w), idle: s.cfg.Idle}
	keep := &keeper{}
	_, err := io.Copy(io.MultiWriter(flushWriter{iw}, keep), resp.Body)
	a.Body = keep.kept
	if err != nil {
		a.Outcome, a.Error = relay.OutcomeUnknown, err.Error()
		panic(http.ErrAbortHandler)
	}
}

// flushWriter sends every write at once.
type flushWriter struct{ w *idleWriter }

func (f flushWriter) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err == nil {
		err = f.w.FlushError()
	}
	return n, err
}

// keeper keeps the first maxKept bytes.
type keeper struct{ kept []byte }

func (k *keeper) Write(p []byte) (int, error) {
	if room := maxKept - len(k.kept); room > 0 {
		k.kept = append(k.kept, p[:min(room, len(p))]...)
	}
	return len(p), nil
}

var _ httputil.BufferPool = (*bufferPool)(nil)
