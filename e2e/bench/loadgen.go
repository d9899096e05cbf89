package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// load describes one load. It is a closed loop, in which every connection sends
// a request, reads the whole answer, checks it and sends the next; or, with Rate,
// an open one. It travels as JSON to the process that runs it.
type load struct {
	Addr string // where to connect to
	Host string // the Host header

	// Tunnel, when set, is where Addr, a proxy, is asked to open a tunnel to; the
	// requests go through that. Fresh makes a new connection for every request.
	Tunnel string
	Fresh  bool

	Conns  int
	Method string
	Path   string
	Upload int64 // bytes of request body; 0 sends none

	WantBody  string // the exact answer; empty checks only WantBytes
	WantBytes int64  // the answer's length when WantBody is empty

	// Hook sends signed webhooks, each with an id of its own, and expects 202 and
	// an event's id; Method, Upload, WantBody and WantBytes do not count then.
	Hook *hookLoad

	// Rate is how many requests begin in a second, over all connections; 0 makes
	// it a closed loop. Latencies then count from the moment at which a request
	// was to begin: a stalled server would otherwise hold back the very requests
	// that were to show its stall.
	Rate float64

	Warmup time.Duration // under load, not measured
	Window time.Duration // measured
	Grace  time.Duration // for the last requests to finish; 0 means 10 s
}

// loadResult is what a load saw. Rates are Ops or Bytes over Seconds.
type loadResult struct {
	Ops     int64   // exchanges completed inside the window
	Bytes   int64   // body bytes moved inside the window, either way
	Seconds float64 // the window as it was
	Total   int64   // exchanges over the whole life, warm-up and tail included

	// Latencies are those of exchanges begun inside the window, also when they
	// ended after it, so that slow ones are not cut off.
	P50, P99, Max time.Duration
	LateP50       time.Duration // with Rate: from the intended moment to the first byte sent

	Errors     int64 // failed dials and exchanges, over the whole life
	FirstError string
}

// A load goes through these phases; its workers read them without a clock.
const (
	phaseWarm int32 = iota
	phaseMeasured
	phaseOver
)

const (
	smallBuffer = 8 << 10
	bulkBuffer  = 256 << 10
	// givesUpAfter bounds the failures of one connection, so that a dead
	// target is not dialed in a tight loop.
	givesUpAfter = 20
)

// generator is the state that the workers of one running load share.
type generator struct {
	load    load
	request []byte // head, sent as it is
	block   []byte // upload bodies are made of it
	pacer   pacer
	phase   atomic.Int32
	dialed  sync.WaitGroup
	moved   sync.Once     // closes moving
	moving  chan struct{} // closed by the first exchange begun and done in the window
	limit   time.Time     // deadline of every connection

	workers []*worker
}

// run executes the load and returns when all its connections are closed. It
// calls ready when the warm-up is over. Canceling ctx ends the window early;
// requests under way still finish. A window in which nothing was asked and
// answered lasts until something is, or until Grace is over.
//
//	run → worker.run ×Conns → worker.connect
//	                        → worker.exchange → responseReader.head, body
func (l load) run(ctx context.Context, ready func()) loadResult {
	if l.Grace == 0 {
		l.Grace = 10 * time.Second
	}
	g := &generator{load: l, request: l.head(), moving: make(chan struct{}),
		limit: time.Now().Add(l.Warmup + l.Window + l.Grace)}
	g.pacer.every = l.interval()
	if l.Upload > 0 {
		g.block = bytes.Repeat([]byte("postern."), bulkBuffer/8)
	}
	var running sync.WaitGroup
	ended := make(chan struct{})
	for range l.Conns {
		w := &worker{g: g, want: []byte(l.WantBody), request: g.request}
		if l.Hook != nil {
			w.hook = newHookMaker(l)
		}
		g.workers = append(g.workers, w)
		g.dialed.Add(1)
		running.Go(w.run)
	}
	go func() {
		defer close(ended)
		running.Wait()
	}()
	g.dialed.Wait()
	wait(ctx, l.Warmup)
	begin := time.Now()
	g.phase.Store(phaseMeasured)
	ready()
	wait(ctx, l.Window)
	select { // a starved machine may have answered nothing yet
	case <-g.moving:
	case <-ended: // every connection gave up, at g.limit if not before
	}
	g.phase.Store(phaseOver)
	seconds := time.Since(begin).Seconds()
	<-ended
	return g.result(seconds)
}

