package main

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/posternhq/postern/protocol/api"
)

// refusedError is an answer of the relay other than 2xx.
type refusedError struct {
	status     int
	reason     string // a word to branch on; may be empty
	message    string // what the relay says
	requestID  string
	hint       string        // what the user can do; may be empty
	retryAfter time.Duration // 0: it did not say
}

func (e *refusedError) Error() string {
	text := e.message
	if e.requestID != "" {
		text += " (request " + e.requestID + ")"
	}
	if e.hint != "" {
		text += "\n" + e.hint
	}
	return text
}

// temporary reports whether the same request may work later.
func temporary(err error) bool {
	var refused *refusedError
	if errors.As(err, &refused) {
		return refused.status >= 500 || refused.status == http.StatusTooManyRequests
	}
	return errors.As(err, new(unreachableError))
}

// refusal reads an answer that is none.
func (c *apiClient) refusal(res *http.Response) error {
	if res.StatusCode >= 300 && res.StatusCode < 400 {
		to := ""
		if u, err := res.Location(); err == nil {
			to = " to " + line(u.Scheme+"://"+u.Host)
		}
		return fmt.Errorf("%s redirects%s; set POSTERN_RELAY to the relay's own URL", origin(c.base), to)
	}
	body, _ := io.ReadAll(io.LimitReader(res.Body, maxError))
	var answer api.ErrorAnswer
	json.Unmarshal(body, &answer) // what is no JSON has no message
	e := &refusedError{
		status: res.StatusCode, reason: answer.Error.Reason,
		message: printable(answer.Error.Message, "\n"), requestID: line(answer.Error.RequestID),
	}
	if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && s > 0 {
		e.retryAfter = min(time.Duration(s)*time.Second, time.Minute)
	}
	if e.message == "" {
		e.message = fmt.Sprintf("%s answered %s without saying why", origin(c.base), line(res.Status))
		if res.StatusCode == http.StatusNotFound || res.StatusCode == http.StatusMethodNotAllowed {
			part := cmp.Or(c.about, "events")
			e.message = fmt.Sprintf("%s has no %s API (it answered %s)", origin(c.base), part, line(res.Status))
			e.hint = "Is POSTERN_RELAY the relay's own URL, and not an app's? An old relay has no " + part + " API either."
		}
	}
	switch res.StatusCode {
	case http.StatusUnauthorized:
		e.message = "the relay refuses the token: " + e.message
		e.hint = "Make a new one with: " + tokenCommand(c.tokenApp()) + "\nand put it into POSTERN_TOKEN."
	case http.StatusForbidden:
		e.hint = c.forbiddenHint()
	}
	return e
}

// notAnAPI is an answer 2xx that does not come from an API of ours.
func (c *apiClient) notAnAPI(res *http.Response, err error) error {
	kind, _, _ := strings.Cut(res.Header.Get("Content-Type"), ";")
	if kind = line(kind); kind == "application/json" {
		return fmt.Errorf("the answer of %s cannot be read: %w; is the relay of another version?", origin(c.base), err)
	}
	if kind == "" {
		kind = "something unnamed"
	}
	return fmt.Errorf("%s answered with %s where JSON was expected; is POSTERN_RELAY the relay's own URL?", origin(c.base), kind)
}

func origin(u *url.URL) string { return u.Scheme + "://" + u.Host }

// forbiddenHint says which token would do.
func (c *apiClient) forbiddenHint() string {
	scope, app := tokenClaims(c.token)
	switch {
	case scope == "agent":
		return "The token is of scope agent; make one with: " + tokenCommand(c.tokenApp()) + "\nand put it into POSTERN_TOKEN."
	case app != "" && c.app != "" && app != c.app:
		return fmt.Sprintf("The token is for the app %s; make one with: %s", app, tokenCommand(c.app))
	}
	return ""
}

func (c *apiClient) tokenApp() string {
	if c.app != "" {
		return c.app
	}
	_, app := tokenClaims(c.token)
	return app
}

// tokenCommand is how to make a token that these commands accept.
func tokenCommand(app string) string {
	if app == "" {
		app = "NAME"
	}
	return "postern-relay token create --app " + app + " --scope developer"
}

// tokenClaims reads what a token says of itself, for a hint: nothing is verified.
// What cannot be read is empty.
func tokenClaims(token string) (scope, app string) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "", ""
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", ""
	}
	var claims struct {
		Scope string `json:"scope"`
		App   string `json:"sub"`
	}
	json.Unmarshal(raw, &claims)
	return line(claims.Scope), line(claims.App)
}
