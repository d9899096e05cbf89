package egress

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var proxyAt = netip.MustParseAddrPort("127.0.0.1:3128")

// valueIn returns the one value of a variable; two entries are a mistake.
func valueIn(t *testing.T, env []string, name string) string {
	t.Helper()
	var values []string
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			values = append(values, v)
		}
	}
	if len(values) > 1 {
		t.Errorf("%s is there %d times", name, len(values))
	}
	return strings.Join(values, "|")
}

func TestTheEnvironmentOfAnApp(t *testing.T) {
	before := []string{"PATH=/bin", "NO_PROXY=corp.test, localhost", "no_proxy=other.test", "JAVA_TOOL_OPTIONS=-Xmx300m", "NODE_OPTIONS=--max-old-space-size=400",
		"DATABASE_URL=postgres://u:p%40ss@db.partner.test:5432/app?sslmode=require", "CACHE_URL=rediss://:secret@cache.test:6380",
		"MONGO_URI=mongodb://u:p@m1.test:27017,m2.test:27017/db", "API_URL=https://api.test/"}
	kept := slices.Clone(before)
	dir := filepath.Join(t.TempDir(), "a folder")
	env, notes := Environment(before, EnvOptions{Proxy: proxyAt, ShimDir: dir})
	if !slices.Equal(before, kept) {
		t.Error("the caller's environment was changed")
	}
	for name, want := range map[string]string{
		"HTTP_PROXY": "http://127.0.0.1:3128", "http_proxy": "http://127.0.0.1:3128", "HTTPS_PROXY": "http://127.0.0.1:3128",
		"https_proxy": "http://127.0.0.1:3128", "POSTERN_PROXY": "http://127.0.0.1:3128", "NODE_USE_ENV_PROXY": "1", "PATH": "/bin", "ALL_PROXY": "",
		"NO_PROXY": "corp.test,localhost,other.test,127.0.0.1,::1,169.254.169.254,.internal,cache.test,db.partner.test,m1.test,m2.test",
		"no_proxy": "corp.test,localhost,other.test,127.0.0.1,::1,169.254.169.254,.internal,cache.test,db.partner.test,m1.test,m2.test",
		"JAVA_TOOL_OPTIONS": "-Xmx300m -Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort=3128 -Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort=3128 " +
			"-Dhttp.nonProxyHosts=127.*|corp.test|localhost|other.test|127.0.0.1|[::1]|169.254.169.254|*.internal|cache.test|db.partner.test|m1.test|m2.test",
	} {
		if got := valueIn(t, env, name); got != want {
			t.Errorf("%s is %q, expected %q", name, got, want)
		}
	}
	options := valueIn(t, env, "NODE_OPTIONS")
	path, ok := strings.CutPrefix(options, `--max-old-space-size=400 --require "`+dir+"/")
	if !ok {
		t.Fatalf("NODE_OPTIONS is %q", options)
	}
	if b, err := os.ReadFile(filepath.Join(dir, strings.Trim(path, `"`))); err != nil || string(b) != string(shim) {
		t.Errorf("the shim: %v", err)
	}
	if list, _ := os.ReadDir(dir); len(list) != 1 {
		t.Errorf("%d files are left in the folder", len(list))
	}
	if len(notes) != 0 {
		t.Errorf("notes %q", notes)
	}
	again, _ := Environment(env, EnvOptions{Proxy: netip.MustParseAddrPort("127.0.0.1:4000")})
	if got := valueIn(t, again, "HTTPS_PROXY"); got != "http://127.0.0.1:4000" {
		t.Errorf("below another agent HTTPS_PROXY is %q", got)
	}
}

