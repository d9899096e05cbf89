package selftest

import (
	"fmt"
	"os"
	"slices"
	"time"
)

// Disk is how long a disk takes to say that bytes are safe.
type Disk struct {
	Median  time.Duration `json:"fsync_median_ns"`
	Slowest time.Duration `json:"fsync_slowest_ns"`
}

// What MeasureDisk does at most.
const (
	syncRounds = 200
	syncTime   = 2 * time.Second
	syncBytes  = 4096
)

// MeasureDisk writes small pieces into a file in dir, each followed by fsync. The
// file is gone afterwards.
func MeasureDisk(dir string) (Disk, error) {
	f, err := os.CreateTemp(dir, "fsync-")
	if err != nil {
		return Disk{}, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	piece := make([]byte, syncBytes)
	var took []time.Duration
	for began := time.Now(); len(took) < syncRounds && time.Since(began) < syncTime; {
		if _, err := f.Write(piece); err != nil {
			return Disk{}, fmt.Errorf("measure the disk: %w", err)
		}
		at := time.Now()
		if err := f.Sync(); err != nil {
			return Disk{}, fmt.Errorf("measure the disk: %w", err)
		}
		took = append(took, time.Since(at))
	}
	slices.Sort(took)
	return Disk{Median: took[len(took)/2], Slowest: took[len(took)-1]}, nil
}

// honest is what no disk is faster than that writes before it answers.
const honest = 20 * time.Microsecond

// Suspicious reports whether fsync came back sooner than bytes can be safe.
func (d Disk) Suspicious() bool { return d.Median < honest }
