package selftest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Config says what Run does.
type Config struct {
	Binary  string          // postern-relay; required
	Data    string          // folder on the disk that is tried; made if it is not there
	For     time.Duration   // how long the load lasts; default one minute
	Rate    float64         // events a second; default 200
	Senders int             // default 8
	Seed    uint64          // when the relay is killed follows from it, and what is sent
	Stop    <-chan struct{} // closed to end the load before its time; may be nil
	Quiet   time.Duration   // what has not come after so long a silence is lost; default 30 s

	KillAfter, KillBefore time.Duration // the relay lives so long; default 1 s to 4 s

	Progress func(Progress) // called twice a second, one call at a time; may be nil
}

// Progress is how far a Run is.
type Progress struct {
	Counts
	Kills    int
	Elapsed  time.Duration
	Settling bool // the load is over; what is still to come is waited for
}

// Report is how a Run went.
type Report struct {
	Counts
	Kills      int         `json:"kills"`
	Violations []Violation `json:"violations"`
	Disk       Disk        `json:"disk"`
	Seed       uint64      `json:"seed"`
	Seconds    float64     `json:"seconds"` // of load
	Kept       string      `json:"kept"`    // folder with the data and the relay's log; "" when it is gone
}

func (c Config) withDefaults() Config {
	setDefault(&c.For, time.Minute)
	setDefault(&c.Rate, 200)
	setDefault(&c.Senders, 8)
	setDefault(&c.Quiet, 30*time.Second)
	setDefault(&c.KillAfter, time.Second)
	setDefault(&c.KillBefore, c.KillAfter+3*time.Second)
	return c
}

func setDefault[T int | float64 | time.Duration](v *T, value T) {
	if *v <= 0 {
		*v = value
	}
}

// trial is one Run.
type trial struct {
	cfg    Config
	ledger *Ledger
	relay  *Relay
	began  time.Time

	dir    string // everything is in it
	made   bool   // Config.Data was made by us
	secret string
	token  string

	kills    atomic.Int64
	settling atomic.Bool
}

// Run starts a relay of its own, sends it webhooks, kills it again and again, and
// judges what became of the events. An error says that it could not be done; what
// the relay did wrong is in the report.
//
//	Run
//	├─ prepare            folder, disk, manifest, token, the relay
//	├─ app, agent         in this process
//	├─ Load.Run           goroutine
//	├─ kill               until the time is over
//	├─ Settle             until everything acknowledged has come
//	└─ Ledger.Check
//
// When ctx ends it stops at once and cleans up. What it made is deleted, unless
// there are violations: then the folder stays, to be looked at.
func Run(ctx context.Context, cfg Config) (_ *Report, err error) {
	t := &trial{cfg: cfg.withDefaults(), ledger: NewLedger()}
	report := &Report{Seed: cfg.Seed}
	defer func() {
		if err == nil && len(report.Violations) > 0 {
			report.Kept = t.dir
			return
		}
		err = errors.Join(err, t.remove())
	}()
	if report.Disk, err = t.prepare(ctx); err != nil {
		return nil, err
	}
	said, err := os.Create(filepath.Join(t.dir, "relay.log"))
	if err != nil {
		return nil, err
	}
	defer said.Close()
	t.relay.Log = said
	if err := t.relay.Start(ctx); err != nil {
		return nil, t.withLog(err)
	}
	defer t.relay.Kill()
	if err := t.underLoad(ctx); err != nil {
		return nil, t.withLog(err)
	}
	report.Counts, report.Violations = t.ledger.Counts(), t.ledger.Check()
	report.Kills, report.Seconds = int(t.kills.Load()), t.cfg.For.Seconds()
	return report, nil
}

// withLog adds the last words of the relay to an error: its log is about to be
// deleted.
func (t *trial) withLog(err error) error {
	text, readErr := os.ReadFile(filepath.Join(t.dir, "relay.log"))
	if readErr != nil || len(bytes.TrimSpace(text)) == 0 {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return fmt.Errorf("%w; the relay's last words: %s", err, strings.Join(lines[max(0, len(lines)-3):], "; "))
}

// underLoad runs everything from the first event to the last delivery.
func (t *trial) underLoad(ctx context.Context) error {
	closeApp, target, err := t.serveApp()
	if err != nil {
		return err
	}
	defer closeApp()
	closeAgent, err := t.connect(ctx, target)
	if err != nil {
		return err
	}
	defer closeAgent()
	t.began = time.Now()
	stopProgress := t.reportProgress()
	defer stopProgress()

	loading, stopLoad := context.WithTimeout(ctx, t.cfg.For)
	defer stopLoad()
	var sending sync.WaitGroup
	sending.Go(func() { t.load().Run(loading) })
	err = t.kill(loading)
	stopLoad()
	sending.Wait()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return err
	}
	t.cfg.For = min(t.cfg.For, time.Since(t.began))
	t.settling.Store(true)
	if err := Settle(ctx, t.ledger, t.cfg.Quiet, nil); err != nil {
		return err
	}
	return t.relay.Stop()
}

// kill kills the relay and starts it again, until ctx ends or it is told to stop.
// The relay runs when it returns without an error.
func (t *trial) kill(ctx context.Context) error {
	r := mathrand.New(mathrand.NewPCG(t.cfg.Seed, ^uint64(0)))
	for {
		lives := time.NewTimer(t.cfg.KillAfter + time.Duration(r.Int64N(int64(max(1, t.cfg.KillBefore-t.cfg.KillAfter)))))
		select {
		case <-lives.C:
		case <-t.relay.Done():
			lives.Stop()
			return fmt.Errorf("the relay ended by itself: %w", t.relay.Ended())
		case <-t.cfg.Stop:
			lives.Stop()
			return nil
		case <-ctx.Done():
			lives.Stop()
			return nil
		}
		t.relay.Kill()
		t.kills.Add(1)
		// Not with ctx: what comes after needs a relay.
		if err := t.relay.Start(context.WithoutCancel(ctx)); err != nil {
			return fmt.Errorf("after kill %d: %w", t.kills.Load(), err)
		}
	}
}

// reportProgress calls Config.Progress until stop.
func (t *trial) reportProgress() (stop func()) {
	over, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-over:
				return
			}
			if t.cfg.Progress != nil {
				t.cfg.Progress(Progress{
					Counts: t.ledger.Counts(), Kills: int(t.kills.Load()),
					Elapsed: time.Since(t.began), Settling: t.settling.Load(),
				})
			}
		}
	}()
	return func() { close(over); <-ended }
}

// remove deletes what Run made.
func (t *trial) remove() error {
	if t.dir == "" {
		return nil
	}
	err := os.RemoveAll(t.dir)
	if t.made {
		os.Remove(t.cfg.Data) // only if nobody else put something there
	}
	return err
}
