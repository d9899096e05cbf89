package policy_test

import (
	"bytes"
	"errors"
	"testing"
	"testing/iotest"
	"time"

	"github.com/posternhq/postern/protocol/policy"
)

type corpusHello struct {
	SNI             string `json:"sni"`
	FragmentRecords int    `json:"fragment_records"`
	SNIOffset       int    `json:"sni_offset"`
	StallAfter      int    `json:"stall_after"`
	ECH             bool   `json:"ech"`
	Raw             string `json:"raw"`
}

// bytes makes what the client sends. fragment_records 1 are records of one byte, a
// larger number is how many records there are.
func (h *corpusHello) bytes() []byte {
	if h.Raw != "" {
		return []byte(h.Raw)
	}
	msg := helloMessage(helloSpec{sni: h.SNI, pad: h.SNIOffset, ech: h.ECH})
	size := len(msg)
	switch {
	case h.FragmentRecords == 1:
		size = 1
	case h.FragmentRecords > 1:
		size = max(1, len(msg)/h.FragmentRecords)
	}
	return records(msg, size)
}

func judgeSNI(t *testing.T, c *policy.Compiled, l corpusLine, lookup map[string][]string) (verdict, bool) {
	target, err := policy.ParseTunnel(l.Input.Connect)
	if err != nil {
		t.Fatal(err)
	}
	v := judge(c, policy.Call{Target: target}, lookup)
	if v.what != "allow" {
		return v, true
	}
	if l.Input.Hello.StallAfter > 0 {
		return verdict{}, false
	}
	if !v.decision.TLS {
		t.Error("the tunnel need not begin with a hello")
	}
	sent := l.Input.Hello.bytes()
	h, raw, err := policy.ReadHello(iotest.OneByteReader(bytes.NewReader(sent)))
	if err != nil {
		if !errors.Is(err, policy.ErrNotTLS) && !errors.Is(err, policy.ErrBadHello) {
			t.Errorf("ReadHello: %v", err)
		}
		return refused("terminate", policy.NewRefusal(policy.NotTLS, err.Error())), true
	}
	if !bytes.Equal(raw, sent) {
		t.Errorf("ReadHello took %d bytes, %d were sent", len(raw), len(sent))
	}
	if h.ECH != l.Input.Hello.ECH {
		t.Errorf("ECH is %v", h.ECH)
	}
	d := c.CheckHello(v.decision, target, h, time.Now())
	if !d.Allow {
		return refused("terminate", d.Refusal(c, policy.Call{Target: target})), true
	}
	return v, true
}
