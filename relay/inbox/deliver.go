package inbox

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/posternhq/postern/relay"
)

// What is kept of an answer, and how much more of it is read so that the
// connection can be used again.
const (
	maxAnswerKept   = 64 << 10
	maxAnswerRead   = 1 << 20
	maxAnswerHeader = 16 << 10
	maxErrorText    = 500
	maxRetryIn      = 24 * time.Hour
)

// maxAttempt bounds an attempt in silences: an app that trickles its answer is
// cut off after this many times AttemptTimeout.
const maxAttempt = 10

// errSilent is the cause of a context that ended because the app was silent.
var errSilent = errors.New("the app was silent for too long")

// try hands f's event to its destination once, and says how it went. It returns
// soon after ctx ends; the attempt is then to be forgotten rather than recorded.
// For a sender who waits it also gives the whole answer, unless that is too long.
func (b *Inbox) try(ctx context.Context, f *flight) (relay.Attempt, *relay.Answer) {
	a := relay.Attempt{Delivery: f.lease.Delivery.ID, StartedAt: b.cfg.Now()}
	ctx, stopTotal := context.WithTimeoutCause(ctx, maxAttempt*b.cfg.AttemptTimeout, errSilent)
	defer stopTotal()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(b.cfg.AttemptTimeout, func() { cancel(errSilent) })
	defer silence.Stop()

	r, err := b.Request(ctx, f.ep, f.lease)
	if err != nil {
		// Nothing was sent, yet it counts: it will not be better next time.
		a.Outcome, a.Error, a.EndedAt = relay.OutcomeRejected, errorText(err), b.cfg.Now()
		return a, nil
	}
	var whole *relay.Answer
	answer, err := b.transport(f.dest).RoundTrip(r)
	if err == nil {
		silence.Reset(b.cfg.AttemptTimeout)
		answer.Body = readWatcher{answer.Body, func() { silence.Reset(b.cfg.AttemptTimeout) }}
		whole, err = readAnswer(&a, answer, f.live != nil, b.cfg.Now())
	}
	if err != nil {
		a.Outcome, a.Error = classify(err, context.Cause(ctx)), errorText(err)
	}
	a.EndedAt = b.cfg.Now()
	return a, whole
}

// transport is what reaches d.
func (b *Inbox) transport(d relay.Destination) http.RoundTripper {
	if d.URL != "" {
		return b.cfg.URLs
	}
	return b.cfg.App
}

// classify says what an attempt without a whole answer means for the event.
func classify(err, cause error) relay.Outcome {
	if errors.Is(cause, errSilent) {
		return relay.OutcomeTimeout
	}
	return relay.OutcomeOf(err)
}

// readAnswer records the answer in a. An answer that is cut short is an error
// even after a 2xx, because the app may have died in the middle of its work. With
// whole it also gives all of an answer that is not too long to be passed on.
func readAnswer(a *relay.Attempt, answer *http.Response, whole bool, now time.Time) (*relay.Answer, error) {
	defer answer.Body.Close()
	a.Status, a.Outcome = answer.StatusCode, relay.OutcomeRejected
	if answer.StatusCode >= 200 && answer.StatusCode <= 299 {
		a.Outcome = relay.OutcomeDone
	}
	a.RetryIn = retryAfter(answer.Header.Get("Retry-After"), now)
	a.Header = boundedFields(answer.Header)
	if answer.StatusCode == http.StatusSwitchingProtocols {
		return nil, nil // what follows is not a body and has no end
	}
	keep, more := int64(maxAnswerKept), int64(maxAnswerRead-maxAnswerKept)
	if whole {
		keep, more = maxAnswerRead, 1
	}
	kept := &bytes.Buffer{}
	if _, err := io.Copy(kept, io.LimitReader(answer.Body, keep)); err != nil {
		return nil, err
	}
	a.Body = kept.Bytes()[:min(kept.Len(), maxAnswerKept)]
	// A longer answer is cut off by the Close above; its status stands.
	n, err := io.Copy(io.Discard, io.LimitReader(answer.Body, more))
	if err != nil || n > 0 || !whole {
		return nil, err
	}
	h := answer.Header.Clone()
	relay.RemoveHopByHop(h)
	h.Del("Content-Length") // of the body as it came; the sender's may come otherwise
	return &relay.Answer{Status: answer.StatusCode, Header: relay.FieldsOf(h), Body: kept.Bytes()}, nil
}

// readWatcher calls seen after every read that brought something.
type readWatcher struct {
	io.ReadCloser
	seen func()
}

func (w readWatcher) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	if n > 0 {
		w.seen()
	}
	return n, err
}

// retryAfter reads a Retry-After (RFC 9110, section 10.2.3): seconds or a date.
// What it does not understand, and the past, is 0.
func retryAfter(value string, now time.Time) time.Duration {
	value = strings.TrimSpace(value)
	if value == "" {
		return 0
	}
	if strings.Trim(value, "0123456789") == "" {
		seconds, err := strconv.ParseInt(value, 10, 64)
		if err != nil || seconds > int64(maxRetryIn/time.Second) {
			return maxRetryIn // all digits, so it can only be too large
		}
		return time.Duration(seconds) * time.Second
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	return max(0, min(at.Sub(now), maxRetryIn))
}

// boundedFields is an answer's header for the record, without what goes beyond
// the limit.
func boundedFields(h http.Header) []relay.Field {
	fields, size := relay.FieldsOf(h), 0
	for i, f := range fields {
		if size += len(f.Name) + len(f.Value); size > maxAnswerHeader {
			return fields[:i]
		}
	}
	return fields
}

// errorText is err for the record: short, and fit for every database.
func errorText(err error) string {
	text := err.Error()
	text = strings.ReplaceAll(text[:min(len(text), maxErrorText)], "\x00", "")
	return strings.ToValidUTF8(text, "?")
}
