package run

import (
	"log/slog"
	"os"
	"syscall"
	"time"
)

// adopter does nothing here: launchd adopts all orphans, and nobody else can.
type adopter struct{}

func newAdopter(asked bool, log *slog.Logger) *adopter {
	if asked {
		log.Warn("orphans of the app cannot be adopted on this system")
	}
	return nil
}

func (*adopter) started(int)                                  {}
func (*adopter) stop()                                        {}
func (*adopter) events() (<-chan os.Signal, <-chan time.Time) { return nil, nil }
func (*adopter) reap()                                        {}
func (*adopter) tell(syscall.Signal)                          {}
func (*adopter) gone() bool                                   { return true }
func (*adopter) none() bool                                   { return true }
