package provider

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/url"
	"sync"

	"github.com/posternhq/postern/relay"
)

// mailgunSignature is the part of a body that Mailgun signs.
type mailgunSignature struct{ timestamp, token, signature string }

// verifyMailgun checks HMAC-SHA256 over timestamp + token. These three stand in
// the body and cover nothing else of it, so a signature is only good for the
// first body it came with, and for that one again: Mailgun's retry.
func verifyMailgun(r request) relay.Verdict {
	m := readMailgun(r.in)
	if m.timestamp == "" || m.token == "" || m.signature == "" {
		return refuse("the body has no signature with a timestamp and a token")
	}
	sentAt, ok := seconds.parse(m.timestamp)
	if !ok {
		return refuse("the timestamp in the body is malformed")
	}
	signature, err := hex.DecodeString(m.signature)
	if err != nil || len(signature) != sha256.Size {
		return refuse("the signature in the body is malformed")
	}
	s := scheme{hash: sha256.New, signed: "{timestamp}{id}"}
	c := claim{signatures: [][]byte{signature}, stamp: m.timestamp, id: m.token}
	if _, problem := s.match(r, c); problem != "" {
		return refuse("%s", problem)
	}
	if problem := judgeAge(sentAt, r.in.ReceivedAt, r.ep.Tolerance, false); problem != "" {
		return refuse("%s", problem)
	}
	if !r.trial && !r.rules.tokens.admit(r.ep, m.timestamp+m.token, r.in.Body) {
		return refuse("the token was used before, with another body")
	}
	return relay.Verdict{OK: true, Verified: true, SentAt: sentAt}
}

// readMailgun finds the signature: an object of a JSON body, or three fields of
// a form of either kind, as in Mailgun's older webhooks and its routes.
func readMailgun(in relay.Incoming) mailgunSignature {
	kind, params, _ := mime.ParseMediaType(in.Header.Get("Content-Type"))
	var form url.Values
	var err error
	switch kind {
	case "application/x-www-form-urlencoded":
		form, err = url.ParseQuery(string(in.Body))
	case "multipart/form-data":
		form, err = shortFields(in.Body, params["boundary"])
	}
	if err != nil {
		return mailgunSignature{}
	}
	if form != nil {
		var m mailgunSignature
		m.timestamp, _ = one(form, "timestamp")
		m.token, _ = one(form, "token")
		m.signature, _ = one(form, "signature")
		return m
	}
	f := scan(in.Body, "signature.timestamp", "signature.token", "signature.signature")
	m := mailgunSignature{f.text("signature.timestamp"), f.text("signature.token"), f.text("signature.signature")}
	if m.timestamp == "" {
		m.timestamp = f.number("signature.timestamp")
	}
	return m
}

// maxField bounds the fields of a multipart form that are read; mails and their
// attachments are longer.
const maxField = 1 << 10

// shortFields reads the short fields of a multipart form and passes over files.
func shortFields(body []byte, boundary string) (url.Values, error) {
	form := url.Values{}
	reader := multipart.NewReader(bytes.NewReader(body), boundary)
	for range maxItems {
		part, err := reader.NextRawPart()
		if err == io.EOF {
			return form, nil
		}
		if err != nil {
			return nil, err
		}
		value, err := io.ReadAll(io.LimitReader(part, maxField+1))
		if err != nil {
			return nil, err
		}
		if part.FileName() == "" && len(value) <= maxField {
			form.Add(part.FormName(), string(value))
		}
	}
	return nil, errors.New("too many parts")
}

func aboutMailgun(r request) about {
	f := scan(r.in.Body, "event-data.id", "event-data.event")
	a := about{id: f.text("event-data.id"), kind: f.text("event-data.event")}
	if a.id == "" {
		a.id = readMailgun(r.in).token
	}
	return a
}

// maxTokens bounds how many tokens are remembered: at ten webhooks a second,
// those of a quarter of an hour.
const maxTokens = 8192

// tokens remembers which body a token came with. It is memory and no more: a
// restart forgets it, and then the dedupe key is what is left.
type tokens struct {
	mu     sync.Mutex
	bodies map[[sha256.Size]byte][sha256.Size]byte
	order  [][sha256.Size]byte // a ring of the keys
	next   int
}

func newTokens() *tokens {
	return &tokens{bodies: make(map[[sha256.Size]byte][sha256.Size]byte)}
}

// admit reports whether token may come with body, and remembers that it did.
func (t *tokens) admit(ep relay.Endpoint, token string, body []byte) bool {
	key := sha256.Sum256([]byte(string(ep.App) + "/" + ep.Name + "/" + token))
	hash := sha256.Sum256(body)
	t.mu.Lock()
	defer t.mu.Unlock()
	if known, ok := t.bodies[key]; ok {
		return hmac.Equal(known[:], hash[:])
	}
	t.bodies[key] = hash
	if len(t.order) < maxTokens {
		t.order = append(t.order, key)
		return true
	}
	delete(t.bodies, t.order[t.next])
	t.order[t.next] = key
	t.next = (t.next + 1) % maxTokens
	return true
}
