package sqlite

import (
	"fmt"
	"time"

	sqlite3 "modernc.org/sqlite/lib"
)

// How the write-ahead log is kept small. It is counted in frames: pages of 4 KiB.
//
// SQLite would checkpoint inside every COMMIT that leaves more than some frames,
// while those who wait for the commit wait for that too. Here it happens after
// they were told. A passive checkpoint disturbs nobody, but the log begins anew
// only when at some moment nobody reads in it; with readers who page without a
// break that moment never comes, so that past a size they are asked to stand
// back for one.
type walState struct {
	idle  int64 // checkpoint when nothing else is to be done
	busy  int64 // checkpoint although there is
	large int64 // hold the readers back until the log is empty
	keep  int64 // a log larger than this is cut when idle

	patience time.Duration // the longest that the writer and new reads wait for the reads in progress
	retry    time.Duration // how long they are left alone afterwards
	quietAt  time.Time     // when they may be held back again
}

// idlePatience takes the place of patience when the log is only to be cut.
const idlePatience = 10 * time.Millisecond

// newWAL is for a disk that has reserve bytes left when no event is taken any
// more; negative: nobody knows. The log and what a checkpoint adds to the database
// must both fit in there, or nothing could be delivered from a nearly full disk.
func newWAL(reserve int64) walState {
	s := walState{idle: 3000, busy: 16000, keep: 4 << 10, large: 24 << 10, // 12, 64, 16 and 96 MiB
		patience: 250 * time.Millisecond, retry: 5 * time.Second}
	if frames := reserve / frameBytes; reserve >= 0 {
		s.idle, s.busy = min(s.idle, frames/8), min(s.busy, frames/4)
		s.keep, s.large = min(s.keep, frames/8), min(s.large, frames/3)
	}
	return s
}

// frameBytes is about what one frame of the log takes.
const frameBytes = 4 << 10

// tidy keeps the log small. idle says that no operation waits.
func (w *writer) tidy(idle bool) {
	if w.c == nil {
		return
	}
	if err := w.checkpoint(idle); err != nil && resultCode(err) != sqlite3.SQLITE_BUSY {
		w.log.Warn("store checkpoint failed", "error", err)
		w.repair(err)
	}
}

func (w *writer) checkpoint(idle bool) error {
	frames, done, err := w.pragma("NOOP")
	if err != nil {
		return err
	}
	limit := w.wal.busy
	if idle {
		limit = w.wal.idle
	}
	if frames-done >= limit {
		if frames, _, err = w.pragma("PASSIVE"); err != nil {
			return err
		}
	}
	large := frames >= w.wal.large
	if !large && !(idle && frames >= w.wal.keep) || time.Now().Before(w.wal.quietAt) {
		return nil
	}
	w.wal.quietAt = time.Now().Add(w.wal.retry)
	patience := idlePatience
	if large {
		patience = w.wal.patience
	}
	if !w.pool.quiet(patience, func() { _, _, err = w.pragma("TRUNCATE") }) && large {
		w.log.Warn("store log cannot be emptied while reads last", "bytes", frames*frameBytes)
	}
	return err
}

// pragma checkpoints and returns how many frames the log has, and how many of
// them are in the database.
func (w *writer) pragma(mode string) (frames, done int64, err error) {
	_, err = w.c.one(func(r *row) {
		r.int() // busy
		frames, done = r.int(), r.int()
	}, "PRAGMA wal_checkpoint("+mode+")")
	if err != nil {
		return 0, 0, fmt.Errorf("checkpoint: %w", err)
	}
	return frames, done, nil
}
