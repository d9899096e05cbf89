package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/posternhq/postern/agent"
	"github.com/posternhq/postern/agent/platform"
	"github.com/posternhq/postern/protocol"
)

func TestACorrectAppHasNoFindingOnAnyPlatformThatGivesItTime(t *testing.T) {
	t.Parallel()
	for _, as := range []string{"heroku", "dokku", "render", "cloudrun", "cf"} {
		t.Run(as, func(t *testing.T) {
			t.Parallel()
			r := hold(t, stage{As: as, App: "serve: environ", Env: []string{"RENDER_SERVICE_ID=mine", "DYNO=run.7", "MINE=yes"}})
			if !r.Ready || len(r.Findings) > 0 || !r.Obeyed || r.StopSignal != "SIGTERM" {
				t.Errorf("%+v\n%s", r.Rehearsal, r.said)
			}
			if r.Exit == nil || r.Exit.Code != 0 || !r.Exit.Asked {
				t.Errorf("exit %+v", r.Exit)
			}
			if r.BootMS <= 0 || r.BootMS > 10_000 || r.StopMS > 5_000 {
				t.Errorf("boot %d ms, stop %d ms", r.BootMS, r.StopMS)
			}
			m, _ := platform.Mimic(as)
			for _, want := range append(m.Env, fmt.Sprintf("PORT=%d", r.Port), "MINE=yes") {
				if !strings.Contains(r.said, want+"\n") {
					t.Errorf("the app was not given %s", want)
				}
			}
			for _, never := range []string{"POSTERN_TOKEN", "RENDER_SERVICE_ID=mine", "DYNO=run.7"} {
				if strings.Contains(r.said, never) {
					t.Errorf("the app was given %s", never)
				}
			}
		})
	}
}

func TestOnHerokuThePortIsRandomAndHigh(t *testing.T) {
	t.Parallel()
	r := hold(t, stage{As: "heroku", App: "serve:"})
	if r.Process != "web" || r.Platform != "heroku" || r.Port < 10_000 {
		t.Errorf("%+v", r.Rehearsal)
	}
}

func TestAWrongPlaceIsDecidedLongBeforeTheLimit(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, app, want string }{
		{"another port", "elsewhere", "PORT02"},
		{"localhost", "serve:127.0.0.1", "PORT03"},
		{"IPv6 localhost", "serve:[::1]", "PORT04"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := hold(t, stage{As: "heroku", App: test.app})
			f, ok := finding(r, test.want)
			if r.Ready || !ok || f.Severity != protocol.SeverityError {
				t.Errorf("%+v\n%s", r.Rehearsal, r.said)
			}
			if r.BootMS < 1000 || r.BootMS > 30_000 {
				t.Errorf("decided after %d ms", r.BootMS)
			}
			if !r.Obeyed {
				t.Error("was not stopped in order")
			}
		})
	}
}

func TestAnAppThatEndsIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	r := hold(t, stage{As: "heroku", Command: []string{"sh", "-c", "echo cannot find the database; exit 3"}})
	if f, _ := finding(r, "PORT06"); !strings.Contains(f.Evidence, "cannot find the database") {
		t.Errorf("evidence %q", f.Evidence)
	}
	if r.Ready || r.Exit == nil || r.Exit.Code != 3 || r.Exit.Asked || r.StopSignal != "" || !r.Has(protocol.SeverityError) {
		t.Errorf("%+v", r.Rehearsal)
	}
}

func TestASilentAppHasUntilTheWaitEnds(t *testing.T) {
	t.Parallel()
	r := hold(t, stage{As: "heroku", App: "nothing", Wait: 1500 * time.Millisecond})
	if r.Ready || r.BootMS < 1500 || r.BootMS > 10_000 || !r.Obeyed {
		t.Errorf("%+v", r.Rehearsal)
	}
	if len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "not ready after 1.5s, where Heroku waits 1m0s") {
		t.Errorf("notes %q", r.Notes)
	}
}

func TestAShellThatSwallowsTheSignalIsProven(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, as, script string
		want             bool
	}{
		{"a shell that waits", "render", `"$0"; echo ended`, true},
		{"exec", "render", `exec "$0"`, false},
		{"a shell that passes it on", "render", `"$0" & trap 'kill $!; wait $!; exit 0' TERM; wait`, false},
		{"Heroku signals everybody", "heroku", `"$0"; echo ended`, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := hold(t, stage{As: test.as, App: "serve:", Command: []string{"sh", "-c", test.script, os.Args[0]}})
			f, ok := finding(r, "PORT18")
			if !r.Ready || ok != test.want || r.Obeyed == test.want {
				t.Errorf("%+v\n%s", r.Rehearsal, r.said)
			}
			if got := strings.Contains(r.said, "got terminated"); got == test.want {
				t.Errorf("the app said %q", r.said)
			}
			if test.want && !strings.Contains(f.Evidence, "still running") {
				t.Errorf("evidence %q", f.Evidence)
			}
		})
	}
}

