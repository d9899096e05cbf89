package doctor

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/posternhq/postern/protocol"
)

// Config is what a Doctor is told about its patient.
type Config struct {
	Place   Place
	Command []string // the app's command as it was given; for recognising frameworks
	Dir     string   // the folder it runs in, for the same and for platform files; "": the current one

	// Child returns the app's first process, 0 before it has started, and how it
	// ended once it has. nil is an app that never starts.
	Child func() (pid int, exit *protocol.Exit)
	// Lines returns the app's latest output, secrets masked; nil has none.
	Lines func(n int) []protocol.Line
	// Changed is called with every diagnosis that says something new, by Run and by
	// nobody else. It must not wait long: nothing is watched meanwhile. nil is fine.
	Changed func(Diagnosis)
	Logger  *slog.Logger // nil discards
}

// Doctor examines one app. Its methods may be called by anybody at any time.
type Doctor struct {
	cfg   Config
	log   *slog.Logger
	world world

	pokes atomic.Int64
	wake  chan struct{} // holds one: somebody poked

	turn chan struct{} // holds one: whoever has taken it examines, and owns what follows
	past history
}

// New makes a Doctor. It starts nothing; call Run, or Examine now and then.
func New(cfg Config) *Doctor {
	d := &Doctor{
		cfg:   cfg,
		log:   cfg.Logger,
		world: realWorld(),
		wake:  make(chan struct{}, 1),
		turn:  make(chan struct{}, 1),
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	return d
}

// Poke says that a connection to the app was refused. It never waits. Run examines
// soon, though not more often than once a second because of pokes.
func (d *Doctor) Poke() {
	d.pokes.Add(1)
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// Examine looks at the app and says what it found. It takes some milliseconds, and
// some seconds where it looks twice or has to ask the app; when ctx ends first, there
// are no findings, and the state rests on what was seen until then. Run need not be running.
func (d *Doctor) Examine(ctx context.Context) Diagnosis {
	if !d.begin(ctx) {
		return Diagnosis{State: protocol.StateStarting, Why: "the examination was interrupted"}
	}
	defer d.end()
	if d.past.cpuAt.IsZero() { // two looks are needed to tell who works from who waits
		first, s := d.look(ctx, brief)
		if s.exit == nil && len(s.tree) > 0 && first.State != protocol.StateReady {
			span := cpuSpan
			if len(s.elsewhere) > 0 {
				span = settle
			}
			select {
			case <-ctx.Done():
			case <-time.After(span):
			}
		}
	}
	diagnosis, _ := d.look(ctx, whole)
	return diagnosis
}

func (d *Doctor) begin(ctx context.Context) bool {
	select {
	case d.turn <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (d *Doctor) end() { <-d.turn }

// look is one examination. The caller has the turn.
func (d *Doctor) look(ctx context.Context, how fresh) (Diagnosis, *sight) {
	pokes := int(d.pokes.Load())
	poked := pokes > d.past.poked
	before := d.past.state
	if !poked && before == protocol.StateReady && (how == brief || !d.past.curious(&d.cfg.Place)) {
		how = unseen
	}
	s := d.gather(ctx, how)
	state, why := judge(s)
	if ctx.Err() != nil {
		return Diagnosis{State: state, Why: why}, s // connections that we cut ourselves are not remembered
	}
	d.past.note(s, state)
	if poked {
		if before == protocol.StateReady && state == protocol.StateReady && s.loopback == open {
			d.past.refusals += pokes - d.past.poked
			d.past.refused = s.at
		}
		d.past.poked = pokes
	}
	s.framework = generic
	diagnosis := Diagnosis{State: state, Why: why}
	if list := d.check(s); len(list) > 0 {
		s.framework = recognise(d.cfg.Command, s)
		list = d.check(s) // again: now with the fixes for it
		diagnosis.Findings.List = arrange(list)
	}
	diagnosis.Findings.At = s.at
	if slices.ContainsFunc(diagnosis.Findings.List, misplaced) {
		diagnosis.Reachable = s.reachable()
	}
	return diagnosis, s
}

// misplaced reports whether a finding is about an app that may listen, but not where
// it should, or where nobody said that it should.
func misplaced(f protocol.Finding) bool { return f.Code >= "PORT01" && f.Code <= "PORT05" }

// check runs all checks.
func (d *Doctor) check(s *sight) []protocol.Finding {
	var list []protocol.Finding
	for _, check := range checks {
		list = append(list, check(s)...)
	}
	return list
}

// checks are the families, each in a file of its own.
var checks = []func(*sight) []protocol.Finding{
	checkPlace, checkListen, checkOwner, checkLife, checkSpeech, checkEgress,
}
