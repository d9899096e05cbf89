package provider

import (
	"fmt"
	"net/http"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/posternhq/postern/relay"
)

func refuse(format string, args ...any) relay.Verdict {
	return relay.Verdict{Reason: fmt.Sprintf(format, args...)}
}

// single gets the value of a header that must be there exactly once. Which of
// two values the app's own library would check is anybody's guess, so two are
// refused. The second result says what is wrong, "" when nothing is.
func single(h http.Header, name string) (value, problem string) {
	values := h.Values(name)
	switch {
	case len(values) == 0:
		return "", fmt.Sprintf("the header %s is missing", name)
	case len(values) > 1:
		return "", fmt.Sprintf("the header %s is there %d times", name, len(values))
	case values[0] == "":
		return "", fmt.Sprintf("the header %s is empty", name)
	}
	return values[0], ""
}

// maxLabel bounds ids and types, which become database keys.
const maxLabel = 256

// label is s when it can be an id or a type, else "". An event without an id is
// only not deduplicated, so leaving out an odd one loses nothing.
func label(s string) string {
	if len(s) > maxLabel || !utf8.ValidString(s) {
		return ""
	}
	for _, r := range s {
		if r < ' ' || r == 0x7f {
			return ""
		}
	}
	return s
}

// unit is how a sender writes the time.
type unit string

const (
	seconds      unit = "s"  // since 1970
	milliseconds unit = "ms" // since 1970
	rfc3339      unit = "rfc3339"
)

const maxUnixSeconds = 253402300799 // the end of the year 9999; later times do not fit the store

// parse reads a time as the sender wrote it. Numbers have one way to be written:
// what is signed is the text, and a second spelling of it would be a second
// event to whoever compares texts.
func (u unit) parse(s string) (time.Time, bool) {
	if u == rfc3339 {
		t, err := time.Parse(time.RFC3339, s)
		return t.UTC(), err == nil && t.Year() >= 1970
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != s {
		return time.Time{}, false
	}
	if u == milliseconds {
		return time.UnixMilli(n).UTC(), n <= maxUnixSeconds*1000
	}
	return time.Unix(n, 0).UTC(), n <= maxUnixSeconds
}

func (u unit) format(t time.Time) string {
	switch u {
	case rfc3339:
		return t.UTC().Format(time.RFC3339)
	case milliseconds:
		return strconv.FormatInt(t.UnixMilli(), 10)
	}
	return strconv.FormatInt(t.Unix(), 10)
}

// judgeAge compares a signed time with the time of arrival; "" when it is near
// enough. With pastOnly it refuses only what is too old: a fast clock at the
// sender is no attack, and a replay is always old.
func judgeAge(sentAt, receivedAt time.Time, tolerance time.Duration, pastOnly bool) (problem string) {
	if tolerance == 0 || tolerance == forever {
		return ""
	}
	if receivedAt.IsZero() {
		return "the time of arrival is not known, so the timestamp cannot be checked"
	}
	age := receivedAt.Sub(sentAt)
	if over := age - tolerance; over > 0 {
		return fmt.Sprintf("the timestamp is too old by %ds", ceilSeconds(over))
	}
	if over := -age - tolerance; over > 0 && !pastOnly {
		return fmt.Sprintf("the timestamp is from the future, too far by %ds", ceilSeconds(over))
	}
	return ""
}

func ceilSeconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }
