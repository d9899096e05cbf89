package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// Time limits of one request. Streams have their own.
const (
	readTime  = 30 * time.Second // for the body
	callTime  = 60 * time.Second // for the handler
	writeTime = 30 * time.Second // for the answer, or one message of a stream
)

// call is one request on its way through the funnel.
type call struct {
	id    string // the request's
	r     *http.Request
	who   relay.Principal
	app   relay.AppID // what the parameter app says or implies; "" is all apps
	query query
	body  any // what route.takes made, decoded
}

// ctx ends with the request, or earlier when the handler takes too long.
func (c *call) ctx() context.Context { return c.r.Context() }

// path is the record's id that the path names.
func (c *call) path() string { return chi.URLParam(c.r, "id") }

// home is the one app that the token reaches; "" reaches all.
func (c *call) home() relay.AppID { return c.who.App }

// may reports whether the token reaches app. A developer's token and an
// administrator's that names an app reach that one only.
func (c *call) may(app relay.AppID) bool {
	return c.who.App == app || c.who.App == "" && c.who.Scope == relay.ScopeAdmin
}

// pick is the app that a request which names app is about.
func (c *call) pick(app string) (relay.AppID, error) {
	id := relay.AppID(app)
	if app == "" {
		return c.home(), nil
	}
	if err := id.Validate(); err != nil {
		return "", relay.Errorf(relay.Invalid, "app: %v", err)
	}
	if !c.may(id) {
		return "", relay.Errorf(relay.Forbidden, "the token is for the app %q only", string(c.who.App))
	}
	return id, nil
}

// newMux routes requests to the table's rows.
func (s *Server) newMux(table []route) http.Handler {
	mux := chi.NewRouter()
	for _, row := range table {
		mux.Method(row.method, Prefix+row.path, s.funnel(row))
	}
	mux.NotFound(func(w http.ResponseWriter, r *http.Request) {
		relay.WriteError(w, requestID(r), relay.Errorf(relay.NotFound, "the API has nothing at this path"))
	})
	mux.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		var allowed []string
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
			if mux.Match(chi.NewRouteContext(), method, r.URL.EscapedPath()) {
				allowed = append(allowed, method)
			}
		}
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		relay.WriteError(w, requestID(r), relay.Errorf(relay.BadMethod, "this path takes %s", strings.Join(allowed, ", ")))
	})
	return mux
}

type requestIDKey struct{}

func requestID(r *http.Request) string {
	id, _ := r.Context().Value(requestIDKey{}).(string)
	return id
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := s.cfg.RequestID(r)
	if id == "" {
		id = relay.NewRequestID(s.cfg.Now())
	}
	r = r.WithContext(context.WithValue(r.Context(), requestIDKey{}, id))
	h := w.Header()
	h.Set(protocol.HeaderRequestID, id)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	out := &watchedWriter{ResponseWriter: w}
	defer func() {
		fault := recover()
		if fault == nil {
			return
		}
		if err, ok := fault.(error); ok && errors.Is(err, http.ErrAbortHandler) {
			panic(fault)
		}
		s.cfg.Logger.Error("api panic", "request_id", id, "fault", fmt.Sprint(fault), "stack", string(debug.Stack()))
		if out.begun {
			panic(http.ErrAbortHandler) // a cut answer must not look like an end
		}
		relay.WriteError(w, id, errors.New("panic"))
	}()
	s.mux.ServeHTTP(out, r)
}

// watchedWriter knows whether the answer has begun.
type watchedWriter struct {
	http.ResponseWriter
	begun bool
}

func (w *watchedWriter) WriteHeader(status int) {
	w.begun = true
	w.ResponseWriter.WriteHeader(status)
}

func (w *watchedWriter) Write(p []byte) (int, error) {
	w.begun = true
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController through.
func (w *watchedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// funnel is the one way every request of the API goes.
func (s *Server) funnel(row route) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), callTime)
		defer cancel()
		c := &call{id: requestID(r), r: r.WithContext(ctx)}
		var value any
		err := s.admit(c, row, w)
		if err == nil {
			value, err = row.handle(s, c)
		}
		err = explained(err)
		s.record(c, row, err)
		if err != nil {
			writeError(w, c.id, err)
			return
		}
		if out, ok := value.(live); ok {
			c.r = r
			out.run(c, w)
			return
		}
		s.answer(w, value)
	}
}

