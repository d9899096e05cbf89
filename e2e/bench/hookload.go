package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"
)

// hookLoad makes a load send webhooks as Stripe does.
type hookLoad struct {
	Secret string
	Size   int // bytes of each body, at least hookMinSize
}

const (
	hookMinSize   = 256
	hookIDDigits  = 24
	hookAnswerMax = 512 // bytes of an answer that are looked at
)

// hookMaker makes the requests of one connection. Every body has an id that
// nobody has used before and that is random as real ones are: ids in order would
// spare the index that finds duplicates most of its work.
type hookMaker struct {
	mac     hash.Hash
	random  *rand.Rand
	fixed   []byte // the head up to the signature
	body    []byte
	id      []byte // part of body
	request []byte // reused
}

func newHookMaker(l load) *hookMaker {
	m := &hookMaker{
		mac:    hmac.New(sha256.New, []byte(l.Hook.Secret)),
		random: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		fixed: fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: Stripe/1.0 (+https://stripe.com/docs/webhooks)\r\n"+
			"Accept: */*; q=0.5, application/xml\r\nCache-Control: no-cache\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\nStripe-Signature: ",
			l.Path, l.Host, l.Hook.Size),
		body: hookBody(l.Hook.Size),
	}
	at := bytes.Index(m.body, []byte(hookIDPrefix)) + len(hookIDPrefix)
	m.id = m.body[at : at+hookIDDigits]
	return m
}

const hookIDPrefix = "evt_"

// hookBody is a JSON event of size bytes with an id of zeros.
func hookBody(size int) []byte {
	const end = `"}}}` + "\n"
	body := `{"id":"` + hookIDPrefix + strings.Repeat("0", hookIDDigits) +
		`","object":"event","type":"charge.succeeded","livemode":true,"data":{"object":{"id":"ch_1","amount":2000,"note":"`
	return []byte(body + strings.Repeat("x", size-len(body)-len(end)) + end)
}

// next is the next request, head and body. It is valid until next is called
// again.
func (m *hookMaker) next(now time.Time) []byte {
	for i := range m.id {
		m.id[i] = "0123456789abcdef"[m.random.Uint32()&15]
	}
	t := strconv.AppendInt(nil, now.Unix(), 10)
	m.mac.Reset()
	m.mac.Write(t)
	m.mac.Write([]byte("."))
	m.mac.Write(m.body)
	r := append(m.request[:0], m.fixed...)
	r = append(append(append(r, "t="...), t...), ",v1="...)
	r = hex.AppendEncode(r, m.mac.Sum(nil))
	m.request = append(append(r, "\r\n\r\n"...), m.body...)
	return m.request
}

// checkHookAnswer tells whether a webhook was accepted as a new one.
func checkHookAnswer(status int, answer []byte) error {
	switch {
	case status != 202:
		return fmt.Errorf("status %d instead of 202: %.200s", status, answer)
	case !bytes.HasPrefix(answer, []byte(`{"id":"`+hookIDPrefix)):
		return fmt.Errorf("no event's id in the answer %.200q", answer)
	case bytes.Contains(answer, []byte("duplicate")):
		return errors.New("taken for a duplicate")
	}
	return nil
}

// interval is the time between two requests of an open loop.
func (l load) interval() time.Duration {
	if l.Rate <= 0 {
		return 0
	}
	return time.Duration(float64(time.Second) / l.Rate)
}

// pacer hands out the moments at which the requests of an open loop begin. One
// worker at a time waits for the next moment, in the kernel and not in Go's
// timers, which are a millisecond coarse in an idle process; and it is that
// worker that then sends, so nobody has to be woken in between.
type pacer struct {
	every time.Duration // 0: everybody begins at once

	mu   sync.Mutex
	next time.Time
}

// turn returns when the caller's request is to begin, which is now or was a
// while ago. The first call starts the schedule.
func (p *pacer) turn() time.Time {
	if p.every == 0 {
		return time.Now()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.next.IsZero() {
		p.next = time.Now()
	}
	begin := p.next
	p.next = begin.Add(p.every)
	sleepUntil(begin)
	return begin
}
