package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	connectConns = 32
	// How far the agent is from the relay, and the relay from the destination, as
	// round trips, where that is what is measured.
	toRelay       = 30 * time.Millisecond
	toDestination = 10 * time.Millisecond
	// firstByteCalls are made one after the other in each run.
	firstByteCalls = 20
)

// egressMetrics each have a baseline, which their title names behind the slash.
func egressMetrics() []metric {
	all := []metric{
		{"connect.rate", groupConnect, "new tunnels with a request / one-hop CONNECT proxy", "1/s", ratioAtLeast(0.5)},
		{"connect.p50", groupConnect, "  p50 / the proxy's", "us", nil},
		{"connect.p99", groupConnect, "  p99 / the proxy's", "us", nil},
	}
	for _, streams := range bulkStreams {
		for _, d := range tunnelDirections {
			m := metric{fmt.Sprintf("tunnelbulk.%s.%d", d.through, streams), groupTunnel,
				fmt.Sprintf("%s by CONNECT, streams: %d / HTTP %s", d.through, streams, d.like), "MB/s", nil}
			if streams == 1 {
				m.bar = ratioAtLeast(0.9)
			}
			all = append(all, m)
		}
	}
	return append(all, metric{"firstbyte", groupFirstByte,
		fmt.Sprintf("HTTPS first byte, %v and %v away / 2 + 3 round trips", toRelay, toDestination), "us", ratioAtMost(1.1)})
}

// tunnelDirections are compared by what the relay and the agent do: what an app
// downloads goes from the relay to the agent, as what visitors upload does.
var tunnelDirections = []struct{ through, like string }{{"download", "upload"}, {"upload", "download"}}

// outlet is a relay and an agent whose app may call some ports of this machine.
type outlet struct {
	*target
	fleet *fleet
	proxy string // address of the agent's proxy
}

// startOutlet starts them; via, unless "", is where the agent is told to find the
// relay at relayPort.
func (f *fleet) startOutlet(ctx context.Context, via func(relay string) (string, error), rules ...string) (*outlet, error) {
	if err := f.build(ctx); err != nil {
		return nil, err
	}
	data, err := os.MkdirTemp(f.dir, "outlet-")
	if err != nil {
		return nil, err
	}
	manifest := filepath.Join(data, "postern.yaml")
	if err := os.WriteFile(manifest, outletManifest(rules), 0o600); err != nil {
		return nil, err
	}
	free, err := freeAddresses(1)
	if err != nil {
		return nil, err
	}
	o := &outlet{target: &target{name: "outlet", host: "bench.localhost"}, fleet: f, proxy: free[0]}
	if err := o.begin(ctx, data, manifest, via); err != nil {
		o.stop()
		return nil, fmt.Errorf("start a relay for outbound calls: %w", err)
	}
	return o, nil
}

func (o *outlet) begin(ctx context.Context, data, manifest string, via func(relay string) (string, error)) error {
	f := o.fleet
	err := f.startRelay(ctx, o.target, data, "POSTERN_MANIFEST="+manifest, "POSTERN_EGRESS_ADDRESSES=203.0.113.9")
	if err != nil {
		return err
	}
	relay := o.relay
	if via != nil {
		if relay, err = via(o.addr); err != nil {
			return err
		}
	}
	agent, err := f.child(ctx, command{
		name: "agent", path: filepath.Join(f.bin, "postern"), dir: f.dir,
		args: []string{"agent", "--to", f.app, "--egress-listen", o.proxy},
		env:  []string{"POSTERN_RELAY=" + relay, "POSTERN_TOKEN=" + o.token, "POSTERN_INSTANCE=bench.1"},
	})
	if err != nil {
		return err
	}
	o.hops = append(o.hops, agent)
	return o.untilAnswering(ctx)
}

