package inbox

import (
	"math"
	"time"
)

// bucket limits a rate: it fills with rate tokens a second and holds size of
// them. The zero bucket has no limit until refill gives it one.
type bucket struct {
	rate   float64 // 0: no limit
	tokens float64
	at     time.Time
}

// perSecond is the size of a bucket that holds one second's worth.
func perSecond(rate float64) float64 { return max(1, rate) }

func (b *bucket) refill(rate, size float64, now time.Time) {
	if b.rate <= 0 {
		b.tokens = size
	}
	passed := max(0, now.Sub(b.at)) // a clock set back takes nothing away
	b.tokens = min(size, b.tokens+passed.Seconds()*rate)
	b.rate, b.at = rate, now
}

// whole is how many may go now.
func (b *bucket) whole() int {
	if b.rate <= 0 {
		return math.MaxInt
	}
	return int(b.tokens + 1e-9) // a sum of fractions may miss a whole by a hair
}

func (b *bucket) take(n int) { b.tokens -= float64(n) }

// readyAt is when the next one may go.
func (b *bucket) readyAt() time.Time {
	if b.whole() > 0 {
		return time.Time{}
	}
	missing := (1 - b.tokens) / b.rate
	return b.at.Add(time.Duration(math.Ceil(missing * float64(time.Second))))
}
