package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/relay/selftest"
)

// brokenStores are put between the inbox and the real store. Each breaks a promise
// of the relay: hasty acknowledges first and commits later, careless forgets which
// events belong together.
const brokenStores = `package node

import (
	"context"

	"github.com/posternhq/postern/relay"
)

type hasty struct{ relay.Store }

func (h hasty) CreateEvents(ctx context.Context, events []relay.NewEvent) ([]relay.Receipt, error) {
	receipts := make([]relay.Receipt, len(events))
	for i := range events {
		receipts[i].ID = events[i].Event.ID
	}
	go h.Store.CreateEvents(context.WithoutCancel(ctx), events)
	return receipts, nil
}

type careless struct{ relay.Store }

func (c careless) CreateEvents(ctx context.Context, events []relay.NewEvent) ([]relay.Receipt, error) {
	for i := range events {
		for j := range events[i].Deliveries {
			events[i].Deliveries[j].OrderKey = ""
		}
	}
	return c.Store.CreateEvents(ctx, events)
}
`

// brokenRelay builds a relay in which the inbox gets one of brokenStores.
func brokenRelay(t *testing.T, store string) string {
	t.Helper()
	const place = "Store: n.store, Node: n.name"
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	mod, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Dir(filepath.Dir(strings.TrimSpace(string(mod))))
	node := filepath.Join(root, "relay", "node")
	source, err := os.ReadFile(filepath.Join(node, "node.go"))
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(source, []byte(place)); n != 1 {
		t.Fatalf("relay/node/node.go has %q %d times; where does the inbox get its store now?", place, n)
	}
	source = bytes.Replace(source, []byte(place), []byte("Store: "+store+"{n.store}, Node: n.name"), 1)
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {
		filepath.Join(node, "node.go"):   write("node.go", source),
		filepath.Join(node, "broken.go"): write("broken.go", []byte(brokenStores)),
	}})
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "postern-relay")
	build := exec.CommandContext(ctx, "go", "build", "-overlay", write("overlay.json", overlay), "-o", binary, "./cmd/postern-relay")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build a %s relay: %v\n%s", store, err, said)
	}
	return binary
}

// count is how many violations are of a kind.
func count(violations []selftest.Violation, kind selftest.Kind) int {
	n := 0
	for _, v := range violations {
		if v.Kind == kind {
			n++
		}
	}
	return n
}

// The crash tests can fail: a relay that acknowledges before it commits is found
// out by the same load and the same ledger.
func TestARelayThatAcknowledgesBeforeItCommitsIsFoundOut(t *testing.T) {
	t.Parallel()
	binary := brokenRelay(t, "hasty")
	t.Run("by the crash tests", func(t *testing.T) {
		t.Parallel()
		s := newCrashSite(t, crashConfig{Binary: binary})
		s.oneAgent()
		s.send(&selftest.Load{Targets: s.targets(), Senders: 24, Rate: 500, Seed: crashSeed(t)})
		const kills = 8
		for range kills {
			s.awaitAcknowledged(300)
			s.relay.Kill()
			s.startRelay()
		}
		s.endLoad()
		violations := s.settle(8 * time.Second)
		lost := count(violations, selftest.Lost)
		t.Logf("%d kills, %d lost: %+v", kills, lost, s.ledger.Counts())
		if lost == 0 {
			s.report(violations)
			t.Error("nothing was lost, so the other crash tests prove nothing")
		}
	})
	t.Run("by its own selftest", func(t *testing.T) {
		t.Parallel()
		cmd := exec.CommandContext(t.Context(), binary, "selftest", "--kill", "--for", "8s", "--rate", "500", "--senders", "24",
			"--patience", "8s", "--data", t.TempDir())
		cmd.Env = selftest.Environment()
		said, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 1 {
			t.Fatalf("it ends with %v:\n%s", err, said)
		}
		for _, want := range []string{"NOT AS PROMISED", "  lost: event ", "are kept in "} {
			if !bytes.Contains(said, []byte(want)) {
				t.Errorf("it does not say %q:\n%s", want, said)
			}
		}
		verdict := bytes.SplitAfter(said, []byte("\n"))
		t.Logf("%s", verdict[min(1, len(verdict)-1)])
	})
}

func TestARelayThatForgetsTheOrderIsFoundOut(t *testing.T) {
	t.Parallel()
	s := newCrashSite(t, crashConfig{Binary: brokenRelay(t, "careless")})
	s.send(&selftest.Load{Targets: s.targets(), Senders: 16, Rate: 500, Seed: crashSeed(t)})
	s.awaitAcknowledged(1000) // many of each key, so that some are at the app together
	s.endLoad()
	s.oneAgent()
	violations := s.settle(settlesWithin)
	wrong := count(violations, selftest.OutOfOrder)
	t.Logf("%d out of order: %+v", wrong, s.ledger.Counts())
	if wrong == 0 || wrong < len(violations) {
		s.report(violations)
		t.Errorf("%d violations, of which %d are of the order", len(violations), wrong)
	}
}
