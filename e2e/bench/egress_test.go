package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// The harness's own parts: the bars are worth what the opponent and the lines are.
func TestTheBareConnectProxyCarriesALoad(t *testing.T) {
	f, err := newFleet(t.Context(), "", standIns(t), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	proxy, err := f.server(t.Context(), "connect-proxy", roleConnect)
	if err != nil {
		t.Fatal(err)
	}
	l := (&target{addr: proxy.addr, host: f.app}).smallLoad(4, pace{20 * time.Millisecond, 100 * time.Millisecond})
	l.Tunnel, l.Fresh = f.app, true
	r, err := runLoad(t.Context(), f.dir, l)
	if err != nil || r.Ops == 0 || r.Errors > 0 {
		t.Errorf("%+v, %v", r, err)
	}
	l.Tunnel = "127.0.0.1:1"
	if r, err = runLoad(t.Context(), f.dir, l); err != nil || r.Ops > 0 || !strings.Contains(r.FirstError, "CONNECT is answered with") {
		t.Errorf("to nobody: %+v, %v", r, err)
	}
}

func TestALineTakesItsTimeBothWaysAndHoldsNewConnectionsBack(t *testing.T) {
	const delay, hold = 30 * time.Millisecond, 100 * time.Millisecond
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err == nil {
			io.Copy(conn, conn)
			conn.Close()
		}
	}()
	f := &fleet{dir: t.TempDir()}
	defer f.close()
	line, err := f.server(t.Context(), "line", roleLine, l.Addr().String(), delay.String(), hold.String())
	if err != nil {
		t.Fatal(err)
	}
	var d net.Dialer
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := d.DialContext(ctx, "tcp", line.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	for i, least := range []time.Duration{hold + 2*delay, 2 * delay} {
		began := time.Now()
		fmt.Fprintf(conn, "line %d\n", i)
		if got, err := in.ReadString('\n'); err != nil || got != fmt.Sprintf("line %d\n", i) {
			t.Fatalf("%q, %v", got, err)
		}
		if took := time.Since(began); took < least-5*time.Millisecond || took > 5*least {
			t.Errorf("exchange %d took %v, want %v", i, took, least)
		}
	}
}
