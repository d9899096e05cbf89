package sqlite

import "testing"

func TestTheLogFitsInWhatIsLeftFree(t *testing.T) {
	t.Parallel()
	unknown, usual, small := newWAL(-1), newWAL(DefaultMinFree), newWAL(12<<20)
	if unknown.busy == 0 || unknown.idle == 0 || usual.busy != unknown.busy || usual.idle != unknown.idle {
		t.Errorf("without a reserve %+v, with the usual one %+v", unknown, usual)
	}
	// A log that is full and the pages that its checkpoint may add.
	if most := 2 * small.busy * frameBytes; most > 12<<20 || small.idle > small.busy || small.busy == 0 {
		t.Errorf("with 12 MiB %+v", small)
	}
}
