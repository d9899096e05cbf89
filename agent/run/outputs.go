package run

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// outputDelay is how long a pipe may take to end when the group is gone. Only a
	// process outside the group that kept its end can make it last.
	outputDelay = 2 * time.Second

	// pipeSize is what a pipe holds on Linux (pipe(7)); on macOS it is no more.
	pipeSize = 64 << 10
)

// outputs are the child's ends of stdout and stderr, with a copier behind each that
// is not a file already.
type outputs struct {
	stdout, stderr *os.File // for the child
	writeEnds      []*os.File
	readEnds       []*os.File
	copiers        sync.WaitGroup
	waiting        atomic.Bool // the pipes have deadlines
	abandoned      atomic.Bool // a copier stopped before the end of its pipe
}

func newOutputs(stdout, stderr io.Writer) (*outputs, error) {
	o := &outputs{}
	var err, err2 error
	o.stdout, err = o.end(stdout, os.Stdout)
	o.stderr, err2 = o.end(stderr, os.Stderr)
	if err := errors.Join(err, err2); err != nil {
		o.started()
		o.wait(0)
		return nil, err
	}
	return o, nil
}

// end is the file through which the child writes to w.
func (o *outputs) end(w io.Writer, inherited *os.File) (*os.File, error) {
	switch w := w.(type) {
	case nil:
		return inherited, nil
	case *os.File:
		return w, nil
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe for the output: %w", err)
	}
	o.readEnds = append(o.readEnds, read)
	o.writeEnds = append(o.writeEnds, write)
	o.copiers.Go(func() { o.drain(w, read) })
	return write, nil
}

// drain copies until the last writer is gone. When w fails it goes on reading, so
// that the app never stands still.
func (o *outputs) drain(w io.Writer, read *os.File) {
	defer read.Close()
	_, err := io.Copy(w, read)
	if err != nil && !(o.waiting.Load() && errors.Is(err, os.ErrDeadlineExceeded)) {
		w = io.Discard
		_, err = io.Copy(w, read)
	}
	if err != nil && !emptied(w, read) {
		o.abandoned.Store(true)
	}
}

// emptied copies what the pipe holds when wait has lost patience; it may be full
// merely because w is slow. It reports whether the pipe has ended with that.
func emptied(w io.Writer, read *os.File) bool {
	buffer := make([]byte, pipeSize)
	for left := pipeSize; left > 0; {
		// Each read gets a little time anew, since the write before it may take long.
		read.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		n, err := read.Read(buffer[:left])
		if n > 0 {
			left -= n
			if _, err := w.Write(buffer[:n]); err != nil {
				return false
			}
		}
		if err != nil {
			return errors.Is(err, io.EOF)
		}
	}
	return false
}

// started closes our copies of the child's ends; the copiers end when the child's
// close too.
func (o *outputs) started() {
	for _, end := range o.writeEnds {
		end.Close()
	}
}

// wait returns when everything is copied. It reports false when a pipe did not end
// within delay and was left to whoever still holds it.
func (o *outputs) wait(delay time.Duration) bool {
	o.expire(delay)
	o.copiers.Wait()
	return !o.abandoned.Load()
}

// expire lets the copiers wait no longer than delay for more to read.
func (o *outputs) expire(delay time.Duration) {
	o.waiting.Store(true)
	for _, end := range o.readEnds {
		end.SetReadDeadline(time.Now().Add(delay)) // fails on one that has ended, rightly
	}
}
