package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/posternhq/postern/agent/doctor"
	"github.com/posternhq/postern/agent/logs"
	"github.com/posternhq/postern/agent/platform"
	"github.com/posternhq/postern/agent/run"
	"github.com/posternhq/postern/protocol"
)

// Rehearsing is one rehearsal of a deploy: the app runs here as it would there.
//
//	Rehearse
//	├─ choosePort   random, or the platform's own where nobody has it yet
//	├─ startActor   the platform's environment, a session of its own, no terminal
//	├─ await        until it is ready and quiet, surely wrong, ended, or out of time
//	├─ Examine      the port doctor's whole examination
//	├─ stop         the platform's signal, to whom it sends it, for as long as it waits
//	└─ clear        whatever is left, SIGKILL
//
// A process has one rehearsal at a time: orphans of the app become ours, and only
// so can all of them be found at the end.
type Rehearsing struct {
	As      platform.Mimicry
	Command []string // program and arguments, passed on verbatim
	Dir     string   // working folder; default our own
	Env     []string // default os.Environ(); the platform's variables replace what is like them

	// Wait is how long the app may take to be ready; default the platform's own
	// limit, at most five minutes, or one minute where it has none.
	Wait      time.Duration
	ReadyPath string    // is ready when this path answers 2xx or 3xx; "" when somebody listens
	Output    io.Writer // what the app writes, stdout and stderr; default nowhere

	// Watch is how long an app is watched that does not stop, to see how much time it
	// needs; default five seconds longer than the platform's grace, and at least ten.
	Watch time.Duration

	Said func(string) // called with a sentence when there is something to know; default nobody
}

// Rehearsal is what a rehearsal, or a look at a running app, has shown. Its JSON is
// that of postern doctor --json.
type Rehearsal struct {
	Platform string             `json:"platform"` // "": a plain machine
	Process  string             `json:"process"`
	Port     int                `json:"port"` // where the platform sends; 0: nowhere
	Ready    bool               `json:"ready"`
	BootMS   int64              `json:"boot_ms"` // until it was ready, or until the wait for that ended
	Findings []protocol.Finding `json:"findings"`
	Exit     *protocol.Exit     `json:"exit"` // null: it runs on, or its end was not seen

	// The stop; empty when the app ended by itself, or was not ours to stop.
	StopMS     int64  `json:"stop_ms"`
	StopSignal string `json:"stop_signal,omitempty"` // SIGTERM, SIGINT
	Obeyed     bool   `json:"obeyed,omitempty"`      // it was told, and gone within the platform's grace
	Untrapped  bool   `json:"untrapped,omitempty"`   // the signal ended it because it does not handle it

	Notes []string `json:"notes,omitempty"` // what is otherwise here than on the platform
}

// Has reports whether a finding of that severity is there.
func (r *Rehearsal) Has(s protocol.Severity) bool {
	return slices.ContainsFunc(r.Findings, func(f protocol.Finding) bool { return f.Severity == s })
}

const (
	defaultWait = time.Minute
	longestWait = 5 * time.Minute

	// examineTime is what the last examination may take: it asks the app questions
	// that the app may be slow to answer.
	examineTime = 20 * time.Second

	// linesKept is how much of the app's output the doctor can look at, in bytes.
	linesKept = 256 << 10
)

// Rehearse runs the app once as its platform would, examines it, and stops it. When
// it returns, the app and all that it has started are gone, also when ctx has ended
// before; that is then the error. Any other error means that the app could not be
// started.
func Rehearse(ctx context.Context, cfg Rehearsing) (*Rehearsal, error) {
	if cfg.Said == nil {
		cfg.Said = func(string) {}
	}
	if cfg.Output == nil {
		cfg.Output = io.Discard
	}
	if cfg.Env == nil {
		cfg.Env = os.Environ()
	}
	r := &rehearsing{Rehearsing: cfg, result: &Rehearsal{Platform: cfg.As.Name, Findings: []protocol.Finding{}}}
	if err := r.choosePort(); err != nil {
		return nil, err
	}
	env := r.environ()
	get := lookupIn(env)
	r.result.Process = platform.Detect(get, noHostname).Process
	r.log = logs.New(logs.Config{Size: linesKept, Secrets: logs.SecretsIn(env)})
	a, err := startActor(cfg.Command, cfg.Dir, env, r.log, cfg.Output)
	if err != nil {
		return nil, err
	}
	r.actor = a
	defer a.clear()
	return r.play(ctx, get)
}

