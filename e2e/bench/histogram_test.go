package main

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestHistogramQuantilesAreWithinOnePercentOfSortedSamples(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	shapes := map[string]func() time.Duration{
		"log-uniform from 1 ns to 60 s": func() time.Duration {
			return time.Duration(math.Exp(random.Float64() * math.Log(60e9)))
		},
		"exponential around 200 us": func() time.Duration { return time.Duration(random.ExpFloat64() * 200e3) },
		"two humps": func() time.Duration {
			return time.Duration([]float64{80e3, 40e6}[random.IntN(2)] * (0.9 + 0.2*random.Float64()))
		},
		"one value": func() time.Duration { return 1234567 },
	}
	for name, next := range shapes {
		var h histogram
		var samples []time.Duration
		for range 20_000 {
			d := next()
			h.record(d)
			samples = append(samples, d)
		}
		slices.Sort(samples)
		for _, q := range []float64{0, 0.01, 0.5, 0.9, 0.99, 0.999, 1} {
			want := samples[max(int(math.Ceil(q*float64(len(samples))))-1, 0)]
			got := h.quantile(q)
			if diff := math.Abs(float64(got - want)); diff > 0.01*float64(want) {
				t.Errorf("%s: quantile %v is %v, sorted samples say %v", name, q, got, want)
			}
		}
	}
}

func TestHistogramMergesAsIfRecordedByOne(t *testing.T) {
	t.Parallel()
	var whole, left, right histogram
	for i := range 10_000 {
		d := time.Duration(i * i)
		whole.record(d)
		if i%3 == 0 {
			left.record(d)
		} else {
			right.record(d)
		}
	}
	left.merge(&right)
	if left != whole {
		t.Errorf("merged p99 %v of %d, recorded by one %v of %d",
			left.quantile(0.99), left.total, whole.quantile(0.99), whole.total)
	}
}

func TestHistogramTakesWhatItCannotTellApart(t *testing.T) {
	t.Parallel()
	var h histogram
	if got := h.quantile(0.5); got != 0 {
		t.Errorf("empty histogram answers %v", got)
	}
	h.record(-time.Second)
	if got := h.quantile(1); got != 0 {
		t.Errorf("a negative latency counts as %v", got)
	}
	h.record(time.Hour)
	if got := h.quantile(1); got < 60*time.Second || got > time.Hour {
		t.Errorf("an hour counts as %v", got)
	}
}
