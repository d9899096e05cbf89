package deploy

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// help is what a verb of a binary says of itself.
func help(t testing.TB, binary string, verb ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), rig.Binary(t, binary), append(verb, "--help")...).Output()
	if err != nil {
		t.Fatalf("%s %s --help: %v", binary, strings.Join(verb, " "), err)
	}
	return string(out)
}

var variable = regexp.MustCompile(`\bPOSTERN_[A-Z][A-Z_]*\b`)

// variables are all that the binaries name in their helps.
func variables(t testing.TB) []string {
	t.Helper()
	var all []string
	for _, of := range [][]string{{"postern-relay", "serve"}, {"postern"}, {"postern", "run"}, {"postern", "agent"}} {
		all = append(all, variable.FindAllString(help(t, of[0], of[1:]...), -1)...)
	}
	if len(all) < 20 {
		t.Fatalf("only %d variables in the helps: %v", len(all), all)
	}
	return all
}

func TestEveryVariableIsOneOfTheBinaries(t *testing.T) {
	t.Parallel()
	known, used := variables(t), 0
	for _, file := range deployFiles(t) {
		for _, name := range variable.FindAllString(read(t, file), -1) {
			used++
			if !slices.Contains(known, name) {
				t.Errorf("%s sets %s, which no binary knows", file, name)
			}
		}
	}
	if used < 100 {
		t.Errorf("only %d variables in all files, is this test looking at them?", used)
	}
}

var (
	link     = regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)
	repoPath = regexp.MustCompile(`(?:^|[\s"'=(:])/?(deploy/[A-Za-z0-9_./@-]+|cmd/postern[a-z-]*)`)
)

func TestEveryPathExists(t *testing.T) {
	t.Parallel()
	exists := func(name string) bool {
		_, err := os.Stat(filepath.Join(root, filepath.FromSlash(name)))
		return err == nil
	}
	links, paths := 0, 0
	for _, file := range deployFiles(t) {
		text := read(t, file)
		for _, m := range repoPath.FindAllStringSubmatch(text, -1) {
			paths++
			if name := strings.TrimRight(m[1], ".,:"); !exists(name) {
				t.Errorf("%s names %s, which is not there", file, name)
			}
		}
		if path.Ext(file) != ".md" {
			continue
		}
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			links++
			if !exists(path.Join(path.Dir(file), m[1])) {
				t.Errorf("%s has a link to %s, which is not there", file, m[1])
			}
		}
	}
	if links < 20 || paths < 20 {
		t.Errorf("found %d links and %d paths, is this test looking at them?", links, paths)
	}
}

// verbs are the relay's commands of two words, as the files write them.
var verbs = regexp.MustCompile(`postern-relay ((?:token|keys|manifest) [a-z]+)`)

func TestEveryCommandOfTheRelayExists(t *testing.T) {
	t.Parallel()
	usage, found := help(t, "postern-relay"), 0
	for _, file := range deployFiles(t) {
		for _, m := range verbs.FindAllStringSubmatch(read(t, file), -1) {
			found++
			if !strings.Contains(usage, m[0]) {
				t.Errorf("%s: %s is no command", file, m[0])
			}
		}
	}
	if found < 8 {
		t.Errorf("found %d commands, is this test looking at them?", found)
	}
}

