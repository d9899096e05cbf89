package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/relay"
)

// The longest request bodies, in bytes. One with the text of a manifest is longer:
// in JSON, one byte of it may be six.
const (
	maxBody         = 1 << 20
	maxManifestBody = 6*relay.MaxManifestSize + 64<<10
)

func bodyLimit(value any) int64 {
	if _, ok := value.(*api.ManifestRequest); ok {
		return maxManifestBody
	}
	return maxBody
}

// decodeBody reads r's JSON into value strictly; nil means that there must be no
// body. Errors are *relay.Error: Invalid, TooLarge.
func decodeBody(w http.ResponseWriter, r *http.Request, value any) error {
	raw, err := readBody(w, r, bodyLimit(value))
	if err != nil {
		return err
	}
	if value == nil {
		if len(raw) > 0 {
			return relay.Errorf(relay.Invalid, "this call takes no body")
		}
		return nil
	}
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if charset := params["charset"]; err != nil || kind != "application/json" || charset != "" && !strings.EqualFold(charset, "utf-8") {
		return relay.Errorf(relay.Invalid, "the body must be JSON; send Content-Type: application/json")
	}
	if first := bytes.TrimLeft(raw, " \t\r\n"); len(first) == 0 || first[0] != '{' {
		return relay.Errorf(relay.Invalid, "the body must be a JSON object")
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(value); err != nil {
		return relay.Errorf(relay.Invalid, "the body is not as expected: %s", plainJSONError(err))
	}
	if _, err := dec.Token(); err != io.EOF {
		return relay.Errorf(relay.Invalid, "the body has something behind its JSON object")
	}
	return nil
}

func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return nil, nil
	}
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Now().Add(readTime))
	defer rc.SetReadDeadline(time.Time{})
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, relay.Errorf(relay.TooLarge, "the body is longer than %d bytes", limit)
	case err != nil:
		return nil, &relay.Error{Code: relay.Invalid, Message: "the body broke off", Err: err}
	}
	return raw, nil
}

// plainJSONError says what is wrong without Go's names.
func plainJSONError(err error) string {
	var wrongType *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	var badTime *time.ParseError
	switch {
	case errors.As(err, &wrongType) && wrongType.Field != "":
		return "the field " + quoted(wrongType.Field) + " does not take a " + wrongType.Value
	case errors.As(err, &syntax), errors.Is(err, io.ErrUnexpectedEOF):
		return "it is not well-formed JSON"
	case errors.As(err, &badTime):
		return "a time is not like 2026-01-31T12:00:00Z"
	}
	if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return "it has the field " + quoted(strings.Trim(name, `"`)) + ", which is not known here"
	}
	return "a value does not fit its field"
}
