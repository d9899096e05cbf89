package protocol

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode/utf8"
)

// Everything that reads the peer's bytes is here with the same three promises:
// it does not panic, what it lets through is within the limits, and what it
// lets through survives being written and read again.

func FuzzDecodeControl(f *testing.F) {
	for _, seed := range []string{
		`{"type":"hello","hello":{"versions":[1],"features":["drain","tcp"],"agent":"postern/1.0","instance":"web.1","boot_id":"0123456789abcdef","tunnel":1,"tunnels":2,"platform":"heroku","process":"web","release":"v42","commit":"abc","region":"eu"}}`,
		`{"type":"welcome","welcome":{"version":1,"features":["drain"],"session":"s","node":"n","heartbeat_ms":20000,"slot_ms":500}}`,
		`{"type":"refuse","code":"version","message":"no","retry_after_ms":1000}`,
		`{"type":"ping","id":18446744073709551615}`, `{"type":"pong","id":0}`,
		`{"type":"drain","message":"deploy","grace_ms":20000,"reconnect_ms":9223372036854775807}`,
		`{"type":"drained"}`, `{"type":"close","code":"shutdown","message":"<\u0000\ud800>"}`,
		`{"type":"teleport","to":{"x":[1,2,{}]}}`, `{"type":"hello"}`, `{"type":"welcome","welcome":null}`,
		`{"type":"ping","type":"pong"}`, `null`, `[]`, `{}`, ``, `{"type":"ping"}{`, `{"type":"drain","grace_ms":-1}`,
		`{"type":"x","hello":{"versions":[],"tunnels":-1}}`, `{"TYPE":"ping","hello":{}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := DecodeControl(body)
		if err != nil {
			wantBadMessage(t, err)
			return
		}
		checkControl(t, c)
		again := reread(t, c, len(body))
		if again == nil {
			return
		}
		back, err := DecodeControl(again)
		if err != nil {
			t.Fatalf("own message %s: %v", again, err)
		}
		if !reflect.DeepEqual(tidy(back), tidy(c)) {
			t.Fatalf("wrote %+v, read %+v", c, back)
		}
	})
}

// checkControl looks for what may not come through.
func checkControl(t *testing.T, c Control) {
	t.Helper()
	if c.Type == "" || c.GraceMS < 0 || c.ReconnectMS < 0 || c.RetryAfterMS < 0 {
		t.Fatalf("accepted %+v", c)
	}
	for _, ms := range []int64{c.GraceMS, c.ReconnectMS, c.RetryAfterMS} {
		if d := millis(ms, maxGrace); d < 0 || d > maxGrace {
			t.Fatalf("%d ms became %v", ms, d)
		}
	}
	if h := c.Hello; h != nil {
		if len(h.Versions) == 0 || len(h.Versions) > maxListLen || len(h.Features) > maxListLen || len(h.BootID) < minBootID ||
			h.Tunnel < 0 || h.Tunnel >= h.Tunnels || h.Tunnels > MaxTunnels || h.Instance == "" {
			t.Fatalf("accepted %+v", h)
		}
		checkNames(t, h.Agent, h.Instance, h.BootID, h.Platform, h.Process, h.Release, h.Commit, h.Region)
	}
	if w := c.Welcome; w != nil {
		beat := time.Duration(w.HeartbeatMS) * time.Millisecond
		if len(w.Features) > maxListLen || beat < minInterval || beat > maxInterval || w.SlotMS < 0 {
			t.Fatalf("accepted %+v", w)
		}
		checkNames(t, w.Session, w.Node)
	}
}

func checkNames(t *testing.T, names ...string) {
	t.Helper()
	for _, s := range names {
		if len(s) > maxNameLen || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Fatalf("accepted the name %q", s)
		}
	}
}

// tidy takes the difference between an absent list and an empty one out of c,
// which the wire does not know.
func tidy(c Control) Control {
	if h := c.Hello; h != nil && len(h.Features) == 0 {
		plain := *h
		plain.Features = nil
		c.Hello = &plain
	}
	if w := c.Welcome; w != nil && len(w.Features) == 0 {
		plain := *w
		plain.Features = nil
		c.Welcome = &plain
	}
	return c
}

// reread writes v as a message and reads that. It is nil when v has grown over
// the limit on the way: JSON escapes make it longer than what came.
func reread(t *testing.T, v any, came int) []byte {
	t.Helper()
	msg, err := appendFrame(nil, v)
	if err != nil {
		if came < MaxFrame/6-1000 {
			t.Fatalf("%d bytes came in and cannot be written: %v", came, err)
		}
		return nil
	}
	body, err := readFrame(bytes.NewReader(msg), nil)
	if err != nil || len(body) == 0 {
		t.Fatalf("own message of %d bytes: %v", len(msg), err)
	}
	return body
}

func wantBadMessage(t *testing.T, err error) {
	t.Helper()
	if CodeOf(err) != CodeBadMessage {
		t.Fatalf("%v has code %q, expected %s", err, CodeOf(err), CodeBadMessage)
	}
}

func FuzzDecodeOpen(f *testing.F) {
	for _, seed := range []string{`{"kind":"http"}`, `{"kind":"tcp","addr":"db.internal:5432"}`, `{"kind":"tcp","addr":"[::1]:1"}`,
		`{"kind":""}`, `{"kind":"http","addr":"a b"}`, `{"kind":"http","addr":"ü:1"}`, `{"kind":1}`, `null`, ``, `{"kind":"x","later":[]}`,
		`{"kind":"` + strings.Repeat("k", 129) + `"}`, `{"kind":"tcp","addr":"` + strings.Repeat("a", 263) + `"}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		o, err := DecodeOpen(body)
		if err != nil {
			wantBadMessage(t, err)
			return
		}
		if o.Kind == "" || len(o.Addr) > maxAddr || strings.ContainsFunc(o.Addr, func(r rune) bool { return r <= ' ' || r > '~' }) {
			t.Fatalf("accepted %+v", o)
		}
		checkNames(t, string(o.Kind))
		back, err := DecodeOpen(reread(t, o, 0)) // it is short: it must fit
		if err != nil || back != o {
			t.Fatalf("wrote %+v, read %+v, %v", o, back, err)
		}
	})
}