// outletManifest allows the rules, scheme://127.0.0.1:port, to the app bench.
func outletManifest(rules []string) []byte {
	var b bytes.Buffer
	b.WriteString("version: 1\napps:\n  bench:\n    egress:\n      allow:\n")
	for _, rule := range rules {
		fmt.Fprintf(&b, "        - %s\n", rule)
	}
	b.WriteString("egress:\n  allow_ranges:\n    - range: 127.0.0.1/32\n      reason: the bench's own\n      ports: [")
	for i, rule := range rules {
		if i > 0 {
			b.WriteString(", ")
		}
		_, addr, _ := strings.Cut(rule, "://")
		_, port, _ := net.SplitHostPort(addr)
		b.WriteString(port)
	}
	b.WriteString("]\n")
	return b.Bytes()
}

// stop ends the agent and the relay.
func (o *outlet) stop() { o.fleet.stop(o.target) }

// untilOpen returns when a tunnel to addr can be opened.
func (o *outlet) untilOpen(ctx context.Context, addr string) error {
	return o.until(ctx, "open", func(ctx context.Context) error {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", o.proxy)
		if err != nil {
			return err
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(startsWithin)); err != nil {
			return err
		}
		return openTunnel(conn, addr)
	})
}

// openTunnel sends a CONNECT and reads its answer. The other end says nothing before
// it is asked, so what is read ends with the answer.
func openTunnel(conn net.Conn, to string) error {
	if _, err := fmt.Fprintf(conn, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", to, to); err != nil {
		return err
	}
	var head []byte
	for buf := make([]byte, 1024); !bytes.Contains(head, []byte("\r\n\r\n")); {
		n, err := conn.Read(buf)
		if err != nil {
			return fmt.Errorf("answer to CONNECT after %.200q: %w", head, err)
		}
		if head = append(head, buf[:n]...); len(head) > 16<<10 {
			return errors.New("answer to CONNECT is too long")
		}
	}
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) && !bytes.HasPrefix(head, []byte("HTTP/1.0 200 ")) {
		return fmt.Errorf("CONNECT is answered with %.300q", head)
	}
	return nil
}

// takeConnects opens tunnels, each for one small request.
func takeConnects(ctx context.Context, f *fleet, t *target, p pace) (sample, error) {
	bare, err := f.server(ctx, "connect-proxy", roleConnect)
	if err != nil {
		return sample{}, err
	}
	defer f.end(bare.process)
	o, err := f.startOutlet(ctx, nil, "tcp://"+f.app)
	if err != nil {
		return sample{}, err
	}
	defer o.stop()
	if err := o.untilOpen(ctx, f.app); err != nil {
		return sample{}, err
	}
	l := t.smallLoad(connectConns, p)
	l.Host, l.Tunnel, l.Fresh = f.app, f.app, true
	l.Addr = bare.addr
	theirs, err := runLoad(ctx, f.dir, l)
	if err != nil {
		return sample{}, err
	}
	l.Addr = o.proxy
	ours, err := runLoad(ctx, f.dir, l)
	if err != nil {
		return sample{}, err
	}
	s := newSample(theirs, ours)
	s.compare("connect.rate", ours.rate(), theirs.rate())
	s.compare("connect.p50", micros(ours.P50), micros(theirs.P50))
	s.compare("connect.p99", micros(ours.P99), micros(theirs.P99))
	return s, nil
}

// takeTunnelBulk moves much through tunnels, and as much as requests of the web.
func takeTunnelBulk(ctx context.Context, f *fleet, _ *target, p pace) (sample, error) {
	o, err := f.startOutlet(ctx, nil, "tcp://"+f.app)
	if err != nil {
		return sample{}, err
	}
	defer o.stop()
	if err := o.untilOpen(ctx, f.app); err != nil {
		return sample{}, err
	}
	s := newSample()
	for _, streams := range bulkStreams {
		size := int64(manyStreamBytes)
		if streams == 1 {
			size = oneStreamBytes
		}
		for _, d := range tunnelDirections {
			through := o.bulkLoad(d.through, streams, size, p)
			through.Addr, through.Host, through.Tunnel = o.proxy, f.app, f.app
			ours, err := runLoad(ctx, f.dir, through)
			if err != nil {
				return sample{}, err
			}
			theirs, err := runLoad(ctx, f.dir, o.bulkLoad(d.like, streams, size, p))
			if err != nil {
				return sample{}, err
			}
			more := newSample(ours, theirs)
			s.errors += more.errors
			s.firstError = more.firstError
			s.compare(fmt.Sprintf("tunnelbulk.%s.%d", d.through, streams),
				megabytes(float64(ours.Bytes)/ours.Seconds), megabytes(float64(theirs.Bytes)/theirs.Seconds))
		}
	}
	return s, nil
}

