package main

import (
	"fmt"
	"os"
	"time"
)

// fsyncSizes are appended in turn; a commit of one small row writes about as much.
var fsyncSizes = [...]int{2 << 10, 3 << 10, 4 << 10}

// fsyncTimes appends to a new file in dir n times and times each fsync, without
// the write before it.
func fsyncTimes(dir string, n int) (*histogram, error) {
	file, err := os.CreateTemp(dir, "fsync-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	block := make([]byte, fsyncSizes[len(fsyncSizes)-1])
	times := &histogram{}
	for i := range n {
		if _, err := file.Write(block[:fsyncSizes[i%len(fsyncSizes)]]); err != nil {
			return nil, fmt.Errorf("append: %w", err)
		}
		begin := time.Now()
		if err := file.Sync(); err != nil {
			return nil, fmt.Errorf("fsync: %w", err)
		}
		times.record(time.Since(begin))
	}
	return times, nil
}