func TestAnAppWithoutAHandlerIsSeen(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		app       string
		untrapped bool
	}{{"serve: default", true}, {"serve:", false}, {"serve: default child:waits", false}} {
		r := hold(t, stage{As: "heroku", App: test.app})
		if !r.Ready || !r.Obeyed || r.Untrapped != test.untrapped {
			t.Errorf("%s: %+v", test.app, r.Rehearsal)
		}
	}
}

func TestTheTimeTheAppNeedsIsMeasured(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, as string
		app      string
		grace    time.Duration
		fix      string // "": no finding
	}{
		{"in time", "render", "serve: lag:300ms", 0, ""},
		{"too late", "render", "serve: lag:1s", 500 * time.Millisecond, "maxShutdownDelaySeconds in render.yaml to at least 10 seconds"},
		{"where nobody gets more", "cf", "serve: lag:1s", 500 * time.Millisecond, "stop within 500ms"},
		{"never", "render", "serve: deaf", 500 * time.Millisecond, "handle SIGTERM"},
		{"Railway waits for nobody", "railway", "serve:", 0, "RAILWAY_DEPLOYMENT_DRAINING_SECONDS to at least 10 seconds"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := hold(t, stage{As: test.as, App: test.app, Grace: test.grace, Watch: 3 * time.Second})
			f, ok := finding(r, "PORT19")
			if !r.Ready || ok != (test.fix != "") || !strings.Contains(f.Fix, test.fix) || r.Obeyed != (test.fix == "") {
				t.Errorf("%+v", r.Rehearsal)
			}
		})
	}
}

func TestFlyStopsWithAnInterruptAndGivesNoPort(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	port := freePort(t)
	toml := fmt.Sprintf("app = 'shop'\n[http_service]\n  internal_port = %d # ours\n", port)
	if err := os.WriteFile(filepath.Join(dir, "fly.toml"), []byte(toml), 0o600); err != nil {
		t.Fatal(err)
	}
	r := hold(t, stage{As: "fly", App: fmt.Sprintf("fixed:%d environ", port), Dir: dir, Env: []string{"PORT=1"}})
	if !r.Ready || r.Port != port || !r.Obeyed || r.StopSignal != "SIGINT" || r.Has(protocol.SeverityError) || r.Has(protocol.SeverityWarning) {
		t.Errorf("%+v", r.Rehearsal)
	}
	if !strings.Contains(r.said, "got interrupt") || strings.Contains(r.said, "\nPORT=") {
		t.Errorf("the app said %q", r.said)
	}
}

func TestABusyPortIsReplacedWhereTheAppCanBeTold(t *testing.T) {
	t.Parallel()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	port := busy.Addr().(*net.TCPAddr).Port
	r := hold(t, stage{As: "render", App: "serve:", Port: port})
	if !r.Ready || r.Port == port || len(r.Notes) != 1 || !strings.Contains(r.Notes[0], fmt.Sprintf("port %d, which Render gives, is taken here by", port)) {
		t.Errorf("%+v", r.Rehearsal)
	}
	p := open(t, stage{As: "fly", App: "serve:", Port: port})
	p.wait(t)
	if p.code == 0 || !strings.Contains(p.errs.String(), "Fly.io sends to") || len(p.members()) > 0 {
		t.Errorf("code %d, %s", p.code, p.errs.String())
	}
}

func TestTheSignalReachesEverybodyOnHerokuAndComesTwice(t *testing.T) {
	t.Parallel()
	r := hold(t, stage{As: "heroku", App: "serve: terms:2 child:waits,terms:2"})
	if got := strings.Count(r.said, "serve: got terminated"); got != 2 {
		t.Errorf("the app got %d signals, want 2", got)
	}
	if got := strings.Count(r.said, "waits got terminated"); got != 2 {
		t.Errorf("its child got %d signals, want 2", got)
	}
	if !r.Obeyed || r.StopMS < 900 {
		t.Errorf("%+v", r.Rehearsal)
	}
}

