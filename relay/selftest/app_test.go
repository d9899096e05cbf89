package selftest

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestAJournalKeepsWhatWasWrittenBesideHalfALineOfAKilledProcess(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	r := NewReader(path)
	var read []int64
	follow := func() {
		t.Helper()
		if err := r.Read(func(d Delivery) { read = append(read, d.Number) }); err != nil {
			t.Fatal(err)
		}
	}
	follow() // before there is a file
	write := func(n int64) {
		t.Helper()
		j, err := OpenJournal(path)
		if err != nil {
			t.Fatal(err)
		}
		defer j.Close()
		if err := j.Write(good(n, "x")); err != nil {
			t.Fatal(err)
		}
	}
	write(1)
	follow()
	write(2)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString("\n" + `{"number":9,"even`)
	f.Close()
	follow()
	write(3)
	follow()
	follow()
	if want := []int64{1, 2, 3}; !reflect.DeepEqual(read, want) {
		t.Errorf("read %v, want %v", read, want)
	}
}

func TestTheAppWritesADeliveryDownBeforeItAnswers(t *testing.T) {
	t.Parallel()
	request := func() *http.Request {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("hello"))
		r.Header = http.Header{
			NumberHeader: {"5"}, "X-Note": {"b", "a"},
			"Postern-Event-Id": {"evt_1"}, "Postern-Delivery-Id": {"dlv_1"}, "Postern-Attempt": {"2"},
			"Idempotency-Key": {"key"}, "X-Forwarded-For": {"::1"}, "Traceparent": {"00-"},
		}
		return r
	}
	want := Delivery{
		Number: 5, EventID: "evt_1", DeliveryID: "dlv_1", Attempt: "2", IdempotencyKey: "key",
		Body:   DigestBody([]byte("hello")),
		Header: DigestHeader(http.Header{NumberHeader: {"5"}, "X-Note": {"b", "a"}}),
	}
	for _, test := range []struct {
		name   string
		status int
		fail   error
		ok     bool
		want   int
	}{
		{"taken", 204, nil, true, 204},
		{"refused", 503, nil, false, 503},
		{"not written down", 200, errors.New("disk full"), true, 500},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			w := httptest.NewRecorder()
			seen := 0
			app := &App{
				Status: func(Delivery) int { return test.status },
				Observe: func(d Delivery) error {
					seen++
					want := want
					want.OK = test.ok
					if d != want {
						t.Errorf("wrote %+v, want %+v", d, want)
					}
					if w.Flushed || w.Body.Len() > 0 {
						t.Error("answered before")
					}
					return test.fail
				},
			}
			app.ServeHTTP(w, request())
			if w.Code != test.want || seen != 1 {
				t.Errorf("answered %d after %d observations, want %d", w.Code, seen, test.want)
			}
		})
	}
}

func TestHeaderDigestsDifferInWhatIsTheSenders(t *testing.T) {
	t.Parallel()
	sent := http.Header{"X-Note": {"a", "b"}, "Content-Type": {"text/plain"}}
	first := DigestHeader(sent)
	for name, test := range map[string]struct {
		change func(http.Header)
		same   bool
	}{
		"the relay's own lines":   {func(h http.Header) { h.Set("Postern-Attempt", "1") }, true},
		"the way it came":         {func(h http.Header) { h.Set("X-Forwarded-Proto", "https") }, true},
		"the order of two values": {func(h http.Header) { h["X-Note"] = []string{"b", "a"} }, false},
		"a lost value":            {func(h http.Header) { h["X-Note"] = []string{"a"} }, false},
		"a lost line":             {func(h http.Header) { h.Del("Content-Type") }, false},
		"another line":            {func(h http.Header) { h.Set("X-More", "1") }, false},
	} {
		changed := sent.Clone()
		test.change(changed)
		if (DigestHeader(changed) == first) != test.same {
			t.Errorf("%s: same digest is %v, want %v", name, !test.same, test.same)
		}
	}
}
