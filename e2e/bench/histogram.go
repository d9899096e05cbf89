package main

import (
	"math/bits"
	"time"
)

const (
	// subBits is how many leading bits of a value choose its bucket; a bucket
	// is never wider than 1/2^subBits of its values, below 0.8 %.
	subBits  = 7
	subCount = 1 << subBits
	// topBits bounds what can be told apart: 2^topBits ns is 68 s. Longer
	// values share the last bucket.
	topBits     = 36
	bucketCount = (topBits - subBits + 1) * subCount
)

// histogram counts latencies in log-linear buckets: exact below 128 ns, within
// 0.8 % above. The zero value is ready. It is for one goroutine; a load merges
// the histograms of its connections after they ended.
type histogram struct {
	counts [bucketCount]uint32
	total  uint64
	max    time.Duration
}

// record adds one latency. A negative one counts as zero.
func (h *histogram) record(d time.Duration) {
	h.counts[bucketOf(d)]++
	h.total++
	h.max = max(h.max, d)
}

// merge adds everything other has counted.
func (h *histogram) merge(other *histogram) {
	for i, n := range other.counts {
		h.counts[i] += n
	}
	h.total += other.total
	h.max = max(h.max, other.max)
}

// quantile returns the nearest-rank value of q, from 0 to 1, as the upper end
// of its bucket, and 0 for an empty histogram.
func (h *histogram) quantile(q float64) time.Duration {
	if h.total == 0 {
		return 0
	}
	rank := uint64(q * float64(h.total))
	if float64(rank) < q*float64(h.total) || rank == 0 {
		rank++
	}
	var seen uint64
	for i, n := range h.counts {
		seen += uint64(n)
		if seen >= rank {
			return min(bucketEnd(i), h.max)
		}
	}
	return h.max
}

func bucketOf(d time.Duration) int {
	v := uint64(max(d, 0))
	if v < subCount {
		return int(v)
	}
	shift := bits.Len64(v) - subBits - 1
	i := (shift+1)*subCount + int(v>>shift) - subCount
	return min(i, bucketCount-1)
}

// bucketEnd is the greatest value that bucketOf puts into bucket i.
func bucketEnd(i int) time.Duration {
	if i < subCount {
		return time.Duration(i)
	}
	shift := i/subCount - 1
	return time.Duration((i%subCount+subCount+1)<<shift - 1)
}