// head is the request as bytes, without a body.
func (l load) head() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: postern-bench\r\nAccept: */*\r\n", l.Method, l.Path, l.Host)
	if l.Upload > 0 {
		fmt.Fprintf(&b, "Content-Type: application/octet-stream\r\nContent-Length: %d\r\n", l.Upload)
	}
	b.WriteString("\r\n")
	return []byte(b.String())
}

// result sums up the workers, which must have ended.
func (g *generator) result(seconds float64) loadResult {
	sum := loadResult{Seconds: seconds}
	var latencies, late histogram
	for _, w := range g.workers {
		sum.Ops += w.ops
		sum.Bytes += w.bytes
		sum.Total += w.total
		sum.Errors += w.errors
		if sum.FirstError == "" {
			sum.FirstError = w.firstError
		}
		latencies.merge(&w.latencies)
		late.merge(&w.late)
	}
	sum.LateP50 = late.quantile(0.50)
	sum.P50, sum.P99, sum.Max = latencies.quantile(0.50), latencies.quantile(0.99), latencies.max
	return sum
}

// worker is one connection of a load, used by its one goroutine.
type worker struct {
	g    *generator
	conn net.Conn
	in   *responseReader

	request []byte     // head, or with hook all of the request
	hook    *hookMaker // makes request anew each time; nil unless the load has one

	// The answer being read.
	want   []byte
	got    int64
	same   bool   // all bytes so far are those of want
	answer []byte // its beginning, with hook

	ops, bytes, total, errors int64
	firstError                string
	latencies, late           histogram
}

func (w *worker) run() {
	err := w.connect()
	w.g.dialed.Done()
	defer w.disconnect()
	for w.g.phase.Load() != phaseOver {
		if err == nil && w.conn == nil {
			err = w.connect()
		}
		if err == nil {
			err = w.once()
		}
		if err != nil {
			w.failed(err)
			if w.errors >= givesUpAfter || time.Now().After(w.g.limit) {
				return
			}
			err = nil
		}
	}
}

// once times and counts one exchange. What it takes to make the request is not
// part of the time.
func (w *worker) once() error {
	if w.hook != nil {
		w.request = w.hook.next(time.Now())
	}
	begin := w.g.pacer.turn()
	measured := w.g.phase.Load() == phaseMeasured
	if measured && w.g.load.Rate > 0 {
		w.late.record(time.Since(begin))
	}
	if err := w.exchange(); err != nil {
		return err
	}
	w.total++
	if w.g.phase.Load() == phaseMeasured {
		w.ops++
	}
	if measured {
		w.latencies.record(time.Since(begin))
		if w.latencies.total == 1 {
			w.g.moved.Do(func() { close(w.g.moving) })
		}
	}
	if w.g.load.Fresh {
		w.disconnect()
	}
	return nil
}

// exchange sends the request and reads and checks the answer.
func (w *worker) exchange() error {
	if err := w.send(); err != nil {
		return fmt.Errorf("send request: %w", err)
	}
	head, err := w.in.head()
	if err != nil {
		return err
	}
	w.got, w.same, w.answer = 0, true, w.answer[:0]
	if err := w.in.body(head, w); err != nil {
		return err
	}
	if head.closes {
		w.disconnect()
	}
	return w.check(head)
}

func (w *worker) send() error {
	if _, err := w.conn.Write(w.request); err != nil {
		return err
	}
	for left := w.g.load.Upload; left > 0; {
		n, err := w.conn.Write(w.g.block[:min(left, int64(len(w.g.block)))])
		w.count(n)
		left -= int64(n)
		if err != nil {
			return fmt.Errorf("body, %d bytes left: %w", left, err)
		}
	}
	return nil
}

// take implements bodySink: it counts a piece and compares it.
func (w *worker) take(piece []byte) {
	if w.g.load.Upload == 0 {
		w.count(len(piece))
	}
	if len(w.want) > 0 && w.same {
		end := w.got + int64(len(piece))
		w.same = end <= int64(len(w.want)) && bytes.Equal(piece, w.want[w.got:end])
	}
	if w.hook != nil && len(w.answer) < hookAnswerMax {
		w.answer = append(w.answer, piece...)
	}
	w.got += int64(len(piece))
}

// check tells whether the answer that was read is the one that was asked for.
func (w *worker) check(head response) error {
	if w.hook != nil {
		return checkHookAnswer(head.status, w.answer)
	}
	want := w.g.load.WantBytes
	if len(w.want) > 0 {
		want = int64(len(w.want))
	}
	switch {
	case head.status != 200:
		return fmt.Errorf("status %d instead of 200", head.status)
	case w.got != want:
		return fmt.Errorf("answer of %d bytes instead of %d", w.got, want)
	case !w.same:
		return errors.New("answer with other bytes than expected")
	}
	return nil
}

func (w *worker) count(n int) {
	if w.g.phase.Load() == phaseMeasured {
		w.bytes += int64(n)
	}
}

func (w *worker) connect() error {
	conn, err := net.DialTimeout("tcp", w.g.load.Addr, 5*time.Second)
	if err != nil {
		return err
	}
	if err := conn.SetDeadline(w.g.limit); err != nil {
		return errors.Join(err, conn.Close())
	}
	if to := w.g.load.Tunnel; to != "" {
		if err := openTunnel(conn, to); err != nil {
			return errors.Join(err, conn.Close())
		}
	}
	size := smallBuffer
	if w.g.load.WantBytes > smallBuffer {
		size = bulkBuffer
	}
	w.conn, w.in = conn, newResponseReader(conn, size)
	return nil
}

func (w *worker) disconnect() {
	if w.conn != nil {
		_ = w.conn.Close()
		w.conn = nil
	}
}

// failed counts a failure; the next exchange gets a new connection.
func (w *worker) failed(err error) {
	w.errors++
	if w.firstError == "" {
		w.firstError = err.Error()
	}
	w.disconnect()
}

// wait returns after d or when ctx ends.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
