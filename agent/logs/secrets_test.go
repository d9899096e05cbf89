package logs

import (
	"slices"
	"testing"
)

func TestSecretsAreFoundInTheEnvironment(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		entry string
		want  []string
	}{
		{"API_KEY=abcdef123", []string{"abcdef123"}},
		{"STRIPE_API_KEY_2=abcdef123", []string{"abcdef123"}},
		{"github-token=abcdef123", []string{"abcdef123"}},
		{"SECRET=abcdef123", []string{"abcdef123"}},
		{"PGPASSWORD= 'abcdef' ", []string{"abcdef"}},
		{"DB_PASS=abcdef", []string{"abcdef"}},
		{"SECRET_KEY_BASE=0123456789abcdef", []string{"0123456789abcdef"}},
		{"SENTRY_DSN=https://0123456789abcdef@o1.ingest.example/1", []string{"https://0123456789abcdef@o1.ingest.example/1", "0123456789abcdef"}},
		{"DATABASE_URL=postgres://u:abc%2Fdef@db:5432/x", []string{"abc%2Fdef", "abc/def"}},
		{"DATABASE_URL=postgres://u:abc/def@db:5432/x", []string{"abc/def"}},
		{"REDIS_TLS=rediss://:abcdef@cache", []string{"abcdef"}},
		{"JDBC_DATABASE_URL=jdbc:postgresql://db/x?user=u&password=abcdef", []string{"abcdef"}},
		{"ANY=u:abcdef@tcp(db:3306)/x", []string{"abcdef"}},
		{"ANY=host=db user=u password=abcdef", []string{"abcdef"}},
		{"ANY=Server=db;Uid=u;Pwd=abcdef;", []string{"abcdef"}},
		{`VCAP_SERVICES={"pg":[{"credentials":{"password":"abcdef","uri":"pg://u:ghijkl@h","port":5432}}]}`, []string{"abcdef", "ghijkl"}},

		{"SECRET=abcde", nil}, // it would be hidden everywhere by chance
		{"API_TOKEN=true", nil},
		{"USE_SECRET=production", nil},
		{"MAX_TOKENS=400000", nil},
		{"PRIMARY_KEY_TYPE=bigint", nil},
		{"PWD=/app/abcdef", nil},
		{"HOME=/app/abcdef", nil},
		{"MONKEY=abcdef123", nil},
		{"URL=https://example.com/abcdef", nil},
		{"URL=http://localhost:30000/@abcdef", nil},
		{"DATABASE_URL=postgres://u:postgres@db/x", nil},
		{"novalue", nil},
		{"=C:=x", nil},
	} {
		got := SecretsIn([]string{test.entry})
		slices.Sort(got)
		slices.Sort(test.want)
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", test.entry, got, test.want)
		}
	}
}

func TestSecretIsListedOnce(t *testing.T) {
	t.Parallel()
	got := SecretsIn([]string{"A_KEY=abcdef123", "B_KEY=abcdef123"})
	if len(got) != 1 {
		t.Errorf("%q", got)
	}
}

func TestManySecretsAreStillMasked(t *testing.T) {
	t.Parallel()
	secrets := someSecrets(maxSecrets)
	for _, n := range []int{0, len(secrets) / 2, len(secrets) - 1} {
		if got := masked("x "+secrets[n]+" y", secrets...); got != "x [hidden] y" {
			t.Errorf("secret %d of %d: %s", n, len(secrets), got)
		}
	}
}

func FuzzSecretsIn(f *testing.F) {
	f.Add("DATABASE_URL", "postgres://u:p%2@h/x?password=a")
	f.Add("A_DSN", "u:p@tcp(h)/d;Pwd=x")
	f.Add("X", `{"a":[{"token":"abcdef"}]}`)
	f.Fuzz(func(t *testing.T, name, value string) {
		for _, secret := range SecretsIn([]string{name + "=" + value}) {
			if len(secret) < minSecret {
				t.Errorf("%q is too short to look for", secret)
			}
		}
	})
}
