package agent

import (
	"strings"
	"testing"
)

func TestFlyTomlIsReadAsFlyctlWritesIt(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		file string
		port int
		env  string
	}{
		{"", 0, ""},
		{"[http_service]\ninternal_port = 3000\n", 3000, ""},
		{"[env]\n  PORT = \"4000\"\n[[services]]\n  internal_port=4000\n[[services]]\n  internal_port=9999", 4000, "4000"},
		{"[env]\n'PORT' = '5000' # five\n", 0, "5000"},
		{"[build]\nPORT = \"1\"\n", 0, ""},
		{"# internal_port = 1\ninternal_port = many\n[env]\nPORT='0'", 0, ""},
	} {
		port, env := flyToml(strings.NewReader(test.file))
		if port != test.port || env != test.env {
			t.Errorf("%q: %d %q, want %d %q", test.file, port, env, test.port, test.env)
		}
	}
}