func TestElsewhereTheFirstProcessAloneIsSignalledOnce(t *testing.T) {
	t.Parallel()
	r := hold(t, stage{As: "cloudrun", App: "serve: lag:1500ms child:waits,deaf"})
	if got := strings.Count(r.said, "got terminated"); got != 1 {
		t.Errorf("%d signals, want 1: %s", got, r.said)
	}
	if _, ok := finding(r, "PORT18"); ok || !r.Obeyed { // the child is no server
		t.Errorf("%+v", r.Rehearsal)
	}
}

// hold checks that nobody is left.
func TestADaemonOfTheAppIsGoneToo(t *testing.T) {
	t.Parallel()
	r := hold(t, stage{As: "heroku", App: "serve: daemon", Grace: time.Second, Watch: 1500 * time.Millisecond})
	if !r.Ready || r.Obeyed {
		t.Errorf("%+v", r.Rehearsal)
	}
}

func TestAnInterruptEndsItAtOnce(t *testing.T) {
	t.Parallel()
	p := open(t, stage{As: "heroku", App: "child:deaf daemon deaf"})
	until := time.Now().Add(patience)
	for len(p.members()) < 4 {
		if time.Now().After(until) {
			t.Fatalf("only %v have started", p.members())
		}
		time.Sleep(10 * time.Millisecond)
	}
	interrupted := time.Now()
	p.cmd.Process.Signal(syscall.SIGINT)
	p.wait(t)
	if p.code != 1 || !strings.Contains(p.errs.String(), context.Canceled.Error()) {
		t.Errorf("code %d: %s", p.code, p.errs.String())
	}
	if took := time.Since(interrupted); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestACommandThatIsNotThere(t *testing.T) {
	t.Parallel()
	p := open(t, stage{As: "heroku", Command: []string{"/no/such/program"}})
	p.wait(t)
	if p.code != 1 || !strings.Contains(p.errs.String(), `start "/no/such/program"`) {
		t.Errorf("code %d: %s", p.code, p.errs.String())
	}
}

// A shell beside the app has neither its PORT nor its platform's variables, as in
// heroku ps:exec. What counts is what the app was started with.
func TestAVisitTakesTheAppsOwnEnvironment(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	for _, test := range []struct{ name, app, want string }{
		{"a correct app", "serve:", ""},
		{"one on localhost", "serve:127.0.0.1", "PORT03"},
	} {
		t.Run(test.name, func(t *testing.T) {
			app := exec.Command(os.Args[0])
			app.Env = []string{appVariable + "=" + test.app, fmt.Sprintf("PORT=%d", port), "DYNO=worker.1", "GORACE=atexit_sleep_ms=0"}
			app.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			if err := app.Start(); err != nil {
				t.Fatal(err)
			}
			defer app.Wait()
			defer app.Process.Kill()
			waitFor(t, port)
			r := hold(t, stage{Visiting: true, Env: []string{fmt.Sprintf("PORT=%d", port), "DYNO=web.9"}})
			if r.Platform != "heroku" || r.Process != "worker" || r.Port != port || r.Ready != (test.want == "") {
				t.Errorf("%+v", r.Rehearsal)
			}
			if _, ok := finding(r, test.want); ok != (test.want != "") {
				t.Errorf("%+v", r.Rehearsal)
			}
		})
	}
}

// In a network of its own, where nobody else can be taken for the app.
func TestAVisitFindsAnAppWithoutBeingToldItsPort(t *testing.T) {
	t.Parallel()
	if out, err := exec.Command("unshare", "-rn", "ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Skipf("no network namespaces here: %v %s", err, out)
	}
	text, _ := json.Marshal(stage{Visiting: true, Env: []string{"HOME=/"}})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "-rn", "sh", "-c", `ip link set lo up
		env `+appVariable+`=fixed:45000 "$0" >/dev/null & other=$!
		until grep -q ':AFC8 .* 0A ' /proc/net/tcp6 /proc/net/tcp; do sleep 0.02; done
		env `+appVariable+`=serve: PORT=45001 RENDER=true RENDER_SERVICE_TYPE=web "$0" >/dev/null & app=$!
		until grep -q ':AFC9 .* 0A ' /proc/net/tcp6 /proc/net/tcp; do sleep 0.02; done
		env "$1" "$0"; kill $app $other; wait`, os.Args[0], stageVariable+"="+string(text))
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "GORACE=atexit_sleep_ms=0"}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	var r agent.Rehearsal
	if err := errors.Join(err, json.Unmarshal(out, &r)); err != nil {
		t.Fatalf("%v: %s %s", err, out, errs.String())
	}
	if r.Platform != "render" || r.Process != "web" || r.Port != 45001 || !r.Ready {
		t.Errorf("%+v", r)
	}
}