// rehearsing is a rehearsal under way. All of it belongs to the goroutine of
// Rehearse.
type rehearsing struct {
	Rehearsing
	result *Rehearsal
	port   int
	log    *logs.Log
	actor  *actor
	doctor *doctor.Doctor
}

// play is the rehearsal once the app runs.
func (r *rehearsing) play(ctx context.Context, get func(string) (string, bool)) (*Rehearsal, error) {
	place := doctor.Place{
		Platform: r.As.Name, Process: r.result.Process, Port: r.port, Serves: true,
		BootLimit: r.As.BootLimit, Grace: r.As.Grace, ReadyPath: r.ReadyPath,
		Env: func(name string) string { value, _ := get(name); return value },
	}
	if wait := r.waitLimit() * 3 / 4; wait < r.As.BootLimit/6 {
		place.Patience = wait // or nothing would have been said when the waiting is over
	}
	if r.As.GivesPort {
		place.PortVar = fmt.Sprint(r.port)
	}
	changes := newLatest()
	r.doctor = doctor.New(doctor.Config{
		Place: place, Command: r.Command, Dir: r.Dir,
		Child: r.actor.state, Lines: r.log.Tail, Changed: changes.set,
	})
	if err := r.await(ctx, changes); err != nil {
		return nil, err
	}
	if r.actor.ended() {
		r.actor.hearOut()
	}
	last, cancel := context.WithTimeout(ctx, examineTime)
	seen := r.doctor.Examine(last)
	cancel()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r.result.Ready = isReady(seen)
	r.result.Findings = append(r.result.Findings, seen.Findings.List...)
	if !r.actor.ended() {
		if err := r.stop(ctx); err != nil {
			return nil, err
		}
	}
	r.actor.clear()
	_, r.result.Exit = r.actor.state()
	sortFindings(r.result.Findings)
	return r.result, nil
}

// environ is what the app gets: what is set here, with the platform's variables in
// place of every platform's.
func (r *rehearsing) environ() []string {
	env := slices.DeleteFunc(run.ChildEnv(r.Env), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return platform.Own(name)
	})
	env = append(env, r.As.Env...)
	if r.As.GivesPort {
		env = append(env, fmt.Sprintf("PORT=%d", r.port))
	}
	return env
}

// note is something that is otherwise here than on the platform.
func (r *rehearsing) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	r.result.Notes = append(r.result.Notes, text)
	r.Said(text)
}

// lookupIn is os.LookupEnv for an environment that is not ours; the last one of a
// name counts, as it does for os/exec.
func lookupIn(env []string) func(string) (string, bool) {
	values := make(map[string]string, len(env))
	for _, entry := range env {
		name, value, _ := strings.Cut(entry, "=")
		values[name] = value
	}
	return func(name string) (string, bool) {
		value, ok := values[name]
		return value, ok
	}
}

func noHostname() (string, error) { return "", errors.New("not this machine's") }

// sortFindings puts the worst first and keeps the order otherwise.
func sortFindings(list []protocol.Finding) {
	rank := map[protocol.Severity]int{protocol.SeverityError: 0, protocol.SeverityWarning: 1, protocol.SeverityNote: 2}
	slices.SortStableFunc(list, func(a, b protocol.Finding) int { return rank[a.Severity] - rank[b.Severity] })
}
