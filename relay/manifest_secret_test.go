package relay

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"strings"
	"testing"
)

// secretFiles is a world with these files.
func secretFiles(path string) ([]byte, error) {
	switch path {
	case "/run/secrets/key":
		return []byte("from a file\n"), nil
	case "/run/secrets/windows":
		return []byte("from a file\r\n"), nil
	case "/run/secrets/inner":
		return []byte("two\nlines\n"), nil
	case "/run/secrets/empty":
		return []byte("\n"), nil
	case "/run/secrets/large":
		return make([]byte, maxSecretSize+1), nil
	case "/run/secrets/forbidden":
		return nil, fmt.Errorf("open: %w", fs.ErrPermission)
	case "/run/secrets/odd":
		return []byte("hunter2"), errors.New("read hunter2: input/output error")
	}
	return nil, fs.ErrNotExist
}

func secretOptions() ManifestOptions {
	opts := testOptions()
	opts.ReadFile = secretFiles
	return opts
}

func secretManifest(secrets string) string {
	return "version: 1\napps:\n  a:\n    endpoints:\n      e: {provider: hmac, secrets: " + secrets + ", hmac: {header: X-Signature}}\n"
}

func TestSecretsAreResolved(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, secrets string
		want          []Secret
	}{
		{"from a variable", "[{env: STRIPE_WHSEC}]", []Secret{"whsec_test"}},
		{"two during a rotation", "[{env: STRIPE_WHSEC}, {env: STRIPE_OLD}]", []Secret{"whsec_test", "whsec_old"}},
		{"from a file, without its last newline", "[{file: /run/secrets/key}]", []Secret{"from a file"}},
		{"from a file with Windows line ends", "[{file: /run/secrets/windows}]", []Secret{"from a file"}},
		{"inner newlines stay", "[{file: /run/secrets/inner}]", []Secret{"two\nlines"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := mustParse(t, []byte(secretManifest(tt.secrets)), secretOptions())
			if got := m.Apps["a"].Endpoints["e"].Secrets; !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %d secrets that differ", len(got))
			}
		})
	}
}