// grace is the relay's default, from its help.
func grace(t testing.TB) time.Duration {
	t.Helper()
	m := regexp.MustCompile(`--grace \(POSTERN_GRACE\)\s+[^\n]*default (\w+)`).FindStringSubmatch(help(t, "postern-relay", "serve"))
	if m == nil {
		t.Fatal("the relay's help does not say the default of --grace")
	}
	d, err := time.ParseDuration(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Platforms kill what has not ended in time: the relay's limit must be the longer
// one, by the two seconds of docs/operations/relay.md.
func TestPlatformsGiveTheRelayTimeToStop(t *testing.T) {
	t.Parallel()
	least := grace(t) + 2*time.Second
	for _, limit := range []struct {
		file    string
		pattern string // one group: a duration, or seconds
	}{
		{"deploy/systemd/postern-relay.service", `\nTimeoutStopSec=(\w+)\n`},
		{"deploy/compose/compose.yaml", `relay:\n(?:.*\n)*?    stop_grace_period: (\w+)\n`},
		{"deploy/docker/README.md", `--stop-timeout (\d+)`},
		{"deploy/fly/relay.toml", `\nkill_timeout = "(\w+)"\n`},
		{"deploy/render/render.yaml", `name: postern-relay\n(?:.*\n)*?    maxShutdownDelaySeconds: (\d+)\n`},
		{"deploy/railway/railway.json", `"drainingSeconds": (\d+)`},
		{"deploy/dokku/setup.sh", `stop-timeout-seconds (\d+)`},
	} {
		m := regexp.MustCompile(limit.pattern).FindStringSubmatch(read(t, limit.file))
		if m == nil {
			t.Errorf("%s says nothing of how long a stop may take", limit.file)
			continue
		}
		d, err := time.ParseDuration(m[1])
		if err != nil {
			d, err = time.ParseDuration(m[1] + "s")
		}
		if err != nil || d < least {
			t.Errorf("%s gives the relay %q to stop (%v), it needs %v", limit.file, m[1], err, least)
		}
	}
}

// An agent that thinks it has more time than the platform gives is killed in the
// middle of what it does.
func TestAgentsAreToldOfTheGraceThatThereIs(t *testing.T) {
	t.Parallel()
	for _, pair := range []struct{ file, grace, limit string }{
		{"deploy/compose/compose.yaml", `POSTERN_GRACE: (\d+)s`, `shop:\n(?:.*\n)*?    stop_grace_period: (\d+)s`},
		{"deploy/fly/agent.toml", `POSTERN_GRACE = "(\d+)s"`, `kill_timeout = "(\d+)s"`},
		{"deploy/render/render.yaml", `POSTERN_GRACE\n\s+value: (\d+)s`, `name: shop\n(?:.*\n)*?    maxShutdownDelaySeconds: (\d+)`},
		{"deploy/systemd/postern-agent@.service", `POSTERN_GRACE=(\d+)s`, `TimeoutStopSec=(\d+)`},
		{"deploy/helm/sidecar.yaml", `POSTERN_GRACE\n\s+value: (\d+)s`, `terminationGracePeriodSeconds: (\d+)`},
	} {
		text := read(t, pair.file)
		told := regexp.MustCompile(pair.grace).FindStringSubmatch(text)
		limit := regexp.MustCompile(pair.limit).FindStringSubmatch(text)
		if told == nil || limit == nil {
			t.Errorf("%s: no grace (%v) or no limit (%v)", pair.file, told, limit)
			continue
		}
		var has, needs int
		fmt.Sscan(limit[1], &has)
		fmt.Sscan(told[1], &needs)
		if needs > has {
			t.Errorf("%s: the agent is told of %d s, the platform gives %d s", pair.file, needs, has)
		}
	}
}

// images are the names that the READMEs build; others' images are what they are.
var images = regexp.MustCompile(`(?m)(?:^|[\s"'])(?:image|repository)["']?[ \t]*[:=][ \t]*["']?([A-Za-z0-9][\w./-]*)(?::[\w.-]+)?`)

func TestImagesAreThoseOfTheDockerfile(t *testing.T) {
	t.Parallel()
	known := []string{"postern-relay", "postern", "shop", "caddy"}
	found := 0
	for _, file := range deployFiles(t) {
		if ext := path.Ext(file); ext != ".yaml" && ext != ".yml" {
			continue
		}
		for _, m := range images.FindAllStringSubmatch(read(t, file), -1) {
			found++
			if !slices.Contains(known, path.Base(m[1])) {
				t.Errorf("%s: image %s is none that the READMEs build", file, m[1])
			}
		}
	}
	if found < 5 {
		t.Errorf("found %d images, is this test looking at them?", found)
	}
}

// One block of Caddy's is in three files, each with names of its own.
func TestTheCaddyfilesAreTheSame(t *testing.T) {
	t.Parallel()
	block := func(file string) string {
		text := read(t, file)
		_, rest, ok := strings.Cut(text, "\treverse_proxy ")
		if !ok {
			t.Fatalf("%s has no reverse_proxy", file)
		}
		_, rest, _ = strings.Cut(rest, " ")
		return rest
	}
	want := block("deploy/caddy/Caddyfile")
	for _, file := range []string{"deploy/compose/Caddyfile", "deploy/terraform/Caddyfile.tftpl"} {
		if block(file) != want {
			t.Errorf("%s is not as deploy/caddy/Caddyfile", file)
		}
	}
}

// The files of one folder are checked together, so every folder must have a
// README, and the overview must name every folder.
func TestEveryFolderExplainsItself(t *testing.T) {
	t.Parallel()
	overview := read(t, "deploy/README.md")
	folders := func() []string {
		var all []string
		for _, file := range deployFiles(t) {
			if parts := strings.Split(file, "/"); len(parts) > 2 && !slices.Contains(all, parts[1]) {
				all = append(all, parts[1])
			}
		}
		return all
	}
	for _, folder := range folders() {
		if !strings.Contains(overview, "("+folder+")") {
			t.Errorf("deploy/README.md does not name %s", folder)
		}
		if len(read(t, "deploy/"+folder+"/README.md")) < 400 {
			t.Errorf("deploy/%s/README.md says too little", folder)
		}
	}
}
