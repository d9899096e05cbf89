package auth

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/posternhq/postern/relay"
)

// MaxTokenBytes is the longest token that is looked at. Ours have some 400.
const MaxTokenBytes = 4 << 10

// maxDate is the end of the year 9999: a later NumericDate is a mistake and
// would not fit every reader's time type.
const maxDate = 253402300799

// claims are the claims we use. Others are ignored (RFC 7519 section 4).
type claims struct {
	issuer    string
	audience  []string
	expires   time.Time // required
	issued    time.Time // required
	notBefore time.Time // zero when absent
	id        relay.TokenID
	app       relay.AppID // not yet validated
	scope     relay.Scope // not yet validated
}

// split takes raw apart and reads its header and payload, neither of which may
// be believed yet. It is stricter than RFC 7515: base64url without padding,
// line breaks or loose bits, so that one token has one spelling.
func split(raw string) (header, payload map[string]any, err error) {
	if raw == "" {
		return nil, nil, refuse(TokenMissing, "no token was sent; set POSTERN_TOKEN, or send the header Authorization: Bearer followed by the token")
	}
	if len(raw) > MaxTokenBytes {
		return nil, nil, refuse(TokenMalformed, "the token has %d bytes, more than the %d allowed; "+newToken, len(raw), MaxTokenBytes)
	}
	parts := strings.Split(raw, ".")
	if len(parts) != 3 || strings.ContainsFunc(raw, notTokenByte) { // five parts: an encrypted token (RFC 7516)
		return nil, nil, refuse(TokenMalformed, "the token is not in the form of a signed JWT; copy it again in full, or "+newToken)
	}
	if header, err = members(parts[0]); err == nil {
		payload, err = members(parts[1])
	}
	if err != nil { // its text may quote the token: it goes no further
		return nil, nil, refuse(TokenMalformed, "the token cannot be read; copy it again in full, or "+newToken)
	}
	return header, payload, nil
}

// notTokenByte reports whether c has no place in a token. Line breaks are why
// this is needed: encoding/base64 skips them.
func notTokenByte(c rune) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.':
		return false
	}
	return true
}

// members reads a part's JSON object. A member that comes twice is an error:
// RFC 7519 section 4 lets a reader choose between that and taking the last, and
// two readers that choose differently would see two tokens (RFC 8725 section
// 2.4 has the story). Names are compared exactly, unlike in encoding/json's
// structs, where "EXP" sets exp.
func members(part string) (map[string]any, error) {
	text, err := base64.RawURLEncoding.Strict().DecodeString(part)
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return nil, errors.New("not an object")
	}
	object := make(map[string]any)
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return nil, err
		}
		name, _ := token.(string) // in an object, always
		if _, twice := object[name]; twice {
			return nil, errors.New("a member comes twice")
		}
		var value any
		if err := dec.Decode(&value); err != nil {
			return nil, err
		}
		object[name] = value
	}
	if _, err := dec.Token(); err != nil { // the closing brace
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("text after the object")
	}
	return object, nil
}

// readClaims gives the payload's members their types. What is missing or of
// another type is malformed: our own Issuer never writes it.
func readClaims(payload map[string]any) (claims, error) {
	r := claimReader{payload: payload}
	c := claims{
		issuer:    r.text("iss"),
		audience:  r.texts("aud"),
		expires:   r.date("exp"),
		issued:    r.date("iat"),
		notBefore: r.date("nbf"),
		id:        relay.TokenID(r.text("jti")),
		app:       relay.AppID(r.text("sub")),
		scope:     relay.Scope(r.text("scope")),
	}
	switch {
	case r.bad != "":
		return claims{}, refuse(TokenMalformed, "the token's claim %s is not of its type; "+newToken, r.bad)
	case !plainName(string(c.id)): // it goes into logs and the audit trail
		return claims{}, refuse(TokenMalformed, "the token has no usable id (jti); "+newToken)
	case c.expires.IsZero():
		return claims{}, refuse(TokenMalformed, "the token has no end (exp); "+newToken)
	case c.issued.IsZero():
		return claims{}, refuse(TokenMalformed, "the token does not say when it was made (iat); "+newToken)
	case !c.issued.Before(c.expires):
		return claims{}, refuse(TokenMalformed, "the token ends (exp) before it was made (iat); "+newToken)
	}
	return c, nil
}

// claimReader takes members out of a payload. An absent member is a zero value;
// the first one of a wrong type is remembered in bad.
type claimReader struct {
	payload map[string]any
	bad     string
}

// text is a string.
func (r *claimReader) text(name string) string {
	value, there := r.payload[name]
	s, ok := value.(string)
	if there && !ok {
		r.fail(name)
	}
	return s
}

// texts is a string or an array of strings (RFC 7519 section 4.1.3).
func (r *claimReader) texts(name string) []string {
	array, ok := r.payload[name].([]any)
	if !ok {
		return []string{r.text(name)}
	}
	list := make([]string, 0, len(array))
	for _, value := range array {
		s, ok := value.(string)
		if !ok {
			r.fail(name)
		}
		list = append(list, s)
	}
	return list
}

// date is a NumericDate: seconds since 1970, fractions allowed (RFC 7519
// section 2). Fractions are cut off. It must be positive, so that the zero time
// means absent alone.
func (r *claimReader) date(name string) time.Time {
	value, there := r.payload[name]
	if !there {
		return time.Time{}
	}
	number, _ := value.(json.Number)
	seconds, err := number.Float64()
	if err != nil || seconds < 1 || seconds > maxDate {
		r.fail(name)
		return time.Time{}
	}
	return time.Unix(int64(seconds), 0).UTC()
}

func (r *claimReader) fail(name string) {
	if r.bad == "" {
		r.bad = name
	}
}
