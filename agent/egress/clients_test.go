package egress

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/posternhq/postern/protocol"
)

// world is a rig whose relay leads all tunnels to one TLS server.
func world(t *testing.T) (r *rig, env []string) {
	t.Helper()
	site := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s%s %s", r.Method, r.Host, r.RequestURI, body)
	}))
	t.Cleanup(site.Close)
	r = newRig(t, testPolicy(7), func(r *rig, _ *Config) {
		r.tunnel = func(s *protocol.Stream) {
			conn, err := net.Dial("tcp", site.Listener.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			s.Accept()
			protocol.Splice(s, conn)
		}
	})
	env, notes := Environment([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}, EnvOptions{Proxy: r.Addr(), ShimDir: t.TempDir()})
	if len(notes) > 0 {
		t.Errorf("notes %q", notes)
	}
	return r, env
}

// run starts a program with env and returns what it prints.
func run(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not here", name)
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Logf("%s: %v", name, err)
	}
	return string(out)
}

func TestCurl(t *testing.T) {
	r, env := world(t)
	out := run(t, env, "curl", "-sk", "--max-time", "10", "https://api.allowed.test/a?b=c", "-d", "body")
	if out != "POST api.allowed.test/a?b=c body" {
		t.Errorf("https: %q", out)
	}
	out = run(t, env, "curl", "-s", "--max-time", "10", "http://plain.allowed.test/a//b?c=%2f;d")
	if out != "GET http://plain.allowed.test/a//b?c=%2f;d host=plain.allowed.test" {
		t.Errorf("http: %q", out)
	}
	out = run(t, env, "curl", "-sk", "--max-time", "10", "--socks5-hostname", r.Addr().String(), "https://api.allowed.test/")
	if out != "GET api.allowed.test/ " {
		t.Errorf("socks: %q", out)
	}
	out = run(t, env, "curl", "-s", "--max-time", "10", "-D", "-", "-o", "/dev/null", "https://evil.test/")
	if !strings.Contains(out, "403") || !strings.Contains(out, "Proxy-Status: postern-agent; error=http_request_denied") {
		t.Errorf("refused: %q", out)
	}
}

func TestPython(t *testing.T) {
	_, env := world(t)
	out := run(t, env, "python3", "-c", `
import ssl, urllib.request, urllib.error
c = ssl._create_unverified_context()
print(urllib.request.urlopen("https://api.allowed.test/a", context=c, timeout=10).read().decode())
print(urllib.request.urlopen("http://plain.allowed.test/a", timeout=10).read().decode())
try: urllib.request.urlopen("http://evil.test/a", timeout=10)
except urllib.error.HTTPError as e: print(e.code)
`)
	if want := "GET api.allowed.test/a \nGET http://plain.allowed.test/a host=plain.allowed.test\n403\n"; out != want {
		t.Errorf("%q, expected %q", out, want)
	}
}

// nodeScript calls with all that Node has of its own.
const nodeScript = `
const http = require('http'), https = require('https');
const get = (m, url, opts = {}) => new Promise((done) => {
  const req = m.request(url, opts, (res) => { let s = ''; res.on('data', (d) => { s += d; }); res.on('end', () => done(res.statusCode + ' ' + s)); });
  req.on('error', (e) => done('error ' + e.message));
  req.end(opts.body);
});
(async () => {
  console.log(await get(https, 'https://api.allowed.test/1'));
  console.log(await get(https, 'https://api.allowed.test/2', { method: 'POST', body: 'body' }));
  console.log(await get(http, 'http://plain.allowed.test/3?x'));
  console.log(await get(http, 'http://plain.allowed.test/4', { headers: ['X-A', 'b', 'Host', 'plain.allowed.test'] }));
  console.log((await get(https, 'https://evil.test/')).replace(/.*(403).*/s, '$1'));
  console.log(await (await fetch('https://api.allowed.test/5', { method: 'POST', body: 'body' })).text());
  console.log(await (await fetch('http://plain.allowed.test/6?x', { headers: { 'X-A': 'b' } })).text());
  console.log((await fetch('http://evil.test/7')).status);
  console.log(await fetch('https://evil.test/8').then((r) => r.status, (e) => 'failed'));
  const own = http.createServer((q, s) => s.end('past')).listen(0, '127.0.0.1', async () => {
    const url = 'http://127.0.0.1:' + own.address().port + '/';
    console.log(await get(http, url), await (await fetch(url)).text());
    process.exit(0);
  });
})().catch((e) => { console.log(e); process.exit(1); });
`

const nodePrints = `200 GET api.allowed.test/1 
200 POST api.allowed.test/2 body
200 GET http://plain.allowed.test/3?x host=plain.allowed.test
200 GET http://plain.allowed.test/4 host=plain.allowed.test
403
POST api.allowed.test/5 body
GET http://plain.allowed.test/6?x host=plain.allowed.test
403
failed
200 past past
`

func TestNode(t *testing.T) {
	_, env := world(t)
	env = append(env, "NODE_TLS_REJECT_UNAUTHORIZED=0", "NODE_NO_WARNINGS=1")
	if out := run(t, env, "node", "-e", nodeScript); out != nodePrints {
		t.Errorf("got\n%s\nexpected\n%s", out, nodePrints)
	}
}

// TestTheShimLeavesNewNodesAlone has a Node pretend that it does all by itself.
func TestTheShimLeavesNewNodesAlone(t *testing.T) {
	_, env := world(t)
	const pretend = `
const http = require('http'), https = require('https');
http.globalAgent = new http.Agent({ proxyEnv: {} }); https.globalAgent = new https.Agent({ proxyEnv: {} });
globalThis[Symbol.for('undici.globalDispatcher.1')] = {};
const before = [http.globalAgent, https.globalAgent, fetch];
`
	file := shimOf(t, env)
	out := run(t, env[:2], "node", "-e", "Object.assign(process.env, {POSTERN_PROXY:'http://127.0.0.1:1'}); for (const n of ['HTTP_PROXY','http_proxy','HTTPS_PROXY','https_proxy']) process.env[n] = process.env.POSTERN_PROXY;"+
		pretend+"require('"+file+"'); console.log(before[0] === http.globalAgent, before[1] === https.globalAgent, before[2] === fetch)")
	if out != "true true true\n" {
		t.Errorf("new: %q", out)
	}
	out = run(t, append(env[:2:2], "NODE_OPTIONS=--require "+file), "node", "-e", "console.log(require('http').globalAgent.constructor.name, fetch.toString().includes('install'))")
	if out != "Agent false\n" {
		t.Errorf("without a proxy: %q", out)
	}
}

func shimOf(t *testing.T, env []string) string {
	t.Helper()
	_, file, ok := strings.Cut(valueIn(t, env, "NODE_OPTIONS"), "--require ")
	if !ok {
		t.Fatal("no shim")
	}
	return strings.Trim(file, `"`)
}
