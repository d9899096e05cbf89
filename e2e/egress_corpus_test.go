package e2e

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/posternhq/postern/e2e/rig"
)

// corpusPath is the corpus; E2E_EGRESS_CORPUS names another one.
const corpusPath = "../protocol/policy/testdata/egress-corpus.jsonl"

// insideVariable says that this process is in a network namespace of its own, where
// every address is local.
const insideVariable = "E2E_EGRESS_INSIDE"

// The corpus is about public addresses, so it is run where the whole Internet is this
// machine: in a network namespace in which every address leads to loopback. A call
// that should not have been let through is therefore seen to arrive, wherever it went.
func TestTheEgressCorpus(t *testing.T) {
	if os.Getenv(insideVariable) == "1" {
		runCorpus(t)
		return
	}
	t.Parallel() // most of its time is a hello that stalls
	name := newLocalInternet(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "ip", "netns", "exec", name, self,
		"-test.run=^TestTheEgressCorpus$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(append(os.Environ(), insideVariable+"=1"), rig.Again(t)...)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Errorf("the corpus: %v", err)
	}
}

// newLocalInternet makes the namespace, or skips the test with the reason.
func newLocalInternet(t testing.TB) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("network namespaces need ip, of the package iproute2")
	}
	sweepNamespaces()
	name := fmt.Sprintf("%s%d-world", namespacePrefix, os.Getpid())
	if err := ip("netns add " + name); err != nil {
		t.Skipf("no network namespaces here: %v", err)
	}
	t.Cleanup(func() { ip("netns del " + name) })
	for _, step := range []string{
		"link set lo up",
		"route add local 0.0.0.0/0 dev lo",
		"-6 route add local ::/0 dev lo",
	} {
		if err := ip("-n " + name + " " + step); err != nil {
			t.Skipf("no routes to everywhere here: %v", err)
		}
	}
	return name
}

// corpusLine is one line of the corpus.
type corpusLine struct {
	Number int             `json:"-"`
	Kind   string          `json:"kind"`
	Input  json.RawMessage `json:"input"`
	Expect string          `json:"expect"`
	Why    string          `json:"why"`
}

// fixture is the first line: what all others assume.
type fixture struct {
	Resolver map[string][]string   `json:"resolver"`
	Own      []string              `json:"relay_own_addresses"`
	Roles    map[string]corpusRole `json:"roles"`
}

type corpusRole struct {
	Mode  string            `json:"mode,omitempty"`
	SNI   string            `json:"sni,omitempty"`
	Allow []json.RawMessage `json:"allow,omitempty"`
	Deny  []string          `json:"deny,omitempty"`
}

// laterKinds are of what this version does not do.
var laterKinds = map[string]string{
	"mitm_inner": "interception", "cred": "credentials", "dlp": "looking into bodies",
}

// errLater is why a line of another kind is not run; the text says what is missing.
type errLater string

func (e errLater) Error() string { return string(e) }

func readCorpus(t testing.TB) (fixture, []corpusLine) {
	t.Helper()
	f, err := os.Open(cmp.Or(os.Getenv("E2E_EGRESS_CORPUS"), corpusPath))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var first fixture
	var lines []corpusLine
	in := bufio.NewScanner(f)
	in.Buffer(nil, 1<<20)
	for n := 1; in.Scan(); n++ {
		l := corpusLine{Number: n}
		err := json.Unmarshal(in.Bytes(), &l)
		if err == nil && l.Kind == "fixture" {
			err = json.Unmarshal(l.Input, &first)
		} else {
			lines = append(lines, l)
		}
		if err != nil {
			t.Fatalf("line %d: %v", n, err)
		}
	}
	if err := in.Err(); err != nil || len(first.Roles) == 0 || len(lines) == 0 {
		t.Fatalf("%d lines, %d roles, %v", len(lines), len(first.Roles), err)
	}
	return first, lines
}