// admit is everything that comes before a handler.
func (s *Server) admit(c *call, row route, w http.ResponseWriter) error {
	var err error
	if c.who, err = s.cfg.Authorize(c.r); err != nil {
		return err
	}
	if !slices.Contains(row.scopes, c.who.Scope) || c.who.App == "" && c.who.Scope != relay.ScopeAdmin {
		return relay.Errorf(relay.Forbidden, "a token of the scope %s may not do this", c.who.Scope)
	}
	if s.cfg.Admit != nil {
		if err = s.cfg.Admit(c.who); err != nil {
			return err
		}
	}
	if c.query, err = decodeQuery(row.params, c.r.URL.RawQuery); err != nil {
		return err
	}
	if c.app, err = c.pick(c.query.text(paramApp.name)); err != nil {
		return err
	}
	if c.r.Method == http.MethodGet {
		return nil // a body has no meaning there (RFC 9110, section 9.3.1)
	}
	if row.takes != nil {
		c.body = row.takes()
	}
	return decodeBody(w, c.r, c.body)
}

// explained gives every error a code. What the store and the inbox have no code
// for means that they do not work, unless it is about a manifest.
func explained(err error) error {
	if err == nil || relay.CodeOf(err) != "" {
		return err
	}
	var problems relay.ManifestErrors
	if errors.As(err, &problems) && len(problems) > 0 {
		return manifestError(problems)
	}
	return &relay.Error{Code: relay.Unavailable, Message: "the relay's store does not answer", Err: err}
}

// record logs what was changed or went wrong. Reads that went well are many and
// say nothing.
func (s *Server) record(c *call, row route, err error) {
	level, message := slog.LevelInfo, "api call"
	switch {
	case errors.Is(err, context.Canceled):
		return // the client went away
	case err != nil && relay.CodeOf(err).Status() >= http.StatusInternalServerError:
		level, message = slog.LevelError, "api call failed"
	case err != nil:
		level, message = slog.LevelDebug, "api call refused"
	case row.method == http.MethodGet:
		return
	}
	attrs := []any{"request_id", c.id, "method", row.method, "route", row.path, "record", clip(c.path()),
		"token", c.who.Token, "scope", c.who.Scope, "app", c.who.App}
	if err != nil {
		attrs = append(attrs, "err", err)
	}
	s.cfg.Logger.Log(context.WithoutCancel(c.ctx()), level, message, attrs...)
}

// live is an answer that goes on until its reader, its token or the server ends it.
type live interface {
	run(c *call, w http.ResponseWriter)
}

// file is an answer that is no JSON.
type file struct {
	name        string
	contentType string
	data        []byte
}

// answer writes a handler's value.
func (s *Server) answer(w http.ResponseWriter, value any) {
	h := w.Header()
	data, ok := value.(*file)
	if !ok {
		body, err := json.Marshal(value)
		if err != nil {
			panic(err) // a type of ours that JSON does not know
		}
		data = &file{contentType: "application/json", data: append(body, '\n')}
	}
	h.Set("Content-Type", data.contentType)
	h.Set("Content-Length", strconv.Itoa(len(data.data)))
	if data.name != "" {
		h.Set("Content-Disposition", `attachment; filename="`+safeName(data.name)+`"`)
	}
	// A client that does not read must not keep the answer in memory for ever. The
	// deadline is the connection's and net/http does not take it back, so it goes
	// before the next request comes.
	rc := http.NewResponseController(w)
	rc.SetWriteDeadline(time.Now().Add(writeTime))
	if _, err := w.Write(data.data); err != nil {
		return
	}
	if rc.Flush() == nil {
		rc.SetWriteDeadline(time.Time{})
	}
}

// safeName is name with nothing in it that a header, a shell or a file system
// takes for something else.
func safeName(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.':
			return r
		}
		return '_'
	}, clip(name))
}

// maxID is longer than any id of ours.
const maxID = 128

// clip bounds what the caller sent before it reaches a log or a header.
func clip(s string) string { return s[:min(len(s), maxID)] }
