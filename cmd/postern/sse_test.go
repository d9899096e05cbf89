package main

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// readAll is what a stream has, and the last id.
func readAll(t testing.TB, r io.Reader, max int) (messages []sseMessage, s *sseReader) {
	t.Helper()
	s = newSSEReader(r, max)
	for {
		m, err := s.next()
		if errors.Is(err, io.EOF) {
			return messages, s
		}
		if err != nil {
			t.Fatal(err)
		}
		messages = append(messages, m)
	}
}

func TestServerSentEventsAreReadAsTheStandardSays(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, in string
		want     []string // event|data, or "too long"
		lastID   string
	}{
		{"nothing", "", nil, ""},
		{"one", "event: received\nid: 7\ndata: {}\n\n", []string{"received|{}"}, "7"},
		{"without blanks", "event:a\ndata:b\n\n", []string{"a|b"}, ""},
		{"one blank only is taken away", "data:  b\n\n", []string{"| b"}, ""},
		{"several data lines", "data: a\ndata\ndata: b\n\n", []string{"|a\n\nb"}, ""},
		{"a comment is nothing", ": here\n\n:\n\ndata: a\n\n", []string{"|a"}, ""},
		{"an id alone counts", "id: 9\n\n", nil, "9"},
		{"an id stays", "id: 9\ndata: a\n\ndata: b\n\n", []string{"|a", "|b"}, "9"},
		{"an empty id forgets", "id: 9\ndata: a\n\nid\ndata: b\n\n", []string{"|a", "|b"}, ""},
		{"an id with NUL is none", "id: 9\ndata: a\n\nid: 1\x002\ndata: b\n\n", []string{"|a", "|b"}, "9"},
		{"nor is one that no header can have", "id: 9\n\nid: 1\x1b\n\n", nil, "9"},
		{"what is not ended is no message", "id: 1\ndata: a\n\nid: 2\ndata: b\n", []string{"|a"}, "1"},
		{"an event without data is none", "event: a\n\ndata: b\n\n", []string{"|b"}, ""},
		{"empty data is one", "data\n\n", []string{"|"}, ""},
		{"CR LF", "event: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n", []string{"a|b", "|c"}, ""},
		{"CR", "event: a\rdata: b\r\rdata: c\r\r", []string{"a|b", "|c"}, ""},
		{"mixed", "data: a\r\n\n\rdata: b\n\r\n", []string{"|a", "|b"}, ""},
		{"a byte order mark", "\ufeffdata: a\n\n", []string{"|a"}, ""},
		{"one that is not at the beginning is no mark", "data: a\n\n\ufeffdata: b\n\n", []string{"|a"}, ""},
		{"unknown fields", "size: 3\ndata: a\nx\n\n", []string{"|a"}, ""},
		{"a line that is too long", "id: 3\ndata: " + strings.Repeat("x", 200) + "\n\ndata: a\n\n", []string{"too long", "|a"}, "3"},
		{"a comment that is too long", ":" + strings.Repeat("x", 200) + "\n\ndata: a\n\n", []string{"too long", "|a"}, ""},
		{"lines that are too long together", strings.Repeat("data: "+strings.Repeat("x", 40)+"\n", 4) + "\ndata: a\n\n", []string{"too long", "|a"}, ""},
		{"as long as may be", "data: " + strings.Repeat("x", 94) + "\n\n", []string{"|" + strings.Repeat("x", 94)}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for name, r := range map[string]io.Reader{"at once": strings.NewReader(test.in), "byte by byte": iotest.OneByteReader(strings.NewReader(test.in))} {
				var got []string
				messages, s := readAll(t, r, 100)
				for _, m := range messages {
					if m.tooLong {
						got = append(got, "too long")
						continue
					}
					got = append(got, m.event+"|"+string(m.data))
				}
				if !slices.Equal(got, test.want) || s.lastID != test.lastID {
					t.Errorf("%s: %q behind %q, want %q behind %q", name, got, s.lastID, test.want, test.lastID)
				}
			}
		})
	}
}

func TestServerSaysWhenToComeBack(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]time.Duration{
		"retry: 1500\n\n": 1500 * time.Millisecond, "retry: x\n\n": 0, "retry: -1\n\n": 0, "retry:\n\n": 0,
		"retry: 99999999999999999999\n\n": 0,
	} {
		if _, s := readAll(t, strings.NewReader(in), 100); s.retry != want {
			t.Errorf("%q: %v, want %v", in, s.retry, want)
		}
	}
}

func FuzzServerSentEvents(f *testing.F) {
	f.Add([]byte("event: received\r\nid: 7\rdata: {}\ndata: a\n\n: c\nretry: 3\n\n"))
	f.Add([]byte("\ufeffdata:" + strings.Repeat("x", 300) + "\n\ndata\n\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		const most = 64
		want, a := readAll(t, bytes.NewReader(in), most)
		// However the bytes come, they say the same.
		got, b := readAll(t, iotest.OneByteReader(bytes.NewReader(in)), most)
		if len(got) != len(want) || a.lastID != b.lastID || a.retry != b.retry {
			t.Fatalf("at once %v, byte by byte %v", want, got)
		}
		for i, m := range want {
			if m.event != got[i].event || !bytes.Equal(m.data, got[i].data) || m.tooLong != got[i].tooLong {
				t.Fatalf("at once %v, byte by byte %v", want, got)
			}
			if len(m.data) > most || m.tooLong && len(m.data) > 0 {
				t.Fatalf("a message of %d bytes", len(m.data))
			}
		}
		if !fitsHeader([]byte(a.lastID)) {
			t.Fatalf("an id that is no header value: %q", a.lastID)
		}
	})
}
