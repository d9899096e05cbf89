package instances

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// size is about what r takes.
func (r *record) size() int {
	n := r.text + len(r.lines)*80 + len(r.memory)*32
	for _, f := range r.findings {
		n += len(f.Code) + len(f.Severity) + len(f.Cause) + len(f.Evidence) + len(f.Fix) + len(f.Framework) + 96
	}
	if r.vitals != nil {
		for _, s := range r.vitals.Sockets {
			n += len(s.State) + len(s.Local) + len(s.Remote) + 56
		}
	}
	return n
}

func TestARecordIsBounded(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	r := &record{}
	for n := range 5000 {
		now = now.Add(5 * time.Second)
		rep := protocol.Report{Vitals: &protocol.Vitals{RSS: int64(n % 1000)}, Findings: &protocol.Findings{}}
		for range protocol.MaxSockets {
			rep.Vitals.Sockets = append(rep.Vitals.Sockets, protocol.Socket{Local: strings.Repeat("s", 150)})
		}
		for range protocol.MaxFindings {
			rep.Findings.List = append(rep.Findings.List, protocol.Finding{Evidence: strings.Repeat("f", 400)})
		}
		rep.Lines = []protocol.Line{{At: now, Text: strings.Repeat("x", protocol.MaxLine)}, {At: now, Text: fmt.Sprint(n)}}
		r.add(rep, nil, now)
		if size := r.size(); size > 128<<10 || len(r.lines) > maxLines || len(r.memory) > maxPoints || r.text > maxText {
			t.Fatalf("after %d reports: %d bytes, %d lines, %d points, %d bytes of text", n+1, size, len(r.lines), len(r.memory), r.text)
		}
	}
	if last := r.lines[len(r.lines)-1].Text; last != "4999" {
		t.Errorf("the last line is %q", last)
	}
	for range 300 {
		r.addLine(protocol.Line{Text: "x"})
	}
	if len(r.lines) != maxLines || r.text != maxLines {
		t.Errorf("%d lines of %d bytes", len(r.lines), r.text)
	}
	w := r.words(now, nil, r.lostReason())
	raw, err := json.Marshal(w)
	if err != nil || len(raw) > 256<<10 {
		t.Errorf("last words of %d bytes, %v", len(raw), err)
	}
}

func TestTheMemoryCurveKeepsItsPeaksAndItsEnd(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	r := &record{}
	for n := range 2000 {
		rss := int64(100)
		if n == 500 {
			rss = 900
		}
		r.addPoint(relay.MemoryPoint{At: at.Add(time.Duration(n) * 5 * time.Second), RSS: rss})
	}
	var peak bool
	for i, p := range r.memory {
		peak = peak || p.RSS == 900
		if i > 0 && !p.At.After(r.memory[i-1].At) {
			t.Fatalf("point %d is not after the one before", i)
		}
	}
	last := r.memory[len(r.memory)-30:]
	if n := len(r.memory); !peak || n > maxPoints || n < maxPoints/2 || last[29].At.Sub(last[0].At) != 29*5*time.Second {
		t.Errorf("%d points, peak %v, the last thirty span %v", n, peak, last[29].At.Sub(last[0].At))
	}
	end := last[29].At
	r.addPoint(relay.MemoryPoint{At: end.Add(time.Millisecond), RSS: 5000}) // faster than is kept
	if p := r.memory[len(r.memory)-1]; p.RSS != 5000 || !p.At.Equal(end) {
		t.Errorf("%+v", p)
	}
}

func TestASilentAgentIsCutOff(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		a := d.connect("web.1", "boot-0001")
		s := a.report()
		d.send(s, protocol.Report{Lines: lines(0, 1)})
		for range 20 {
			time.Sleep(50 * time.Second)
			d.send(s, protocol.Report{Lines: lines(0, 1)})
		}
		// A message that never becomes whole is no life sign.
		begun := time.Now()
		s.Write([]byte{0, 200, '{'})
		for time.Since(begun) < 59*time.Second {
			time.Sleep(10 * time.Second)
			if _, err := s.Write([]byte{' '}); err != nil && time.Since(begun) < idleTime {
				t.Fatalf("after %v: %v", time.Since(begun), err)
			}
		}
		s.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := s.Read(make([]byte, 1)); protocol.CodeOf(err) != protocol.CodeCanceled {
			t.Errorf("read: %v", err)
		}
		if took := time.Since(begun); took > idleTime+time.Second {
			t.Errorf("cut off after %v", took)
		}
	})
}

func TestWhatIsNoReportEndsTheStream(t *testing.T) {
	t.Parallel()
	line := strings.Repeat("x", protocol.MaxLine+1)
	for name, bytes := range map[string]string{
		"an oversize message": "\xff\xff",
		"no JSON":             "\x00\x03abc",
		"an oversize line":    string([]byte{byte((len(line) + 25) >> 8), byte(len(line) + 25)}) + `{"lines":[{"text":"` + line + `"}]}  `,
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, d *desk) {
				s := d.connect("web.1", "boot-0001").report()
				io.WriteString(s, bytes)
				s.SetReadDeadline(time.Now().Add(time.Second))
				if _, err := s.Read(make([]byte, 1)); protocol.CodeOf(err) != protocol.CodeBadMessage {
					t.Errorf("%v", err)
				}
			})
		})
	}
}

