package rig

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// Log is what a process has written, standard output and error together. It is
// safe for concurrent use.
type Log struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{} // closed and replaced by every Write
}

func newLog() *Log { return &Log{changed: make(chan struct{})} }

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
	return l.text.Write(p)
}

// String is everything so far.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Len is how many bytes were written; a mark for After.
func (l *Log) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Len()
}

// After is what was written after mark.
func (l *Log) After(mark int) string { return l.String()[mark:] }

// Count is how many lines after mark contain all of words.
func (l *Log) Count(mark int, words ...string) int {
	n := 0
	for line := range strings.SplitSeq(l.After(mark), "\n") {
		if containsAll(line, words) {
			n++
		}
	}
	return n
}

func containsAll(line string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(line, w) {
			return false
		}
	}
	return len(line) > 0
}

// Wait waits until n lines after mark contain all of words. It fails the test
// after within.
func (l *Log) Wait(t testing.TB, within time.Duration, mark, n int, words ...string) {
	t.Helper()
	if err := l.wait(within, mark, n, nil, words...); err != nil {
		t.Fatal(err)
	}
}

// wait is Wait that also gives up when over is closed.
func (l *Log) wait(within time.Duration, mark, n int, over <-chan struct{}, words ...string) error {
	timer := time.NewTimer(within)
	defer timer.Stop()
	for {
		l.mu.Lock()
		changed := l.changed
		l.mu.Unlock()
		if l.Count(mark, words...) >= n {
			return nil
		}
		select {
		case <-changed:
		case <-over:
			return fmt.Errorf("the process ended without logging %q %d times", words, n)
		case <-timer.C:
			return fmt.Errorf("%q is in the log %d times after %v, expected %d", words, l.Count(mark, words...), within, n)
		}
	}
}
