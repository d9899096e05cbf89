package e2e

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/posternhq/postern/e2e/rig"
)

// clientSite is where real clients call: one address over TLS and one in clear, which
// only the relay's name server knows.
type clientSite struct {
	*site
	secure, clear string // addresses to call
	env           []string
}

const (
	secureName = "api.shop.test"
	clearName  = "plain.shop.test"
)

func newClientSite(t testing.TB) *clientSite {
	t.Helper()
	ca := newAuthority(t)
	hello := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			return
		}
		fmt.Fprintf(w, "hello %s %d", strings.Split(r.Host, ":")[0], n)
	})
	secure, clear := portOf(ca.serveTLS(t, hello, secureName)), portOf(rig.Serve(t, hello))
	manifest := loopbackManifest([]string{secure, clear}, map[string]string{
		"shop": fmt.Sprintf(`{allow: ["https://%s:%s", "http://%s:%s"]}`, secureName, secure, clearName, clear),
	})
	s := &clientSite{site: newSite(t, manifest, secureName, clearName)}
	s.secure, s.clear = "https://"+secureName+":"+secure+"/", "http://"+clearName+":"+clear+"/"
	s.env = []string{
		"E2E_HTTPS=" + s.secure, "E2E_HTTP=" + s.clear, "E2E_CA=" + ca.File,
		// How each of them is told whom to trust.
		"NODE_EXTRA_CA_CERTS=" + ca.File, "SSL_CERT_FILE=" + ca.File, "REQUESTS_CA_BUNDLE=" + ca.File,
		"CURL_CA_BUNDLE=" + ca.File, "GIT_SSL_CAINFO=" + ca.File,
	}
	return s
}