// A flood is read at the rate that there is, and no faster.
func TestAFloodIsSlowedDown(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		s := d.connect("web.1", "boot-0001").report()
		begun := time.Now()
		var flood bytes.Buffer
		protocol.WriteReport(&flood, protocol.Report{Lines: []protocol.Line{{Text: strings.Repeat("x", 8000)}}})
		total := 0
		for total < 4<<20 {
			n, err := s.Write(flood.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			total += n
		}
		if took := time.Since(begun); took < 8*time.Second || took > 20*time.Second {
			t.Errorf("%d bytes went in %v", total, took)
		}
	})
}

func TestAnAppHasSoManyRecordsAndNoMore(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		for n := range maxPerApp {
			if _, err := d.tracker.open("full", hello("web", fmt.Sprint("boot-", n)), func() {}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := d.tracker.open("full", hello("web", "boot-x"), nil); relay.CodeOf(err) != relay.Overloaded {
			t.Errorf("%v", err)
		}
		if _, err := d.tracker.open("full", hello("web", "boot-7"), func() {}); err != nil {
			t.Errorf("one that is known: %v", err)
		}
		if _, err := d.tracker.open("other", hello("web", "boot-x"), nil); err != nil {
			t.Errorf("another app: %v", err)
		}
		first := d.tracker.records[key{"full", "web", "boot-3"}]
		d.tracker.lost(first.serving, errors.New("gone"))
		time.Sleep(time.Second)
		d.tracker.lost(d.tracker.records[key{"full", "web", "boot-9"}].serving, errors.New("gone"))
		if _, err := d.tracker.open("full", hello("web", "boot-y"), nil); err != nil || d.tracker.records[first.key] != nil {
			t.Errorf("with one that was lost: %v", err)
		}
		if n := d.tracker.perApp["full"]; n != maxPerApp {
			t.Errorf("%d are counted", n)
		}
	})
}

func TestSavesAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T, d *desk) {
		end := func(n int) {
			t.Helper()
			sv, err := d.tracker.open(app, hello("web", fmt.Sprint("boot-", n)), func() {})
			if err != nil || !d.tracker.ended(t.Context(), sv, protocol.Exit{Code: 1}) {
				t.Fatal(err)
			}
		}
		for n := range 3 * savesBurst {
			end(n)
		}
		if n := len(d.words()); n != savesBurst {
			t.Errorf("%d were saved at once", n)
		}
		time.Sleep(10 * time.Second)
		for n := range 100 {
			end(n)
		}
		if n := len(d.words()); n != savesBurst+10 {
			t.Errorf("%d were saved after ten seconds more", n)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		d.tracker.mu.Lock()
		defer d.tracker.mu.Unlock()
		if len(d.tracker.saves)+len(d.tracker.records)+len(d.tracker.perApp) != 0 {
			t.Errorf("%v, %v, %v are left", d.tracker.saves, d.tracker.records, d.tracker.perApp)
		}
	})
}

// Whatever an agent sends, its record stays within bounds and can be stored.
func FuzzReports(f *testing.F) {
	var seed bytes.Buffer
	protocol.WriteReport(&seed, protocol.Report{
		Lines:    []protocol.Line{{At: time.Unix(0, 0), Stream: "stdout", Text: "x"}, {Stream: "\x1b[2J", Text: "\x00\u2028", Missed: -1}},
		Vitals:   &protocol.Vitals{RSS: -1, Limit: 1 << 62, Sockets: []protocol.Socket{{Local: "x"}}},
		Findings: &protocol.Findings{List: []protocol.Finding{{Code: "PORT01"}}},
		Exit:     &protocol.Exit{Signal: strings.Repeat("x", 100), Reason: strings.Repeat("\xff", 3000)},
	})
	f.Add(seed.Bytes())
	far := `{"lines":[{"at":"9999-12-31T23:59:59-23:59","text":"far"}],"exit":{"at":"9999-12-31T23:59:59-23:59"}}`
	f.Add(append([]byte{0, byte(len(far))}, far...))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 4<<10 {
			return // floods are read slowly
		}
		d := New(Config{}.forFuzzing())
		for range 2 { // the second time, it is sent once more
			sv, err := d.open(app, hello("web", "boot-0001"), func() {})
			if err != nil {
				t.Fatal(err)
			}
			exit, err := d.read(t.Context(), sv, bytes.NewReader(data), func(time.Time) error { return nil })
			if (exit == nil) == (err == nil) {
				t.Fatalf("%v, %v", exit, err)
			}
			r := sv.record
			if r.size() > 128<<10 || len(r.lines) > maxLines || len(r.memory) > maxPoints {
				t.Fatalf("%d bytes", r.size())
			}
			reason := r.lostReason()
			if exit != nil {
				reason = r.exitReason(exit)
			}
			w := r.words(d.cfg.Now(), exit, reason)
			if _, err := json.Marshal(w); err != nil || w.Reason == "" || len(w.Reason) > 2*maxReason {
				t.Fatalf("%v in %+v", err, w)
			}
			for _, l := range w.Lines {
				if l.At.Before(time.Unix(900_000_000, 0)) || l.At.After(d.cfg.Now().Add(25*time.Hour)) || l.Missed < 0 || len(l.Stream) > 8 {
					t.Fatalf("%+v", l)
				}
			}
		}
	})
}

func (c Config) forFuzzing() Config {
	c.Save = func(context.Context, relay.LastWords) error { return nil }
	c.Instances = func(relay.AppID) []relay.Instance { return nil }
	return c
}
