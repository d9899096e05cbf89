package selftest

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/posternhq/postern/protocol"
)

// NumberHeader carries an event's number from the sender to the app.
const NumberHeader = "Selftest-Event"

// Digest stands for bytes that must arrive as they were sent.
type Digest string

// DigestBody is the digest of a body.
func DigestBody(body []byte) Digest {
	sum := sha256.Sum256(body)
	return Digest(hex.EncodeToString(sum[:16]))
}

// DigestHeader is the digest of the sender's own header lines: of all but those
// that the relay adds, or that belong to one connection.
func DigestHeader(h http.Header) Digest {
	hash := sha256.New()
	var names []string
	for name := range h {
		if !added(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		for _, value := range h[name] {
			io.WriteString(hash, name+": "+value+"\n")
		}
	}
	return Digest(hex.EncodeToString(hash.Sum(nil)[:16]))
}

// added reports whether the header line is not the sender's.
func added(name string) bool {
	switch http.CanonicalHeaderKey(name) {
	case "Idempotency-Key", "Traceparent", "Tracestate", "Via",
		"Content-Length", "Accept-Encoding", "Connection", "Host":
		return true
	}
	return strings.HasPrefix(name, protocol.HeaderPrefix) || strings.HasPrefix(name, "X-Forwarded-")
}

// Event is a webhook of a sender's. Its number is its own for as long as a
// ledger lives; later events of the same sender have higher ones.
type Event struct {
	Number int64
	Key    string // events with equal keys keep their order; "" has none
	Body   Digest
	Header Digest
}

// Delivery is an event as it came to the app, once.
type Delivery struct {
	Number         int64  `json:"number"` // 0: it carries none
	EventID        string `json:"event"`
	DeliveryID     string `json:"delivery"`
	Attempt        string `json:"attempt"`
	IdempotencyKey string `json:"idempotency_key"`
	Body           Digest `json:"body"`
	Header         Digest `json:"header"`
	OK             bool   `json:"ok"` // the app is about to answer 2xx
}

// deliveryOf reads a request to the app.
func deliveryOf(h http.Header, body []byte) Delivery {
	number, _ := strconv.ParseInt(h.Get(NumberHeader), 10, 64)
	return Delivery{
		Number:         number,
		EventID:        h.Get(protocol.HeaderEventID),
		DeliveryID:     h.Get(protocol.HeaderDeliveryID),
		Attempt:        h.Get(protocol.HeaderAttempt),
		IdempotencyKey: h.Get("Idempotency-Key"),
		Body:           DigestBody(body),
		Header:         DigestHeader(h),
	}
}
