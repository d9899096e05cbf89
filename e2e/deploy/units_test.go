package deploy

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// units are the services, with what systemd must at most say of what they may do:
// 0 is nothing, 10 is everything.
var units = []struct {
	file     string
	binary   string
	exposure float64
}{
	{"postern-relay.service", "postern-relay", 2.0},
	{"postern-agent@.service", "postern", 1.5},
}

// copyUnit puts a unit into dir, with the binary where it really is.
func copyUnit(t *testing.T, dir, file, binary string) string {
	t.Helper()
	name := filepath.Join(dir, strings.Replace(file, "@.", "@shop.", 1))
	write(t, name, swap(t, read(t, "deploy/systemd/"+file), "/usr/local/bin/"+binary, rig.Binary(t, binary)))
	return name
}

func TestSystemdLikesTheUnits(t *testing.T) {
	t.Parallel()
	analyze := program(t, "systemd-analyze", "systemd")
	for _, unit := range units {
		dir := t.TempDir()
		path := copyUnit(t, dir, unit.file, unit.binary)
		out, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", "--recursive-errors=no", path).CombinedOutput()
		// What the machine's own units do wrong is not ours.
		if said := about(out, "postern"); err != nil || said != "" {
			t.Errorf("systemd-analyze verify %s: %v\n%s", unit.file, err, said)
		}
		out, err = exec.CommandContext(t.Context(), analyze, "security", "--offline=yes", "--no-pager", path).CombinedOutput()
		m := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`).FindSubmatch(out)
		if err != nil || m == nil {
			t.Errorf("systemd-analyze security %s: %v\n%s", unit.file, err, out)
			continue
		}
		level, _ := strconv.ParseFloat(string(m[1]), 64)
		t.Logf("%s: exposure %v", unit.file, level)
		if level > unit.exposure {
			t.Errorf("%s: exposure %v, want at most %v\n%s", unit.file, level, unit.exposure, out)
		}
	}
}

// about are the lines of out that contain word.
func about(out []byte, word string) string {
	var lines []string
	for line := range bytes.Lines(out) {
		if bytes.Contains(line, []byte(word)) {
			lines = append(lines, string(line))
		}
	}
	return strings.Join(lines, "")
}

func TestTheDropInForTLS(t *testing.T) {
	t.Parallel()
	analyze := program(t, "systemd-analyze", "systemd")
	dir := t.TempDir()
	path := copyUnit(t, dir, "postern-relay.service", "postern-relay")
	// Drop-ins are found beside the units of the search path only.
	unit := read(t, "deploy/systemd/postern-relay-tls.conf")
	both := swap(t, read(t, "deploy/systemd/postern-relay.service"), "/usr/local/bin/postern-relay", rig.Binary(t, "postern-relay"))
	write(t, path, both+"\n"+unit)
	out, err := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", "--recursive-errors=no", path).CombinedOutput()
	if said := about(out, "postern"); err != nil || said != "" {
		t.Errorf("with the drop-in: %v\n%s", err, said)
	}
}

// settings are the variables of a file for EnvironmentFile.
func settings(t testing.TB, text string) []string {
	t.Helper()
	var env []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			env = append(env, line)
		}
	}
	if len(env) == 0 {
		t.Fatal("no settings")
	}
	return env
}

// The relay starts with the settings of the sample, but for the port and the
// folders, and with the manifest that the installer makes.
func TestARelayStartsWithTheSampleSettings(t *testing.T) {
	t.Parallel()
	var env []string
	for _, line := range settings(t, read(t, "deploy/systemd/relay.env")) {
		if !strings.HasPrefix(line, "POSTERN_LISTEN=") && !strings.HasPrefix(line, "POSTERN_MANIFEST=") {
			env = append(env, line)
		}
	}
	relay := rig.StartRelay(t, rig.RelayConfig{Manifest: "version: 1\napps: {}\n", Env: env})
	relay.Log.Wait(t, 5*time.Second, 0, 1, "relay ready", "url=https://relay.example.com", "apps=*.apps.example.com")
}