func TestOtherProxiesAreLeftAlone(t *testing.T) {
	env, notes := Environment([]string{"https_proxy=http://fixie:s3cret@velodrome.test:80", "JAVA_TOOL_OPTIONS=-Dhttp.proxyHost=other"}, EnvOptions{Proxy: proxyAt})
	if got := valueIn(t, env, "https_proxy"); got != "http://fixie:s3cret@velodrome.test:80" {
		t.Errorf("https_proxy is %q", got)
	}
	if got := valueIn(t, env, "HTTPS_PROXY"); got != "" {
		t.Errorf("HTTPS_PROXY is %q", got)
	}
	if got := valueIn(t, env, "HTTP_PROXY"); got != "http://127.0.0.1:3128" {
		t.Errorf("HTTP_PROXY is %q", got)
	}
	if got := valueIn(t, env, "JAVA_TOOL_OPTIONS"); got != "-Dhttp.proxyHost=other" {
		t.Errorf("JAVA_TOOL_OPTIONS is %q", got)
	}
	text := strings.Join(notes, "\n")
	if !strings.Contains(text, "velodrome.test") || strings.Contains(text, "s3cret") || strings.Contains(text, "fixie") {
		t.Errorf("notes %q", notes)
	}

	env, notes = Environment([]string{"ALL_PROXY=socks5://u:s3cret@other.test:1080", "NO_PROXY=a.test"}, EnvOptions{Proxy: proxyAt, ShimDir: t.TempDir()})
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NODE_OPTIONS", "JAVA_TOOL_OPTIONS"} {
		if got := valueIn(t, env, name); got != "" {
			t.Errorf("beside ALL_PROXY: %s is %q", name, got)
		}
	}
	if got := valueIn(t, env, "NO_PROXY"); got != "a.test" {
		t.Errorf("NO_PROXY is %q", got)
	}
	if text := strings.Join(notes, "\n"); !strings.Contains(text, "other.test") || strings.Contains(text, "s3cret") {
		t.Errorf("notes %q", notes)
	}
}

func TestAShimThatCannotBeWrittenIsNotLoaded(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	env, notes := Environment(nil, EnvOptions{Proxy: proxyAt, ShimDir: filepath.Join(file, "below")})
	if got := valueIn(t, env, "NODE_OPTIONS"); got != "" || len(notes) != 1 {
		t.Errorf("NODE_OPTIONS is %q, notes %q", got, notes)
	}
}

func TestRewrite(t *testing.T) {
	forwards := []Forward{{Local: "127.0.0.1:15432", Target: "db.partner.test:5432"}, {Local: "127.0.0.1:16379", Target: "cache.test:6379"}}
	for _, test := range []struct{ value, want, note string }{
		{"postgres://u:p%40s@db.partner.test:5432/app?x=1#f", "postgres://u:p%40s@127.0.0.1:15432/app?x=1#f", ""},
		{"postgresql://u:p@DB.partner.test/app", "postgresql://u:p@127.0.0.1:15432/app", ""},
		{"postgres://u:a@b@db.partner.test/app?sslmode=verify-full", "postgres://u:a@b@127.0.0.1:15432/app?sslmode=verify-full", "certificate"},
		{"jdbc:postgresql://db.partner.test:5432/app?user=u&password=s3cret", "jdbc:postgresql://127.0.0.1:15432/app?user=u&password=s3cret", ""},
		{"rediss://:s3cret@cache.test", "rediss://:s3cret@127.0.0.1:16379", "cache.test"},
		{"postgres://u:s3cret@other.test/app", "postgres://u:s3cret@other.test/app", "--forward PORT=other.test:5432"},
		{"mongodb://u:s3cret@a.test,b.test/app", "mongodb://u:s3cret@a.test,b.test/app", "one host"},
		{"s3cret", "s3cret", "expected a URL"},
		{"", "", "not set"},
	} {
		env, notes := Environment([]string{"DATABASE_URL=" + test.value}, EnvOptions{Rewrite: []string{"DATABASE_URL"}, Forwards: forwards})
		text := strings.Join(notes, "\n")
		if got := valueIn(t, env, "DATABASE_URL"); got != test.want {
			t.Errorf("%q became %q, expected %q", test.value, got, test.want)
		}
		if (test.note == "") != (text == "") || !strings.Contains(text, test.note) || strings.Contains(text, "s3cret") {
			t.Errorf("%q: notes %q", test.value, notes)
		}
	}
	more := ForwardsFor([]string{"A_URL=postgres://u:p@db.partner.test/x", "B_URL=mysql://u:p@new.test/x", "C_URL=mysql://new.test:3306/y"}, []string{"A_URL", "B_URL", "C_URL", "D_URL"}, forwards)
	if len(more) != 1 || more[0] != (Forward{Local: "127.0.0.1:0", Target: "new.test:3306"}) {
		t.Errorf("%+v", more)
	}
}