// manifest has an app for each role, one more where another name in the hello is let
// through, and one of whose calls nothing is said.
func (f fixture) manifest(t testing.TB, holes []string) string {
	t.Helper()
	apps := map[string]any{"nobody": map[string]any{"team": "nobody"}}
	for name, role := range f.Roles {
		apps[name] = map[string]any{"egress": role}
		role.SNI = "allowlisted"
		apps[name+"-allowlisted"] = map[string]any{"egress": role}
	}
	ranges := []any{}
	for _, hole := range holes {
		addr, port, ok := strings.Cut(hole, ":")
		var n int
		if _, err := fmt.Sscan(port, &n); err != nil || !ok {
			t.Fatalf("hole %q", hole)
		}
		ranges = append(ranges, map[string]any{"range": addr + "/32", "ports": []int{n}, "reason": "the corpus"})
	}
	text, err := json.MarshalIndent(map[string]any{
		"version": 1, "apps": apps, "egress": map[string]any{"allow_ranges": ranges},
	}, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(text) // which is YAML too
}

// corpusRun is everything that lines are run against.
type corpusRun struct {
	t         *testing.T
	fixture   fixture
	dns       *rig.DNS
	world     *world
	relay     *rig.Relay
	operator  string
	agents    map[string]egressAgent // by app
	pseudonym string                 // as the relay calls itself in Via
}

// outcome is what became of one line's call.
type outcome struct {
	status int // 0: none came
	header http.Header
	socks  *socksReply
	passed bool  // bytes came back from the destination
	ended  bool  // the tunnel was closed without a byte
	err    error // of the client, for the message

	arrivals []*reached
	asked    []string // DNS questions
	close    func()   // of the client's connection, which assertions may still need

	// assert checks an assertion behind a verdict; nil error: it holds. Nil: there is
	// none that this kind knows.
	assert func(assertion string) error
}

var errNoAssertion = errors.New("this harness does not know the assertion")

// probes run the kinds.
var probes = map[string]func(*corpusRun, corpusLine) (outcome, error){
	"addr": (*corpusRun).probeHost, "host": (*corpusRun).probeHost, "dns": (*corpusRun).probeDNS,
	"connect": (*corpusRun).probeConnect, "sni": (*corpusRun).probeSNI, "socks5": (*corpusRun).probeSOCKS,
	"http": (*corpusRun).probeHTTP, "smuggle": (*corpusRun).probeSmuggle, "header": (*corpusRun).probeHeader,
	"redirect": (*corpusRun).probeRedirect, "env": (*corpusRun).probeEnv, "policy_file": (*corpusRun).probePolicyFile,
}

// runCorpus is the test inside the namespace.
func runCorpus(t *testing.T) {
	first, lines := readCorpus(t)
	c := newCorpusRun(t, first, lines)
	type tally struct{ passed, failed, later int }
	table := map[string]*tally{}
	var kinds []string
	for _, l := range lines {
		if table[l.Kind] == nil {
			table[l.Kind] = &tally{}
			kinds = append(kinds, l.Kind)
		}
		err := c.run(l)
		var later errLater
		switch {
		case errors.As(err, &later):
			table[l.Kind].later++
			if laterKinds[l.Kind] == "" {
				t.Logf("line %d, %s: later, with %s", l.Number, l.Kind, later)
			}
		case err != nil:
			table[l.Kind].failed++
			t.Errorf("line %d, %s %s, want %s (%s): %v", l.Number, l.Kind, l.Input, l.Expect, l.Why, err)
		default:
			table[l.Kind].passed++
		}
	}
	var sum tally
	text := fmt.Sprintf("%-12s %6s %6s %6s\n", "kind", "passed", "failed", "later")
	for _, kind := range kinds {
		row := table[kind]
		text += fmt.Sprintf("%-12s %6d %6d %6d\n", kind, row.passed, row.failed, row.later)
		sum = tally{sum.passed + row.passed, sum.failed + row.failed, sum.later + row.later}
	}
	t.Logf("the corpus:\n%s%-12s %6d %6d %6d", text, "all", sum.passed, sum.failed, sum.later)
}

func newCorpusRun(t *testing.T, f fixture, lines []corpusLine) *corpusRun {
	t.Helper()
	c := &corpusRun{t: t, fixture: f, dns: rig.ServeDNS(t), world: newWorld(t), agents: map[string]egressAgent{}}
	for name, addrs := range f.Resolver {
		c.dns.Point(name, addrs...)
	}
	var holes []string
	for _, l := range lines {
		var in struct {
			Holes []string `json:"allow_ranges"`
		}
		json.Unmarshal(l.Input, &in)
		holes = append(holes, in.Holes...)
	}
	slices.Sort(holes)
	c.relay = rig.StartRelay(t, rig.RelayConfig{
		Manifest: f.manifest(t, slices.Compact(holes)),
		Env:      []string{"POSTERN_RESOLVER=" + c.dns.URL, "POSTERN_EGRESS_ADDRESSES=" + strings.Join(f.Own, ",")},
	})
	c.operator = c.relay.Operator()
	apps := []string{"nobody"}
	for name := range f.Roles {
		apps = append(apps, name, name+"-allowlisted")
	}
	for _, app := range apps {
		c.agents[app] = startEgressAgent(t, c.relay, rig.AgentConfig{App: app, Tunnels: 1})
	}
	c.relay.AwaitPolicy(t, c.operator, len(apps), 1)
	c.pseudonym = c.ownName()
	return c
}

// run is nil when the line's expectation is met.
func (c *corpusRun) run(l corpusLine) error {
	if what := laterKinds[l.Kind]; what != "" {
		return errLater(what)
	}
	probe := probes[l.Kind]
	if probe == nil {
		return fmt.Errorf("no kind %s", l.Kind)
	}
	c.settle()
	asked, arrived := c.dns.Mark(), c.world.mark()
	o, err := probe(c, l)
	if err != nil {
		return err
	}
	if o.close != nil {
		defer o.close()
	}
	o.asked, o.arrivals = c.dns.Asked(asked), c.world.since(arrived)
	var wrong []error
	for alternative := range strings.SplitSeq(l.Expect, "|") {
		verdict, assertion, _ := strings.Cut(alternative, ":")
		err := o.is(verdict, assertion)
		if err == nil {
			return nil
		}
		wrong = append(wrong, err)
	}
	return fmt.Errorf("%w; saw %v", errors.Join(wrong...), o)
}

// settle waits until nothing of the probes before is under way: it would be taken for
// this one's.
func (c *corpusRun) settle() {
	c.t.Helper()
	rig.Eventually(c.t, probeWithin, "the end of the call before", func() error {
		status, err := c.relay.EgressStatus(c.operator)
		if err == nil && status.InFlight > 0 {
			err = fmt.Errorf("%d calls are in flight", status.InFlight)
		}
		return err
	})
}

// agentOf is the agent whose app has the role.
func (c *corpusRun) agentOf(role string) (string, error) {
	a, ok := c.agents[role]
	if !ok {
		return "", fmt.Errorf("no role %q", role)
	}
	return a.Proxy, nil
}