func TestWhatIsWrongWithASecret(t *testing.T) {
	t.Parallel()
	const at = "apps.a.endpoints.e.secrets"
	tests := []struct{ name, secrets, want string }{
		{"a variable that is not set", "[{env: NOT_SET}]", "m.yaml:5:43: " + at + "[0].env: the environment variable NOT_SET is not set"},
		{"a variable that is empty", "[{env: EMPTY}]", "m.yaml:5:43: " + at + `[0].env: expected a secret in env "EMPTY", found it empty`},
		{"a file that is missing", "[{file: /run/secrets/none}]", "m.yaml:5:44: " + at + `[0].file: the file "/run/secrets/none" does not exist`},
		{"a file that is empty", "[{file: /run/secrets/empty}]", "m.yaml:5:44: " + at + `[0].file: expected a secret in file "/run/secrets/empty", found it empty`},
		{"a file that is too large", "[{file: /run/secrets/large}]", "m.yaml:5:44: " + at + `[0].file: the file "/run/secrets/large" is larger than 64 KiB`},
		{"a file that may not be read", "[{file: /run/secrets/forbidden}]", "m.yaml:5:44: " + at + `[0].file: the file "/run/secrets/forbidden" may not be read by the relay`},
		{"a file that fails oddly", "[{file: /run/secrets/odd}]", "m.yaml:5:44: " + at + `[0].file: the file "/run/secrets/odd" cannot be read`},
		{"a relative file", "[{file: key}]", "m.yaml:5:44: " + at + "[0].file: expected the path of a file, beginning with /, found a text"},
		{"a sealed secret", "[{sealed: abc}]", "m.yaml:5:38: " + at + "[0]: secrets that are sealed are not supported by this version; expected env or file"},
		{"a vault secret", "[{vault: {path: kv/x}}]", "m.yaml:5:38: " + at + "[0]: secrets that are vault are not supported by this version; expected env or file"},
		{"two sources", "[{env: STRIPE_WHSEC, file: /run/secrets/key}]", "m.yaml:5:37: " + at + "[0]: expected exactly one of env and file, found env and file"},
		{"no source", "[{}]", "m.yaml:5:37: " + at + "[0]: expected exactly one of env and file, found none"},
		{"no list", "{env: STRIPE_WHSEC}", "m.yaml:5:36: " + at + ": expected a list, found a mapping"},
		{"too many", "[" + strings.Repeat("{env: STRIPE_WHSEC}, ", 11) + "]", "m.yaml:5:36: " + at + ": expected at most 10 items, found 11"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := parseErrors(t, secretManifest(tt.secrets), secretOptions()); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestAValidationWithoutSecretsAsksForNone(t *testing.T) {
	t.Parallel()
	opts := ManifestOptions{
		SkipSecrets: true,
		Env:         func(string) (string, bool) { t.Error("Env was asked"); return "", false },
		ReadFile:    func(string) ([]byte, error) { t.Error("ReadFile was asked"); return nil, nil },
	}
	m := mustParse(t, []byte(secretManifest("[{env: NOT_SET}, {file: /none}]")), opts)
	if got := m.Apps["a"].Endpoints["e"].Secrets; got != nil {
		t.Errorf("there are %d secrets, want none", len(got))
	}
	got := parseErrors(t, secretManifest("[{env: not a name}]"), opts)
	if want := "m.yaml:5:43: apps.a.endpoints.e.secrets[0].env: expected the name of an environment variable, found a text"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestAProviderWithItsOwnCertificateNeedsNoSecret(t *testing.T) {
	t.Parallel()
	mustParse(t, []byte("version: 1\napps:\n  a: {endpoints: {e: {provider: sns}}}\n"), testOptions())
}

func TestVariablesThatNothingUsesNeedNotBeSet(t *testing.T) {
	t.Parallel()
	mustParse(t, []byte("version: 1\napps: {}\nsecrets: {partner: {env: NOT_SET}}\n"), testOptions())
}

// Whoever writes a secret where its source belongs must not find it in the log.
func TestNoErrorShowsWhatStandsWhereASecretBelongs(t *testing.T) {
	t.Parallel()
	const secret = "whsec-0xC0FFEE!"
	inPlace := func(s string) string { return strings.ReplaceAll(s, "SECRET", secret) }
	tests := []struct{ name, data string }{
		{"a bare text", secretManifest("[SECRET]")},
		{"a quoted text", secretManifest(`["SECRET"]`)},
		{"not in a list", secretManifest("SECRET")},
		{"as a variable's name", secretManifest("[{env: SECRET}]")},
		{"as a file's path", secretManifest("[{file: SECRET}]")},
		{"under a made-up key", secretManifest("[{value: SECRET}]")},
		{"as a key", secretManifest("[{SECRET}]")},
		{"as a key twice", secretManifest("[{SECRET: 1, SECRET: 1}]")},
		{"as a list in a list", secretManifest("[[SECRET]]")},
		{"sealed", secretManifest("[{sealed: SECRET}]")},
		{"as a tag", secretManifest("[{env: !SECRET x}]")},
		{"as an alias", secretManifest("[{env: *SECRET }]")},
		{"before a syntax error", secretManifest("[{env: SECRET: x}")},
		{"in quotes that are not closed", secretManifest(`[{env: "SECRET}]`)},
		{"as a password", "version: 1\napps: {a: {ingress: {auth: {basic: {user: u, password: SECRET}}}}}\n"},
		{"as the whole secrets section", "version: 1\napps: {}\nsecrets: SECRET\n"},
		{"as a shared secret", "version: 1\napps: {}\nsecrets: {partner: SECRET}\n"},
		{"as a shared secret's header", "version: 1\napps: {}\nsecrets: {partner: {env: A, header: \"X: SECRET\"}}\n"},
		{"as a shared secret's format", "version: 1\napps: {}\nsecrets: {partner: {env: A, format: \"Bearer SECRET\"}}\n"},
		{"in a target", "version: 1\napps: {a: {egress: {deny: [\"https://u:SECRET@x.example\"]}}}\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := parseErrors(t, inPlace(tt.data), secretOptions())
			if strings.Contains(got, "C0FFEE") {
				t.Errorf("the error shows the secret: %s", got)
			}
		})
	}
	// A file's content in the error of whatever read it.
	if got := parseErrors(t, secretManifest("[{file: /run/secrets/odd}]"), secretOptions()); strings.Contains(got, "hunter2") {
		t.Errorf("the error shows the secret: %s", got)
	}
}

func TestAManifestPrintsNoSecret(t *testing.T) {
	t.Parallel()
	m := mustParse(t, readTestdata(t, "full.yaml"), testOptions())
	app := m.Apps["shop"]
	encoded, err := json.Marshal(app)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{
		fmt.Sprintf("%v %+v %#v", app, app, app),
		fmt.Sprintf("%v %+v %#v", *app.Ingress.Basic, *app.Ingress.Basic, *app.Ingress.Basic),
		string(encoded),
	} {
		if strings.Contains(s, "whsec_test") || strings.Contains(s, "correct horse") {
			t.Errorf("a secret is printed: %s", s)
		}
	}
}
