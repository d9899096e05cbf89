package relay

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestIDsHaveTheirForm(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_700_000_000_123)
	for prefix, id := range map[string]string{
		"evt_": string(NewEventID(now)),
		"dlv_": string(NewDeliveryID(now)),
		"tok_": string(NewTokenID(now)),
		"req_": NewRequestID(now),
	} {
		// The first of 26 characters carries the top 3 of 128 bits.
		if !regexp.MustCompile(`^` + prefix + `[0-7][0-9a-hjkmnp-tv-z]{25}$`).MatchString(id) {
			t.Errorf("%q does not have the form of an id with %q", id, prefix)
		}
	}
}

// The time is in front, so that ids made later sort later. 01arz3ndek... is the
// example that ULIDs, which are made the same way, are usually shown with.
func TestIDsBeginWithTheirTime(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		ms   int64
		want string
	}{
		{0, "0000000000"},
		{1, "0000000001"},
		{32, "0000000010"},
		{1_469_922_850_259, "01arz3ndek"},
		{1<<48 - 1, "7zzzzzzzzz"},
	} {
		id := newID("", time.UnixMilli(tt.ms))
		if id[:10] != tt.want {
			t.Errorf("at %d ms the id begins with %q, want %q", tt.ms, id[:10], tt.want)
		}
	}
}

func TestIDsSortByTime(t *testing.T) {
	t.Parallel()
	at, last := time.UnixMilli(1_700_000_000_000), ""
	for i := range 2000 {
		id := newID("evt_", at.Add(time.Duration(i)*time.Millisecond))
		if id <= last {
			t.Fatalf("%q was made after %q", id, last)
		}
		last = id
	}
}

func TestIDsOfOneMomentDiffer(t *testing.T) {
	t.Parallel()
	now, seen := time.UnixMilli(1_700_000_000_000), map[string]bool{}
	var differs [26]map[byte]bool
	for range 2000 {
		id := newID("", now)
		if seen[id] {
			t.Fatalf("%q twice", id)
		}
		seen[id] = true
		for i := range id {
			if differs[i] == nil {
				differs[i] = map[byte]bool{}
			}
			differs[i][id[i]] = true
		}
	}
	// Every one of the 16 random characters uses its whole alphabet.
	for i := 10; i < 26; i++ {
		if len(differs[i]) != len(idAlphabet) {
			t.Errorf("character %d takes %d values", i, len(differs[i]))
		}
	}
}

func TestTheAlphabetHasNoLookalikes(t *testing.T) {
	t.Parallel()
	if len(idAlphabet) != 32 || strings.ContainsAny(idAlphabet, "iloABCDEFGHIJKLMNOPQRSTUVWXYZu") {
		t.Errorf("alphabet %q", idAlphabet)
	}
}
