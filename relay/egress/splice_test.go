package egress

import (
	"bytes"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// TestAnIdleDirectionGivesItsLargeBufferBack reads a burst and then nothing.
func TestAnIdleDirectionGivesItsLargeBufferBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		var l lender
		defer l.put()
		burst := bytes.Repeat([]byte("0123456789"), 20_000)
		go theirs.Write(burst)
		var got []byte
		for len(got) < len(burst) {
			data, err := l.read(ours)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, data...)
		}
		if !bytes.Equal(got, burst) {
			t.Fatal("the bytes were changed on their way")
		}
		if l.large == nil {
			t.Fatal("a burst was read with the small buffer")
		}
		done := make(chan []byte)
		go func() {
			data, err := l.read(ours)
			if err != nil {
				t.Error(err)
			}
			done <- data
		}()
		time.Sleep(2 * parkAfter)
		synctest.Wait()
		if l.large != nil {
			t.Error("the large buffer is still held")
		}
		time.Sleep(time.Hour) // no deadline is left behind
		go theirs.Write([]byte("late"))
		if data := <-done; string(data) != "late" {
			t.Errorf("read %q", data)
		}
	})
}