func FuzzDecodeReply(f *testing.F) {
	for _, seed := range []string{``, `{"code":"app_refused","message":"nothing listens on 127.0.0.1:3000"}`, `{"code":""}`, `{}`, `null`, `0`,
		`{"code":"of a later version"}`, `{"message":"no code"}`, `{"code":"limit","message":1}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		err := DecodeReply(body)
		if err == nil {
			if len(body) != 0 {
				t.Fatalf("%q accepts the stream", body)
			}
			return
		}
		var e *Error
		if !errors.As(err, &e) || e.Code == "" {
			t.Fatalf("%v has no code", err)
		}
		if !e.Unsent {
			wantBadMessage(t, err) // what cannot be read proves nothing
			return
		}
		if again := reread(t, Reply{Code: e.Code, Message: e.Message, Detail: e.Detail}, len(body)); again != nil {
			if back := DecodeReply(again); !reflect.DeepEqual(back, err) {
				t.Fatalf("wrote %v, read %v", err, back)
			}
		}
	})
}

func FuzzReadFrame(f *testing.F) {
	for _, seed := range []string{"", "\x00", "\x00\x00", "\x00\x01", "\x00\x01x", "\x00\x02xyz", "\x40\x00", "\x40\x01", "\xff\xff",
		"\x40\x00" + strings.Repeat("x", MaxFrame), "\x00\x00\x00\x01x"} {
		f.Add([]byte(seed), 0)
		f.Add([]byte(seed), 8)
	}
	f.Fuzz(func(t *testing.T, stream []byte, size int) {
		want, length := io.EOF, 0
		if len(stream) == 1 {
			want = io.ErrUnexpectedEOF
		} else if len(stream) >= 2 {
			length = int(binary.BigEndian.Uint16(stream))
			if want = nil; length > len(stream)-2 {
				want = io.ErrUnexpectedEOF
			}
		}
		for name, r := range map[string]io.Reader{"whole": bytes.NewReader(stream), "bytewise": iotest.OneByteReader(bytes.NewReader(stream))} {
			body, err := readFrame(r, make([]byte, max(0, min(size, 1<<16))))
			switch {
			case length > MaxFrame:
				wantBadMessage(t, err)
			case err != want:
				t.Fatalf("%s: %v, expected %v", name, err, want)
			case err == nil && !bytes.Equal(body, stream[2:2+length]):
				t.Fatalf("%s: read %q of %q", name, body, stream)
			}
			if rest, _ := io.ReadAll(r); err == nil && len(rest) != len(stream)-2-length {
				t.Fatalf("%s: %d bytes are left behind a message of %d in %d", name, len(rest), length, len(stream))
			}
		}
	})
}

func FuzzDecodeRefusal(f *testing.F) {
	f.Add(401, "", []byte(`{"error":{"code":"unauthorized","reason":"token_expired","message":"it ended"}}`))
	f.Add(503, "7", []byte(`{"error":{"code":"draining","message":"moving"}}`))
	f.Add(503, "31536000", []byte(`<html>`))
	f.Add(503, "-1", []byte(`{"error":"text"}`))
	f.Add(503, "1h5", []byte(`null`))
	f.Add(0, "9223372036854775807", []byte(`{"error":{"code":"`))
	f.Fuzz(func(t *testing.T, status int, retryAfter string, body []byte) {
		e := decodeRefusal(status, retryAfter, body)
		if e.Status != status || e.Reason == "" || e.RetryAfter < 0 || e.RetryAfter > maxGrace || e.Error() == "" {
			t.Fatalf("got %+v", e)
		}
		if e.Permanent() && !bytes.Contains(body, []byte("token_")) && !bytes.Contains(body, []byte(`\u`)) {
			t.Fatalf("%q is for ever", body)
		}
		var a answer
		a.Error.Code, a.Error.Reason, a.Error.Message = "c", e.Reason, e.Message
		text, err := json.Marshal(a)
		if err != nil {
			t.Fatal(err)
		}
		if back := decodeRefusal(status, retryAfter, text); utf8.ValidString(e.Reason+e.Message) && *back != *e {
			t.Fatalf("wrote %+v, read %+v", e, back)
		}
	})
}

func TestWrittenMessagesAreReadAsTheyWere(t *testing.T) {
	for _, c := range []Control{
		{Type: FrameHello, Hello: &Hello{Versions: []int{1, 2}, Features: Features(), Agent: "a", Instance: "web.1", BootID: "12345678",
			Tunnel: 15, Tunnels: 16, Platform: "p", Process: "q", Release: "r", Commit: "c", Region: strings.Repeat("~", maxNameLen)}},
		{Type: FrameWelcome, Welcome: &Welcome{Version: 1, Features: []Feature{FeatureTCP}, Session: "s", Node: "n", HeartbeatMS: 50, SlotMS: 1}},
		{Type: FrameRefuse, Code: CodeVersion, Message: "<&>é\x00\u2028", RetryAfterMS: 1},
		{Type: FramePing, ID: 1<<64 - 1},
		{Type: FrameDrain, Message: "deploy", GraceMS: 1<<63 - 1, ReconnectMS: 1},
		{Type: FrameClose, Code: CodeReplaced},
	} {
		msg, err := appendFrame([]byte("before"), c)
		if err != nil || !bytes.HasPrefix(msg, []byte("before")) {
			t.Fatalf("%+v: %q, %v", c, msg, err)
		}
		body, err := readFrame(bytes.NewReader(msg[6:]), nil)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := DecodeControl(body); err != nil || !reflect.DeepEqual(back, c) {
			t.Errorf("wrote %+v, read %+v, %v", c, back, err)
		}
	}
}

func TestMessageOfExactlyTheLimitPassesAndOneByteMoreDoesNot(t *testing.T) {
	overhead := len(`{"code":"c","message":""}`)
	for n, ok := range map[int]bool{MaxFrame: true, MaxFrame + 1: false} {
		msg, err := appendFrame(nil, Reply{Code: "c", Message: strings.Repeat("x", n-overhead)})
		if (err == nil) != ok {
			t.Errorf("%d bytes: %v", n, err)
		}
		if ok && len(msg) != 2+n {
			t.Errorf("%d bytes became %d", n, len(msg))
		}
		if _, err := readFrame(io.MultiReader(bytes.NewReader(binary.BigEndian.AppendUint16(nil, uint16(n))), neverEnding{}), nil); (err == nil) != ok {
			t.Errorf("reading %d bytes: %v", n, err)
		}
	}
}

type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) { return len(p), nil }

func TestReasonsAreClippedBetweenCharacters(t *testing.T) {
	for _, s := range []string{"", "short", strings.Repeat("x", maxReason), strings.Repeat("é", 2000), "x" + strings.Repeat("é", 2000), strings.Repeat("\xff", 2000)} {
		got := clip(s)
		if len(s) <= maxReason && got != s || len(got) > maxReason+len("…") || utf8.ValidString(s) && !utf8.ValidString(got) {
			t.Errorf("%.20q of %d bytes became %d bytes", s, len(s), len(got))
		}
	}
}
