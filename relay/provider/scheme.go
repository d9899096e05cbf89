package provider

import (
	"crypto/hmac"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"
	"time"

	"github.com/posternhq/postern/relay"
)

// scheme is how a sender signs with a shared secret. Most rows of the table are
// nothing else; a new sender is a few lines.
type scheme struct {
	header    string           // carries the signature
	pairs     *pairs           // the header is a list of key=value, the time among them
	prefix    string           // in front of each signature
	separator string           // between signatures; "" means that there is one
	hash      func() hash.Hash // of the HMAC
	encoding  encoding
	key       func(secret string) []byte // nil: the secret's own bytes; an empty result: no key
	signed    string                     // template, as that of relay.HMACScheme

	idHeader    string        // is {id} in the template
	stampHeader string        // is {timestamp} in the template
	stampBody   string        // the time is this member of the body instead
	unit        unit          // of the time
	tolerance   time.Duration // the sender's own rule; 0: it has none
	pastOnly    bool          // only what is too old is refused

	// Where a sender departs from its template.
	urls  func(url string) []string                                 // what {url} may be; nil: the URL
	body  func(in relay.Incoming) (signed []byte, problem string)   // what {body} is; nil: the body
	other func(r request, items []string, parts [][]byte) (ok bool) // signatures that are no HMAC

	// For Resign.
	many   bool    // the header takes a signature for each secret
	beside *scheme // a further signature that the sender makes and that nobody reads here
	fixed  string  // why it is impossible; "" when it is not
}

// pairs is the form of a header like "t=1700000000,v1=5257a8…".
type pairs struct{ between, time, signature string }

// encoding is how a signature is written.
type encoding string

const (
	inHex       encoding = "hex"
	inBase64    encoding = "base64"
	inBase64URL encoding = "base64url"
)

func (e encoding) decode(s string) ([]byte, error) {
	switch e {
	case inBase64:
		return base64.StdEncoding.DecodeString(s)
	case inBase64URL:
		return base64.RawURLEncoding.DecodeString(strings.TrimRight(s, "="))
	}
	return hex.DecodeString(s)
}

func (e encoding) encode(b []byte) string {
	switch e {
	case inBase64:
		return base64.StdEncoding.EncodeToString(b)
	case inBase64URL:
		return base64.URLEncoding.EncodeToString(b)
	}
	return hex.EncodeToString(b)
}

// maxSignatures bounds how many signatures of one header are looked at.
const maxSignatures = 16

// claim is what a request says of itself.
type claim struct {
	signatures [][]byte
	items      []string // of a list, as sent
	stamp      string   // as sent: the signature covers this text
	sentAt     time.Time
	id         string
}

// verify checks a request. The age is judged last, so that "too old" also tells
// that the signature itself was right.
func (s *scheme) verify(r request) relay.Verdict {
	c, problem := s.read(r.in)
	if problem != "" {
		return refuse("%s", problem)
	}
	if _, problem = s.match(r, c); problem != "" {
		return refuse("%s", problem)
	}
	if s.stampBody != "" {
		if c.sentAt, problem = s.bodyTime(r.in.Body); problem != "" {
			return refuse("%s", problem)
		}
	}
	if !c.sentAt.IsZero() {
		tolerance := s.tolerance
		if r.ep.Tolerance > 0 {
			tolerance = r.ep.Tolerance
		}
		if problem = judgeAge(c.sentAt, r.in.ReceivedAt, tolerance, s.pastOnly); problem != "" {
			return refuse("%s", problem)
		}
	}
	return relay.Verdict{OK: true, Verified: true, SentAt: c.sentAt}
}

// bodyTime reads the time out of a body whose signature holds already.
func (s *scheme) bodyTime(body []byte) (time.Time, string) {
	t, ok := s.unit.parse(scan(body, s.stampBody).number(s.stampBody))
	if !ok {
		return time.Time{}, "the body has no " + s.stampBody
	}
	return t, ""
}

// read takes the headers apart. The second result says what is wrong, "" when
// nothing is.
func (s *scheme) read(in relay.Incoming) (c claim, problem string) {
	value, problem := single(in.Header, s.header)
	if problem != "" {
		return c, problem
	}
	if s.pairs != nil {
		return s.readPairs(value)
	}
	if c.items, c.signatures, problem = s.readSignatures(value); problem != "" {
		return c, problem
	}
	if s.idHeader != "" {
		if c.id, problem = single(in.Header, s.idHeader); problem != "" {
			return c, problem
		}
	}
	if s.stampHeader != "" {
		if c.stamp, problem = single(in.Header, s.stampHeader); problem != "" {
			return c, problem
		}
		var ok bool
		if c.sentAt, ok = s.unit.parse(c.stamp); !ok {
			return c, "the timestamp in " + s.stampHeader + " is malformed"
		}
	}
	return c, ""
}

