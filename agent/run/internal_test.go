package run

import (
	"bytes"
	"context"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestTheSharesOfTheGrace(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ grace, kill, hook time.Duration }{
		{NoGrace, 8 * time.Second, 0},
		{100 * time.Millisecond, 50 * time.Millisecond, 0},
		{999 * time.Millisecond, 499500 * time.Microsecond, 0},
		{30 * time.Second, 28 * time.Second, 5 * time.Second},
		{10 * time.Second, 8 * time.Second, 10 * time.Second / 3},
		{6 * time.Second, 4 * time.Second, 2 * time.Second},
		{5 * time.Second, 4 * time.Second, 5 * time.Second / 3},
		{2 * time.Second, time.Second, 2 * time.Second / 3},
		{time.Second, 500 * time.Millisecond, time.Second / 3},
	} {
		if got := killAfter(test.grace); got != test.kill {
			t.Errorf("grace %v: killed after %v, want %v", test.grace, got, test.kill)
		}
		share, waits := hookShare(test.grace)
		if waits != (test.hook > 0) || waits && share != test.hook {
			t.Errorf("grace %v: the hook has %v, waited for %v; want %v", test.grace, share, waits, test.hook)
		}
		if !waits && share != test.kill {
			t.Errorf("grace %v: the hook has %v, want it to end with the app", test.grace, share)
		}
	}
}

func TestOutputBehindASlowReaderIsNotAbandoned(t *testing.T) {
	t.Parallel()
	slow := &gate{open: make(chan struct{})}
	o, err := newOutputs(slow, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("x", pipeSize-1)
	if _, err := o.stdout.WriteString(text); err != nil {
		t.Fatal(err)
	}
	o.started()
	o.expire(-time.Second)
	close(slow.open) // only now, when the time is up
	complete := o.wait(-time.Second)
	if got := slow.got.String(); !complete || got != text {
		t.Errorf("complete %v, %d bytes of %d", complete, len(got), len(text))
	}
}

func TestOutputHeldByAStrangerIsAbandoned(t *testing.T) {
	t.Parallel()
	var got bytes.Buffer
	o, err := newOutputs(&got, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	held, err := syscall.Dup(int(o.stdout.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(held)
	o.stdout.WriteString("last words")
	o.started()
	if o.wait(-time.Second) {
		t.Error("the pipe is still held, yet complete")
	}
	if got.String() != "last words" {
		t.Errorf("got %q", &got)
	}
}

// gate is a writer that blocks until it is open.
type gate struct {
	open chan struct{}
	got  bytes.Buffer
}

func (g *gate) Write(p []byte) (int, error) {
	<-g.open
	return g.got.Write(p)
}

// A probe whose own port is the one it asks for connects to itself. Without the
// option, the TIME_WAIT that remains keeps the app from binding its port. Not parallel:
// a process just forked by another test would hold the sockets closed here a bit longer.
func TestAProbeThatMetItselfLeavesThePortFree(t *testing.T) {
	reserved, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := reserved.Addr().(*net.TCPAddr)
	reserved.Close()

	dialer := &net.Dialer{LocalAddr: addr, Control: shareAddress}
	if err := probe(context.Background(), dialer, addr.String()); err == nil || !strings.Contains(err.Error(), "met itself") {
		t.Errorf("the probe says %v", err)
	}
	app, err := net.Listen("tcp", addr.String())
	if err != nil {
		t.Fatalf("the app cannot bind its port: %v", err)
	}
	app.Close()
}

func TestRunWaitsForItsHook(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cancelled, returned := make(chan struct{}), make(chan struct{})
		s := &supervisor{called: &hook{cancel: func() { close(cancelled) }, returned: returned}}
		finished := make(chan struct{})
		go func() {
			defer close(finished)
			s.finish()
		}()
		<-cancelled
		synctest.Wait()
		select {
		case <-finished:
			t.Error("the hook was left behind")
		default:
		}
		close(returned)
		<-finished
	})
}

func TestOrphansOfAStopHaveUntilItsDeadline(t *testing.T) {
	t.Parallel()
	deadline := time.NewTimer(time.Hour)
	defer deadline.Stop()
	s := &supervisor{termed: true, deadline: deadline}
	if s.sweepLimit() != deadline.C {
		t.Error("they have another limit")
	}
}

func TestTheEndOfTheSignalsIsNotASignalForEver(t *testing.T) {
	t.Parallel()
	s := &supervisor{signals: make(chan os.Signal)}
	s.receive(t.Context(), nil, false)
	if s.signals != nil {
		t.Error("the closed channel is still listened to")
	}
}