// run has postern run a client to its end and returns the lines that it printed.
func (s *clientSite) run(t *testing.T, env []string, args ...string) []string {
	t.Helper()
	agent := s.StartRun(rig.Command{Args: args}, rig.AgentConfig{
		NoWait: true, NoPort: true, Tunnels: 1, Env: slices.Concat(s.env, env),
	})
	if code := agent.ExitCode(rig.StartsWithin * 3); code != 0 {
		t.Errorf("%s ends with %d", filepath.Base(args[0]), code)
	}
	var lines []string
	for line := range strings.Lines(agent.Log.String()) {
		if !logLine.MatchString(line) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// logLine is a line of the agent's own.
var logLine = regexp.MustCompile(`\btime=\S+ level=`)

// wantCalls fails the test unless each of names has called with success.
func wantCalls(t *testing.T, lines []string, names ...string) {
	t.Helper()
	for _, name := range names {
		found := slices.ContainsFunc(lines, func(line string) bool {
			return strings.HasPrefix(line, name+" 200 hello ")
		})
		if !found {
			t.Errorf("%s has not called:\n%s", name, strings.Join(lines, "\n"))
		}
	}
}

// lookClient skips the test where a client is not installed.
func lookClient(t *testing.T, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("there is no %s, of the package %s", name, pkg)
	}
	return path
}

// Clients that know nothing of a proxy and cannot resolve the names that they call
// reach them all the same, by the variables that postern run gives them.
func TestRealClientsCallThroughTheRelay(t *testing.T) {
	t.Parallel()
	s := newClientSite(t)
	program := func(name string) string {
		path, err := filepath.Abs(filepath.Join("clients", name))
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	nodeCalls := []string{"fetch-https", "fetch-http", "fetch-post", "https.get", "http.get", "https.agent"}
	t.Run("curl", func(t *testing.T) {
		t.Parallel()
		curl := lookClient(t, "curl", "curl")
		format := "\ncurl %{http_code}\n"
		wantCalls(t, joined(s.run(t, nil, curl, "-sS", "--max-time", "20", "-w", format, s.secure)), "curl")
		wantCalls(t, joined(s.run(t, nil, curl, "-sS", "--max-time", "20", "-w", format, s.clear)), "curl")
	})
	t.Run("curl, SOCKS", func(t *testing.T) {
		t.Parallel()
		lookClient(t, "curl", "curl")
		script := `p=${HTTPS_PROXY#http://}; exec curl -sS --noproxy "" --max-time 20 --proxy "socks5h://$p" -w "\ncurl %{http_code}\n" "$E2E_HTTPS"`
		wantCalls(t, joined(s.run(t, nil, "/bin/sh", "-c", script)), "curl")
	})
	t.Run("curl of what is denied", func(t *testing.T) {
		t.Parallel()
		lookClient(t, "curl", "curl")
		script := `curl -s --max-time 20 -o /dev/null -w "%{http_connect}\n" https://evil.shop.test/; echo "code $?"`
		lines := s.run(t, nil, "/bin/sh", "-c", script)
		if !slices.Contains(lines, "403") || !slices.Contains(lines, "code 56") {
			t.Errorf("curl says %q, want 403 in answer to CONNECT", lines)
		}
	})
	t.Run("Node", func(t *testing.T) {
		t.Parallel()
		node := lookClient(t, "node", "nodejs")
		wantCalls(t, s.run(t, nil, node, program("fetch.mjs")), nodeCalls...)
	})
	t.Run("Node with options of its own", func(t *testing.T) {
		t.Parallel()
		node := lookClient(t, "node", "nodejs")
		lines := s.run(t, []string{"NODE_OPTIONS=--max-old-space-size=321"}, "/bin/sh", "-c",
			`echo "options $NODE_OPTIONS"; exec `+node+" "+program("fetch.mjs"))
		wantCalls(t, lines, nodeCalls...)
		if !slices.ContainsFunc(lines, func(l string) bool {
			return strings.HasPrefix(l, "options ") && strings.Contains(l, "--max-old-space-size=321")
		}) {
			t.Errorf("the app's own options are lost: %q", lines)
		}
	})
	t.Run("Node without support of its own", func(t *testing.T) {
		t.Parallel()
		node := lookClient(t, "node", "nodejs")
		// Newer versions heed this variable; without it they are like the old ones.
		wantCalls(t, s.run(t, nil, "/usr/bin/env", "-u", "NODE_USE_ENV_PROXY", node, program("fetch.mjs")), nodeCalls...)
	})
	t.Run("Python urllib", func(t *testing.T) {
		t.Parallel()
		python := lookClient(t, "python3", "python3")
		wantCalls(t, s.run(t, nil, python, program("urllib_client.py")), "urllib-https", "urllib-http")
	})
	t.Run("Python requests", func(t *testing.T) {
		t.Parallel()
		python := lookClient(t, "python3", "python3")
		if exec.Command(python, "-c", "import requests").Run() != nil {
			t.Skip("there is no requests, of the package python3-requests")
		}
		wantCalls(t, s.run(t, nil, python, program("requests_client.py")), "requests-https", "requests-http")
	})
	t.Run("Java", func(t *testing.T) {
		t.Parallel()
		java := lookClient(t, "java", "default-jdk-headless")
		if _, err := exec.LookPath("javac"); err != nil {
			t.Skip("there is no compiler of Java, of the package default-jdk-headless")
		}
		lines := s.run(t, []string{"JAVA_TOOL_OPTIONS=-De2e.kept=yes"}, java, "-Xshare:auto", "-XX:TieredStopAtLevel=1", program("Client.java"))
		wantCalls(t, lines, "java-https", "java-http", "java-url-https", "java-url-http")
		if !slices.Contains(lines, "java-option yes") {
			t.Errorf("the app's own options are lost: %q", lines)
		}
	})
}

// joined puts curl's body and the line that it writes behind it into one.
func joined(lines []string) []string {
	for i := 1; i < len(lines); i++ {
		if strings.HasPrefix(lines[i], "curl 2") {
			return []string{lines[i] + " " + lines[i-1]}
		}
	}
	return lines
}

// git speaks its own protocol over many requests of libcurl's, in both directions.
func TestGitClonesAndPushesThroughTheRelay(t *testing.T) {
	t.Parallel()
	git := lookClient(t, "git", "git")
	root := t.TempDir()
	isolated := []string{
		"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0",
		"GIT_AUTHOR_NAME=e2e", "GIT_AUTHOR_EMAIL=e2e@shop.test", "GIT_COMMITTER_NAME=e2e", "GIT_COMMITTER_EMAIL=e2e@shop.test",
	}
	local := func(args ...string) {
		t.Helper()
		cmd := exec.Command(git, args...)
		cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + root}, isolated...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %q: %v: %s", args, err, out)
		}
	}
	bare, work := filepath.Join(root, "code.git"), filepath.Join(root, "work")
	local("init", "-q", "--bare", "-b", "main", bare)
	local("-C", bare, "config", "http.receivepack", "true")
	local("clone", "-q", bare, work)
	if err := os.WriteFile(filepath.Join(work, "a.txt"), []byte(strings.Repeat("a line of code\n", 50_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	local("-C", work, "add", "a.txt")
	local("-C", work, "commit", "-q", "-m", "one")
	local("-C", work, "push", "-q", "origin", "HEAD:main")

	const name = "git.shop.test"
	ca := newAuthority(t)
	port := portOf(ca.serveTLS(t, gitServer(t, git, root), name))
	s := &clientSite{site: newSite(t, loopbackManifest([]string{port}, map[string]string{
		"shop": fmt.Sprintf(`{allow: ["https://%s:%s"]}`, name, port),
	}), name)}
	s.env = append(isolated, "GIT_SSL_CAINFO="+ca.File, "HOME="+root, "URL=https://"+name+":"+port+"/code.git", "TO="+filepath.Join(root, "cloned"))
	lines := s.run(t, nil, "/bin/sh", "-ec", `
		git clone -q "$URL" "$TO"
		cd "$TO"
		wc -l < a.txt
		echo two > b.txt
		git add b.txt
		git commit -q -m two
		git push -q origin HEAD:main
		git ls-remote "$URL" main | cut -f 2`)
	if !slices.Equal(lines, []string{"50000", "refs/heads/main"}) {
		t.Errorf("git says %q", lines)
	}
	local("-C", bare, "cat-file", "-e", "main:b.txt") // the push has arrived
}
