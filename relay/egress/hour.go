package egress

import "time"

// hourSum adds up what happened in the last sixty minutes. It counts by the minute,
// and the oldest one whole, so that no sixty minutes ever have more.
type hourSum struct {
	minute int64 // the latest slot's, since 1970
	slots  [61]int64
	total  int64
}

func (h *hourSum) advance(now time.Time) {
	minute := now.Unix() / 60
	for n := min(minute-h.minute, int64(len(h.slots))); n > 0; n-- {
		slot := (minute - n + 1) % int64(len(h.slots))
		h.total -= h.slots[slot]
		h.slots[slot] = 0
	}
	h.minute = max(minute, h.minute)
}

// sum is what the last hour has.
func (h *hourSum) sum(now time.Time) int64 {
	h.advance(now)
	return h.total
}

func (h *hourSum) add(now time.Time, n int64) {
	h.advance(now)
	h.slots[h.minute%int64(len(h.slots))] += n
	h.total += n
}

// wait is how long it takes until n more fit below limit, if nothing else comes.
func (h *hourSum) wait(now time.Time, limit, n int64) time.Duration {
	h.advance(now)
	left := h.total
	for i := range int64(len(h.slots)) {
		if left+n <= limit {
			break
		}
		left -= h.slots[(h.minute+1+i)%int64(len(h.slots))] // the oldest first
		if left+n <= limit || i == int64(len(h.slots))-1 {
			gone := time.Unix((h.minute+1+i)*60, 0)
			return gone.Sub(now)
		}
	}
	return 0
}
