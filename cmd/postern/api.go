package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// How long the relay may take, and how much it may say.
const (
	requestTime = 70 * time.Second // for an answer of ordinary size; the relay itself stops after a minute
	eventTime   = 3 * time.Minute  // for an answer with a whole event in it
	dialTime    = 10 * time.Second // for a connection

	maxAnswer = 32 << 20  // a list; a page has at most 500 events
	maxEvent  = 192 << 20 // an event: 25 MB of body, each byte up to six in JSON
	maxError  = 64 << 10
)

// apiClient speaks to the relay's HTTP API; protocol/api has its routes.
type apiClient struct {
	base  *url.URL
	token string
	app   string // whose events; "" is what the token says
	about string // which part of the API is asked; "" is events
	http  *http.Client
	log   *slog.Logger
}

// apiFor makes the client of f. The error says what is missing.
func (f *eventFlags) apiFor() (*apiClient, error) {
	token := os.Getenv("POSTERN_TOKEN")
	switch {
	case *f.relay == "":
		return nil, usagef("POSTERN_RELAY is not set: which relay?")
	case token == "":
		return nil, usagef("POSTERN_TOKEN is not set; make one with: %s", tokenCommand(*f.app))
	case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }):
		return nil, usagef("POSTERN_TOKEN has a blank or a line break in it; copy it again")
	}
	base, err := url.Parse(*f.relay)
	if err != nil || base.Host == "" || base.Scheme != "https" && base.Scheme != "http" {
		return nil, usagef("POSTERN_RELAY %q: expected https://host", *f.relay)
	}
	log, err := f.logger()
	if err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DialContext = (&net.Dialer{Timeout: dialTime}).DialContext
	transport.ResponseHeaderTimeout = requestTime
	transport.MaxResponseHeaderBytes = 64 << 10
	return &apiClient{
		base: base.JoinPath("api", "v1"), token: token, app: *f.app, log: log,
		http: &http.Client{
			Transport: transport,
			// Followed, a POST would become a GET, and the token would go
			// wherever the answer says.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// apiRequest is one request of the API.
type apiRequest struct {
	method string // default GET
	path   []string
	query  url.Values
	header http.Header
	ofApp  bool // the route takes the parameter app
	body   any  // as JSON; nil is none
}

// call sends r and reads its answer, of at most max bytes, into answer.
func (c *apiClient) call(ctx context.Context, r apiRequest, answer any, max int64) error {
	limit := requestTime
	if max > maxAnswer {
		limit = eventTime
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	res, err := c.open(ctx, r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, max+1))
	switch {
	case err != nil:
		return c.unreachable(ctx, err)
	case int64(len(body)) > max:
		return fmt.Errorf("the relay's answer has more than %s", size(max))
	}
	if err := json.Unmarshal(body, answer); err != nil {
		return c.notAnAPI(res, err)
	}
	return nil
}

// open sends r and returns its answer once the status says that it is one. The
// caller closes the body, and bounds how much and how long it reads.
func (c *apiClient) open(ctx context.Context, r apiRequest) (*http.Response, error) {
	u := c.base.JoinPath(r.path...)
	query := url.Values{}
	for name, values := range r.query {
		query[name] = values
	}
	if c.app != "" && r.ofApp {
		query.Set("app", c.app)
	}
	u.RawQuery = query.Encode()
	var body io.Reader
	if r.body != nil {
		raw, err := json.Marshal(r.body)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(raw)
	}
	method := r.method
	if method == "" {
		method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	for name, values := range r.header {
		req.Header[name] = values
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	req.Header.Set("User-Agent", "postern/"+version)
	start := time.Now()
	res, err := c.http.Do(req)
	if err != nil {
		c.log.Debug("relay did not answer", "method", method, "url", u.String(), "took", time.Since(start), "err", err)
		return nil, c.unreachable(ctx, err)
	}
	c.log.Debug("relay answered", "method", method, "url", u.String(), "status", res.StatusCode, "took", time.Since(start))
	if res.StatusCode < 200 || res.StatusCode > 299 {
		defer res.Body.Close()
		return nil, c.refusal(res)
	}
	return res, nil
}

// unreachableError says that no answer came; trying again may help.
type unreachableError struct{ error }

func (e unreachableError) Unwrap() error { return e.error }

// unreachable puts err, which net/http made, into the user's words.
func (c *apiClient) unreachable(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return context.Canceled
	}
	var inURL *url.Error
	if errors.As(err, &inURL) {
		err = inURL.Err
	}
	where := c.base.Scheme + "://" + c.base.Host
	var timeout interface{ Timeout() bool }
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() {
		return unreachableError{fmt.Errorf("the relay at %s did not answer in time; is POSTERN_RELAY right?", where)}
	}
	if strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		return fmt.Errorf("the relay at %s speaks http and not https; POSTERN_RELAY says https", where)
	}
	return unreachableError{fmt.Errorf("the relay at %s cannot be reached: %w", where, err)}
}
