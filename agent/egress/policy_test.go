package egress

import (
	"context"
	"encoding/binary"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/policy"
)

func TestPolicies(t *testing.T) {
	r := newRig(t, testPolicy(7))
	s, err := r.relay.Open(t.Context(), protocol.Open{Kind: protocol.KindPolicy})
	if err != nil {
		t.Fatal(err)
	}
	other := testPolicy(20)
	other.App = "other"
	strange := testPolicy(21)
	strange.Mode = "lenient"
	for _, test := range []struct {
		what   string
		send   any
		serial int64
		bad    bool
	}{
		{"the same again", testPolicy(7), 7, false},
		{"an older one", testPolicy(5), 7, false},
		{"another app's", other, 20, true},
		{"an unknown mode", strange, 21, true},
		{"another type", map[string]any{"serial": 22, "mode": 3}, 22, true},
		{"no object", []int{1}, 0, true},
		{"a later one", testPolicy(9), 9, false},
	} {
		if err := protocol.WriteMessage(s, test.send); err != nil {
			t.Fatal(err)
		}
		if ack := readAck(t, s); ack.Serial != test.serial || (ack.Error != "") != test.bad {
			t.Errorf("%s: %+v", test.what, ack)
		}
	}
	// What is no JSON at all costs neither the stream nor the policy.
	broken := []byte("{nonsense")
	s.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(broken))), broken...))
	if ack := readAck(t, s); ack.Error == "" {
		t.Errorf("no JSON: %+v", ack)
	}
	protocol.WriteMessage(s, testPolicy(10))
	if ack := readAck(t, s); ack.Serial != 10 || r.snapshot.Load().policy().Serial != 10 {
		t.Errorf("after it: %+v", ack)
	}
	// A message that is too large does cost the stream.
	s.Write(binary.BigEndian.AppendUint32(nil, protocol.MaxPolicy+1))
	if _, err := io.ReadAll(s); err == nil {
		t.Error("the stream goes on")
	}
	if r.snapshot.Load().policy().Serial != 10 {
		t.Error("the policy is gone")
	}
}

func TestAnAppWithoutAPolicyIsWarnedOf(t *testing.T) {
	none := &policy.Policy{App: "shop", Serial: 3, Mode: policy.Enforce}
	r := newRig(t, none)
	r.push(&policy.Policy{App: "shop", Serial: 4, Mode: policy.Enforce})
	log := r.log.String()
	if strings.Count(log, "the manifest says nothing") != 1 || !strings.Contains(log, "--no-egress") || !strings.Contains(log, "mode: report") {
		t.Error(log)
	}
	resp, body := r.dial().send("CONNECT api.allowed.test:443 HTTP/1.1\r\n\r\n").answer("CONNECT")
	if e := decodeError(t, body); resp.StatusCode != 403 || e.Error.Code != "no_policy" {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	r.push(testPolicy(5))
	r.dial().send("CONNECT api.allowed.test:443 HTTP/1.1\r\n\r\n").established()
}

func TestTheJournalIsBoundedAndCountsWhatItDrops(t *testing.T) {
	r := newRig(t, testPolicy(7), func(r *rig, _ *Config) { r.down = true })
	for i := range journalSize + 5 {
		r.journal.add(protocol.Flow{Up: int64(i)})
	}
	r.setDown(false)
	for i := range journalSize {
		if f := r.flow(); f.Up != int64(i+5) {
			t.Fatalf("record %d is %d", i, f.Up)
		}
	}
	if !strings.Contains(r.log.String(), "records=5") {
		t.Error("the log does not say that 5 were dropped")
	}
	// When the proxy stops, what is there goes out.
	r.journal.add(protocol.Flow{Up: 99})
	if f := r.flow(); f.Up != 99 {
		t.Errorf("%+v", f)
	}
}

func TestTheJournalOutlivesAStream(t *testing.T) {
	r := newRig(t, testPolicy(7))
	r.journal.add(protocol.Flow{Up: 1})
	r.flow()
	s, err := r.agent.Open(context.Background(), protocol.Open{Kind: protocol.KindFlows})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	j := newJournal(r.open, r.Proxy.log)
	j.add(protocol.Flow{Up: 2})
	if j.send(s) || !j.has() {
		t.Error("a record was given to a stream that is over")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	done := make(chan struct{})
	go func() { defer close(done); j.run(ctx) }()
	if f := r.flow(); f.Up != 2 {
		t.Errorf("%+v", f)
	}
	cancel()
	<-done
}