// takeFirstByte makes HTTPS requests over lines that take time, each over a tunnel of
// its own. The round trips of the lines are measured and not believed.
func takeFirstByte(ctx context.Context, f *fleet, _ *target, _ pace) (sample, error) {
	secure, err := f.server(ctx, "secure", roleSecure)
	if err != nil {
		return sample{}, err
	}
	defer f.end(secure.process)
	// TCP's own handshake is with the line, which therefore holds a new connection
	// back for one round trip.
	far, err := f.server(ctx, "line-destination", roleLine, secure.addr, (toDestination / 2).String(), toDestination.String())
	if err != nil {
		return sample{}, err
	}
	defer f.end(far.process)
	var line served
	o, err := f.startOutlet(ctx, func(relay string) (string, error) {
		line, err = f.server(ctx, "line-relay", roleLine, relay, (toRelay / 2).String(), "0s")
		return "http://" + line.addr, err
	}, "https://"+far.addr)
	if err != nil {
		return sample{}, err
	}
	defer o.stop()
	defer f.end(line.process)
	if err := o.untilOpen(ctx, far.addr); err != nil {
		return sample{}, err
	}
	trips := [2]time.Duration{}
	for i, delay := range []time.Duration{toRelay, toDestination} {
		if trips[i], err = f.roundTrip(ctx, delay); err != nil {
			return sample{}, err
		}
	}
	var took []time.Duration
	for range firstByteCalls {
		d, err := firstByte(o.proxy, far.addr)
		if err != nil {
			return sample{}, err
		}
		took = append(took, d)
	}
	slices.Sort(took)
	s := newSample()
	s.compare("firstbyte", micros(took[len(took)/2]), micros(2*trips[0]+3*trips[1]))
	return s, nil
}

// firstByte is how long it takes from the dial to the first byte of the answer.
func firstByte(proxy, addr string) (time.Duration, error) {
	began := time.Now()
	conn, err := net.DialTimeout("tcp", proxy, startsWithin)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(began.Add(startsWithin)); err != nil {
		return 0, err
	}
	if err := openTunnel(conn, addr); err != nil {
		return 0, err
	}
	// The certificate is the bench's own; there is nobody between here and there.
	secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	if _, err := fmt.Fprintf(secure, "GET /small HTTP/1.1\r\nHost: %s\r\n\r\n", addr); err != nil {
		return 0, err
	}
	_, err = secure.Read(make([]byte, 1))
	return time.Since(began), err
}

// roundTrip is what a small exchange takes over a line of this delay that nothing else
// uses, less what it takes without.
func (f *fleet) roundTrip(ctx context.Context, delay time.Duration) (time.Duration, error) {
	line, err := f.server(ctx, "line-alone", roleLine, f.app, (delay / 2).String(), "0s")
	if err != nil {
		return 0, err
	}
	defer f.end(line.process)
	with, err := exchangeTime(line.addr)
	if err != nil {
		return 0, err
	}
	without, err := exchangeTime(f.app)
	return with - without, err
}

// exchangeTime is the median of some requests over one connection.
func exchangeTime(addr string) (time.Duration, error) {
	client := http.Client{Timeout: startsWithin, Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	var took []time.Duration
	for range 15 {
		began := time.Now()
		answer, err := client.Get("http://" + addr + "/small")
		if err != nil {
			return 0, err
		}
		_, err = io.Copy(io.Discard, answer.Body)
		answer.Body.Close()
		if err != nil {
			return 0, err
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return took[len(took)/2], nil
}
