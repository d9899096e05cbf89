package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// Two relays on one data folder would each take the other's leases for what a
// crash left, and deliver twice. A lock holds them apart; during a deploy the
// next one waits here until the last one is gone.
const (
	lockWait  = time.Minute
	lockRetry = 100 * time.Millisecond
)

var errLocked = errors.New("another relay runs on this data folder")

// lockData takes the lock on the data folder. It waits for another relay to end,
// for lockWait at most. Closing the file gives the lock back.
func lockData(ctx context.Context, data string, log *slog.Logger) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(data, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data folder: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	retry := time.NewTicker(lockRetry)
	defer retry.Stop()
	for waited := false; ; waited = true {
		err := tryLock(f)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, errLocked) || ctx.Err() != nil {
			return nil, errors.Join(fmt.Errorf("lock the data folder %s: %w", data, err), f.Close())
		}
		if !waited {
			log.Warn("another relay runs on this data folder, waiting for it to end", "data", data, "at_most", lockWait)
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
		}
	}
}
