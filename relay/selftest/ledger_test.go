package selftest

import (
	"net/http"
	"strings"
	"testing"
)

// story is a made-up history of a ledger.
type story struct{ *Ledger }

func (s story) send(number int64, key string) {
	s.Send(Event{Number: number, Key: key, Body: "body", Header: "header"})
}

func (s story) ack(number int64, id string) { s.Answer(number, http.StatusAccepted, id, nil) }

// good is a first delivery as it should be.
func good(number int64, id string) Delivery {
	return Delivery{
		Number: number, EventID: id, DeliveryID: "dlv_" + id, Attempt: "1", IdempotencyKey: id,
		Body: "body", Header: "header", OK: true,
	}
}

func (s story) take(number int64, id string) { s.Observe(good(number, id)) }

// changed delivers with a difference.
func (s story) changed(number int64, id string, change func(*Delivery)) {
	d := good(number, id)
	change(&d)
	s.Observe(d)
}

func TestEachViolationIsFoundAndNothingElse(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		tell func(story)
		want string // kinds and numbers, "" for none
	}{
		{"a good day", func(s story) {
			s.send(1, "a")
			s.ack(1, "x")
			s.take(1, "x")
			s.send(2, "a")
			s.ack(2, "y")
			s.take(2, "y")
		}, ""},
		{"the same event again, with the same key", func(s story) {
			s.send(1, "")
			s.ack(1, "x")
			s.take(1, "x")
			s.take(1, "x")
		}, ""},
		{"an event that was delivered before its sender heard of it", func(s story) {
			s.send(1, "")
			s.take(1, "x")
			s.ack(1, "x")
		}, ""},
		{"an event that was stored though its sender never heard of it", func(s story) {
			s.send(1, "")
			s.Unanswered(1)
			s.take(1, "x")
		}, ""},
		{"an event that was sent again", func(s story) {
			s.send(1, "")
			s.Unanswered(1)
			s.send(1, "")
			s.ack(1, "x")
			s.take(1, "x")
		}, ""},
		{"events that nobody promised anything about", func(s story) {
			s.send(1, "a")
			s.Unanswered(1)
			s.send(2, "a")
			s.Answer(2, http.StatusServiceUnavailable, "", http.Header{"Retry-After": {"1"}})
			s.send(3, "a")
			s.Answer(3, http.StatusInternalServerError, "z", nil)
		}, ""},
		{"a refusal of the app's, then success", func(s story) {
			s.send(1, "")
			s.ack(1, "x")
			s.changed(1, "x", func(d *Delivery) { d.OK = false })
			s.take(1, "x")
		}, ""},

		{"acknowledged and never delivered", func(s story) {
			s.send(1, "")
			s.ack(1, "x")
			s.send(2, "")
			s.ack(2, "y")
			s.take(2, "y")
		}, "lost 1"},
		{"acknowledged and never taken", func(s story) {
			s.send(1, "")
			s.ack(1, "x")
			s.changed(1, "x", func(d *Delivery) { d.OK = false })
		}, "lost 1"},
		{"another body", func(s story) {
			s.send(1, "")
			s.ack(1, "x")
			s.changed(1, "x", func(d *Delivery) { d.Body = "other" })
		}, "body differs 1"},
		{"another body the second time", func(s story) {
			s.send(1, "")
			s.ack(1, "x")
			s.take(1, "x")
			s.changed(1, "x", func(d *Delivery) { d.Body = "other" })
		}, "body differs 1"},
		{"another header", func(s story) {
			s.send(1, "")
			s.changed(1, "x", func(d *Delivery) { d.Header = "other" })
		}, "header differs 1"},
		{"delivered under an id that was not acknowledged", func(s story) {
			s.send(1, "")
			s.ack(1, "x")
			s.changed(1, "x", func(d *Delivery) { d.EventID = "y" })
		}, "id differs 1"},
		{"acknowledged under an id that was not delivered", func(s story) {
			s.send(1, "")
			s.take(1, "x")
			s.ack(1, "y")
		}, "id differs 1"},
		{"delivered again under another id", func(s story) {
			s.send(1, "")
			s.take(1, "x")
			s.changed(1, "x", func(d *Delivery) { d.EventID = "y" })
		}, "id differs 1"},
		{"delivered again as another delivery", func(s story) {
			s.send(1, "")
			s.take(1, "x")
			s.changed(1, "x", func(d *Delivery) { d.DeliveryID = "dlv_y" })
		}, "id differs 1"},
		{"delivered again with another idempotency key", func(s story) {
			s.send(1, "")
			s.ack(1, "x")
			s.take(1, "x")
			s.changed(1, "x", func(d *Delivery) { d.IdempotencyKey = "y" })
		}, "key differs 1"},
		{"delivered without an idempotency key", func(s story) {
			s.send(1, "")
			s.changed(1, "x", func(d *Delivery) { d.IdempotencyKey = "" })
		}, "id differs 1"},
		{"sent again and acknowledged as another event", func(s story) {
			s.send(1, "")
			s.ack(1, "x")
			s.ack(1, "y")
			s.take(1, "x")
		}, "id differs 1"},
		{"two events acknowledged as one", func(s story) {
			s.send(1, "")
			s.ack(1, "x")
			s.take(1, "x")
			s.send(2, "")
			s.ack(2, "x")
			s.take(2, "x")
		}, "no id 2"},
		{"acknowledged without an id", func(s story) {
			s.send(1, "")
			s.ack(1, "")
			s.take(1, "x")
		}, "no id 1"},
		{"delivered and never sent", func(s story) {
			s.take(7, "x")
		}, "never sent 7"},
		{"a good webhook refused", func(s story) {
			s.send(1, "")
			s.Answer(1, http.StatusUnauthorized, "", nil)
		}, "refused 1"},
		{"unavailable, and not until when", func(s story) {
			s.send(1, "")
			s.Answer(1, http.StatusServiceUnavailable, "", http.Header{})
		}, "no retry after 1"},
		{"an answer that is none", func(s story) {
			s.send(1, "")
			s.Answer(1, http.StatusFound, "", nil)
		}, "strange answer 1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := story{NewLedger()}
			test.tell(s)
			wantViolations(t, s, test.want)
		})
	}
}

