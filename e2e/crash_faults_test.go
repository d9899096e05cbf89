package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
	"github.com/posternhq/postern/relay/selftest"
)

// smallDisk is a disk in memory that the test mounts itself.
type smallDisk struct {
	t   *testing.T
	dir string
}

// newSmallDisk mounts a disk of so many MiB, half of it taken by a file.
func newSmallDisk(t *testing.T, mebibytes int) *smallDisk {
	t.Helper()
	if runtime.GOOS != "linux" || os.Getuid() != 0 {
		t.Skip("a disk that fills up is mounted by root on Linux only")
	}
	d := &smallDisk{t: t, dir: t.TempDir()}
	mount := exec.Command("mount", "-t", "tmpfs", "-o", fmt.Sprintf("size=%dm,mode=700", mebibytes), "tmpfs", d.dir)
	if said, err := mount.CombinedOutput(); err != nil {
		t.Skipf("mount: %v: %s", err, said)
	}
	t.Cleanup(func() {
		if said, err := exec.Command("umount", d.dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, said)
		}
	})
	if err := os.WriteFile(d.ballast(), make([]byte, mebibytes<<20/2), 0o600); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *smallDisk) ballast() string { return filepath.Join(d.dir, "ballast") }

// free makes room.
func (d *smallDisk) free() {
	d.t.Helper()
	if err := os.Remove(d.ballast()); err != nil {
		d.t.Fatal(err)
	}
}

// awaitUnavailable waits until n more sends were answered 503.
func (s *crashSite) awaitUnavailable(n int) {
	s.t.Helper()
	n += s.ledger.Counts().Unavailable
	rig.Eventually(s.t, time.Minute, "webhooks answered 503", func() error {
		if c := s.ledger.Counts(); c.Unavailable < n {
			return fmt.Errorf("%d of %d: %+v", c.Unavailable, n, c)
		}
		return nil
	})
}

// What does not fit any more is answered 503, which makes senders come again;
// what was acknowledged before is all there, and with room comes service.
func TestAFullDiskIs503AndLosesNothing(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		minFree string // what the relay leaves free
		goesOn  bool   // what is stored is delivered while nothing is taken
	}{
		{"to the reserve", strconv.Itoa(12 << 20), true},
		{"to the last byte", "-1", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			disk := newSmallDisk(t, 56)
			s := newCrashSite(t, crashConfig{Data: filepath.Join(disk.dir, "data"), Env: []string{"POSTERN_MIN_FREE=" + test.minFree}})
			s.send(&selftest.Load{Targets: s.targets(), Senders: 8, Seed: crashSeed(t)})
			s.awaitUnavailable(200) // nobody takes anything, so it fills up
			s.oneAgent()
			if test.goesOn {
				s.awaitDeliveries(200)
			}
			s.awaitUnavailable(100)
			full := s.ledger.Counts()
			disk.free()
			s.awaitAcknowledged(200)
			s.endLoad()
			violations := s.settle(settlesWithin)
			c := s.ledger.Counts()
			t.Logf("when full: %+v", full)
			t.Logf("in the end: %+v", c)
			s.report(violations)
			if c.Unanswered > 0 {
				t.Errorf("%d webhooks were not answered at all", c.Unanswered)
			}
		})
	}
}

// awaitDeliveries waits until n acknowledged events were delivered.
func (s *crashSite) awaitDeliveries(n int) {
	s.t.Helper()
	rig.Eventually(s.t, time.Minute, "deliveries", func() error {
		if err := s.follow(); err != nil {
			return err
		}
		if c := s.ledger.Counts(); c.Delivered < n {
			return fmt.Errorf("%d of %d: %+v", c.Delivered, n, c)
		}
		return nil
	})
}

// An fsync that fails says that the bytes may be gone, a write that fails that
// they never were there. What depended on them is not acknowledged; what was
// before stays, also when the relay is killed right then.
func TestADiskThatFailsIs503AndLosesNothing(t *testing.T) {
	t.Parallel()
	mayTrace(t)
	s := newCrashSite(t, crashConfig{})
	s.oneAgent()
	s.send(&selftest.Load{Targets: s.targets(), Senders: 8, Rate: 100, Seed: crashSeed(t)})
	s.awaitAcknowledged(50)
	for _, fault := range []struct {
		calls, err, when string
		kill             bool // the relay, in the middle of it
	}{
		{"fsync,fdatasync", "EIO", "1+3", false},
		{"fsync,fdatasync", "EIO", "1+2", true},
		{"pwrite64,pwritev", "EIO", "20+40", false}, // the database's; a commit has about twenty
		{"pwrite64,pwritev", "ENOSPC", "20+40", true},
	} {
		stop := s.trace("-e", "trace="+fault.calls, "-e", "inject="+fault.calls+":error="+fault.err+":when="+fault.when)
		s.awaitUnavailable(20)
		if fault.kill {
			s.relay.Kill()
		}
		if injected := bytes.Count(stop(), []byte("INJECTED")); injected == 0 {
			t.Errorf("no %s failed", fault.calls)
		} else {
			t.Logf("%d times %s from %s: %+v", injected, fault.err, fault.calls, s.ledger.Counts())
		}
		if fault.kill {
			s.startRelay()
		}
		s.awaitAcknowledged(50) // it goes on, without a restart unless it was killed
	}
	s.endLoad()
	violations := s.settle(settlesWithin)
	t.Logf("in the end: %+v", s.ledger.Counts())
	s.report(violations)
}