// readSignatures reads a header that has one signature, or a list of them. In a
// list, what cannot be ours is skipped: another may match.
func (s *scheme) readSignatures(value string) (items []string, signatures [][]byte, problem string) {
	if s.separator == "" {
		text, ok := strings.CutPrefix(value, s.prefix)
		signature, err := s.encoding.decode(text)
		if !ok || err != nil || len(signature) != s.hash().Size() {
			return nil, nil, "the header " + s.header + " is malformed"
		}
		return nil, [][]byte{signature}, ""
	}
	items = strings.SplitN(value, s.separator, maxSignatures+1)
	items = items[:min(len(items), maxSignatures)]
	for _, item := range items {
		text, ok := strings.CutPrefix(strings.TrimSpace(item), s.prefix)
		if !ok {
			continue
		}
		if signature, err := s.encoding.decode(text); err == nil && len(signature) == s.hash().Size() {
			signatures = append(signatures, signature)
		}
	}
	if len(signatures) == 0 && s.other == nil {
		return nil, nil, "the header " + s.header + " is malformed"
	}
	return items, signatures, ""
}

// readPairs reads a header of key=value. Keys that are not ours are skipped, as
// the senders ask; a second time is refused, because one of the two is not
// signed.
func (s *scheme) readPairs(value string) (c claim, problem string) {
	for item := range strings.SplitSeq(value, s.pairs.between) {
		key, val, ok := strings.Cut(item, "=")
		if !ok {
			return c, "the header " + s.header + " is malformed"
		}
		switch key {
		case s.pairs.time:
			sentAt, ok := s.unit.parse(val)
			if !ok {
				return c, "the timestamp in " + s.header + " is malformed"
			}
			if c.stamp != "" {
				return c, "the header " + s.header + " has more than one timestamp"
			}
			c.stamp, c.sentAt = val, sentAt
		case s.pairs.signature:
			signature, err := s.encoding.decode(val)
			if err == nil && len(signature) > 0 && len(c.signatures) < maxSignatures {
				c.signatures = append(c.signatures, signature)
			}
		}
	}
	if c.stamp == "" {
		return c, "the header " + s.header + " has no timestamp"
	}
	if len(c.signatures) == 0 {
		return c, fmt.Sprintf("the header %s has no %s signature", s.header, s.pairs.signature)
	}
	return c, ""
}

// match finds the secret that made one of the claim's signatures; the second
// result says why there is none. Several secrets are valid at once while one is
// being rotated.
//
// Every secret meets every signature and each comparison is constant-time, so
// that the time taken tells nothing about which one was nearly right. An empty
// secret is never tried: everybody knows it.
func (s *scheme) match(r request, c claim) (secret relay.Secret, problem string) {
	messages, problem := s.messages(r.in, c)
	if problem != "" {
		return "", problem
	}
	tried, matched := 0, false
	for _, candidate := range r.ep.Secrets {
		if candidate == "" {
			continue
		}
		tried++
		key := s.keyOf(candidate)
		if len(key) == 0 {
			continue
		}
		for _, parts := range messages {
			want := s.sum(key, parts)
			for _, got := range c.signatures {
				if hmac.Equal(got, want) {
					secret, matched = candidate, true
				}
			}
		}
	}
	if s.other != nil && s.other(r, c.items, messages[0]) {
		matched = true
	}
	switch {
	case matched:
		return secret, ""
	case tried == 0:
		return "", "the endpoint has no secret to check with"
	}
	return "", fmt.Sprintf("no secret matches the signature (%d tried)", tried)
}

func (s *scheme) keyOf(secret relay.Secret) []byte {
	if s.key == nil {
		return []byte(secret.Reveal())
	}
	return s.key(secret.Reveal())
}

func (s *scheme) sum(key []byte, parts [][]byte) []byte {
	mac := hmac.New(s.hash, key)
	for _, part := range parts {
		mac.Write(part)
	}
	return mac.Sum(nil)
}

// messages are what the sender may have signed, each in parts that follow one
// another: one message, and more where the URL has several spellings.
func (s *scheme) messages(in relay.Incoming, c claim) (messages [][][]byte, problem string) {
	body := in.Body
	if s.body != nil {
		if body, problem = s.body(in); problem != "" {
			return nil, problem
		}
	}
	urls := []string{in.PublicURL}
	if strings.Contains(s.signed, "{url}") || strings.Contains(s.signed, "{path}") {
		if in.PublicURL == "" {
			return nil, "the public URL of the request is not known, and the signature covers it"
		}
		if s.urls != nil {
			urls = s.urls(in.PublicURL)
		}
	}
	for _, url := range urls {
		messages = append(messages, fill(s.signed, func(name string) ([]byte, bool) {
			switch name {
			case "{body}":
				return body, true
			case "{timestamp}":
				return []byte(c.stamp), true
			case "{id}":
				return []byte(c.id), true
			case "{method}":
				return []byte(in.Method), true
			case "{url}":
				return []byte(url), true
			case "{path}":
				return []byte(pathOf(url)), true
			}
			return nil, false
		}))
	}
	return messages, ""
}

// fill takes a template apart. What is no known name stands for itself, and what
// is filled in is not looked at again.
func fill(template string, value func(name string) ([]byte, bool)) [][]byte {
	var parts [][]byte
	start := 0
	for i := 0; i < len(template); i++ {
		if template[i] != '{' {
			continue
		}
		end := strings.IndexByte(template[i:], '}')
		if end < 0 {
			break
		}
		if v, known := value(template[i : i+end+1]); known {
			parts = append(parts, []byte(template[start:i]), v)
			i += end
			start = i + 1
		}
	}
	return append(parts, []byte(template[start:]))
}