func wantViolations(t *testing.T, s story, want string) {
	t.Helper()
	var found []string
	for _, v := range s.Check() {
		found = append(found, string(v.Kind)+" "+string(rune('0'+v.Number)))
		if v.Detail == "" {
			t.Errorf("%v does not say what is wrong", v)
		}
	}
	if got := strings.Join(found, ", "); got != want {
		t.Errorf("found %q, want %q\n%v", got, want, s.Check())
	}
}

func TestOrderIsJudgedBetweenWhatWasAcknowledgedAndWhatWasSentAfter(t *testing.T) {
	t.Parallel()
	// sent sends and acknowledges events one after the other.
	sent := func(s story, key string, numbers ...int64) {
		for _, n := range numbers {
			s.send(n, key)
			s.ack(n, "e"+string(rune('0'+n)))
		}
	}
	took := func(s story, numbers ...int64) {
		for _, n := range numbers {
			s.take(n, "e"+string(rune('0'+n)))
		}
	}
	for _, test := range []struct {
		name string
		tell func(story)
		want string
	}{
		{"in order", func(s story) {
			sent(s, "a", 1, 2, 3)
			took(s, 1, 2, 3)
		}, ""},
		{"an old one again after a new one", func(s story) {
			sent(s, "a", 1, 2)
			took(s, 1, 2, 1)
		}, ""},
		{"without a key", func(s story) {
			sent(s, "", 1, 2)
			took(s, 2, 1)
		}, ""},
		{"with different keys", func(s story) {
			sent(s, "a", 1)
			sent(s, "b", 2)
			took(s, 2, 1)
		}, ""},
		{"turned round", func(s story) {
			sent(s, "a", 1, 2)
			took(s, 2, 1)
		}, "out of order 2"},
		{"not only between neighbours", func(s story) {
			sent(s, "a", 1, 2, 3)
			took(s, 2, 3, 1)
		}, "out of order 2, out of order 3"},
		{"over an event that nobody was promised", func(s story) {
			sent(s, "a", 1)
			s.send(2, "a")
			s.Unanswered(2)
			sent(s, "a", 3)
			took(s, 3, 1)
		}, "out of order 3"},
		{"one that nobody was promised overtakes", func(s story) {
			sent(s, "a", 1)
			s.send(2, "a")
			s.Unanswered(2)
			took(s, 2, 1)
		}, "out of order 2"},
		{"the older one was not acknowledged", func(s story) {
			s.send(1, "a")
			s.Unanswered(1)
			sent(s, "a", 2)
			took(s, 2, 1)
		}, ""},
		{"both were under way together", func(s story) {
			s.send(1, "a")
			s.send(2, "a")
			s.ack(1, "e1")
			s.ack(2, "e2")
			took(s, 2, 1)
		}, ""},
		{"the older one failed first", func(s story) {
			sent(s, "a", 1, 2)
			s.changed(1, "e1", func(d *Delivery) { d.OK = false })
			took(s, 2, 1)
		}, "out of order 2"},
		{"the older one is lost, which is another matter", func(s story) {
			sent(s, "a", 1, 2)
			took(s, 2)
		}, "lost 1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := story{NewLedger()}
			test.tell(s)
			wantViolations(t, s, test.want)
		})
	}
}

func TestCountsTellWhatBecameOfTheEvents(t *testing.T) {
	t.Parallel()
	s := story{NewLedger()}
	for n := range int64(6) {
		s.send(n+1, "")
	}
	s.ack(1, "a") // once
	s.take(1, "a")
	s.ack(2, "b") // twice, and thrice
	s.take(2, "b")
	s.take(2, "b")
	s.take(2, "b")
	s.take(3, "c") // twice before its sender hears of it
	s.take(3, "c")
	s.ack(3, "c")
	s.Unanswered(4) // nobody hears of it
	s.take(4, "d")
	s.ack(5, "e") // waits
	s.Answer(6, http.StatusServiceUnavailable, "", http.Header{"Retry-After": {"1"}})
	s.Answer(6, http.StatusBadGateway, "", nil)
	want := Counts{Sent: 6, Acknowledged: 4, Delivered: 3, Twice: 2, Deliveries: 7, Unasked: 1, Unanswered: 1, Unavailable: 1, Failed: 1}
	if got := s.Counts(); got != want {
		t.Errorf("counts %+v, want %+v", got, want)
	}
	if s.Waiting() != 1 {
		t.Errorf("%d events wait, want 1", s.Waiting())
	}
}
