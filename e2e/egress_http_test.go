package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/posternhq/postern/e2e/rig"
)

// webName is where requests in clear go in these tests.
const webName = "web.shop.test"

// proxyClient is a client library's use of the proxy.
func proxyClient(t testing.TB, proxy string) *http.Client {
	t.Helper()
	u := &url.URL{Scheme: "http", Host: proxy}
	tr := &http.Transport{Proxy: http.ProxyURL(u), DisableCompression: true, MaxIdleConnsPerHost: 16, ExpectContinueTimeout: time.Minute}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

// newWebSite is one destination in clear that h serves, with options for its line.
func newWebSite(t testing.TB, h http.Handler, options string) (*site, egressAgent, *connCount, string) {
	t.Helper()
	dest := newConnCount(t, h)
	port := portOf(dest.addr)
	s := newSite(t, loopbackManifest([]string{port}, map[string]string{
		"shop": fmt.Sprintf(`{allow: [{host: "http://%s:%s"%s}]}`, webName, port, options),
	}), webName)
	return s, s.agent(t, rig.AgentConfig{}), dest, "http://" + webName + ":" + port
}

func TestRequestsInClearShareTheRelaysConnections(t *testing.T) {
	t.Parallel()
	s, agent, dest, base := newWebSite(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if vias := r.Header.Values("Via"); len(vias) != 1 {
			t.Errorf("the destination gets Via %q", vias)
		}
		for _, name := range []string{"Proxy-Connection", "X-Forwarded-For", "Forwarded", "Postern-Flow"} {
			if v := r.Header.Get(name); v != "" {
				t.Errorf("the destination gets %s: %s", name, v)
			}
		}
		io.Copy(w, r.Body)
	}), "")
	for client := range 3 {
		c := proxyClient(t, agent.Proxy)
		for n := range 10 {
			text := fmt.Sprintf("%d %d", client, n)
			resp, err := c.Post(base+"/echo", "text/plain", strings.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || string(body) != text || len(resp.Header.Values("Via")) != 1 {
				t.Errorf("%q, %v, header %v", body, err, resp.Header)
			}
		}
	}
	if n := dest.made.Load(); n > 2 {
		t.Errorf("30 requests one after the other made %d connections", n)
	}
	s.checkCounts(t, 0)
}

// The agent once took an upload for unread when the answer came before it had seen the
// upload's end, and cut the answer off: a race that one request in two hundred lost.
func TestManySmallUploadsAllGetTheirWholeAnswer(t *testing.T) {
	t.Parallel()
	s, agent, _, base := newWebSite(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) }), "")
	var calling sync.WaitGroup
	for client := range 2 {
		calling.Go(func() {
			c := proxyClient(t, agent.Proxy)
			for n := range 1000 {
				if n%5 == 0 {
					c.CloseIdleConnections() // the first requests of a connection lose more often
				}
				text := fmt.Sprintf("%d %d", client, n)
				resp, err := c.Post(base+"/echo", "text/plain", strings.NewReader(text))
				if err != nil {
					t.Errorf("%s: %v", text, err)
					continue
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || string(body) != text {
					t.Errorf("%s: %q, %v", text, body, err)
				}
			}
		})
	}
	calling.Wait()
	s.checkCounts(t, 0)
}

func TestAWebSocketInClearPassesThroughTheProxy(t *testing.T) {
	t.Parallel()
	s, agent, _, base := newWebSite(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer conn.CloseNow()
		conn.SetReadLimit(1 << 20)
		for {
			kind, text, err := conn.Read(r.Context())
			if err != nil {
				return
			}
			if conn.Write(r.Context(), kind, text) != nil {
				return
			}
		}
	}), "")
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(base, "http")+"/ws", &websocket.DialOptions{HTTPClient: proxyClient(t, agent.Proxy)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	conn.SetReadLimit(1 << 20)
	for _, size := range []int{1, 100, 500_000} {
		sent := bytes.Repeat([]byte{'x'}, size)
		if err := conn.Write(ctx, websocket.MessageBinary, sent); err != nil {
			t.Fatal(err)
		}
		if _, got, err := conn.Read(ctx); err != nil || !bytes.Equal(got, sent) {
			t.Fatalf("%d bytes came back of %d, %v", len(got), size, err)
		}
	}
	if err := conn.Close(websocket.StatusNormalClosure, "bye"); err != nil {
		t.Errorf("close: %v", err)
	}
	s.checkCounts(t, 0)
}

func TestABodyIsSentOnlyWhenTheDestinationWantsIt(t *testing.T) {
	t.Parallel()
	s, agent, _, base := newWebSite(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(http.StatusExpectationFailed)
			return
		}
		h := sha256.New()
		n, _ := io.Copy(h, r.Body)
		fmt.Fprintf(w, "%d %x", n, h.Sum(nil))
	}), "")
	send := func(path string, body io.Reader) (*http.Response, string) {
		req, err := http.NewRequest(http.MethodPost, base+path, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Expect", "100-continue")
		resp, err := proxyClient(t, agent.Proxy).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(text)
	}
	big := bytes.Repeat([]byte("0123456789"), 300_000)
	if _, got := send("/yes", bytes.NewReader(big)); got != fmt.Sprintf("%d %x", len(big), sha256.Sum256(big)) {
		t.Errorf("the destination got %s", got)
	}
	unread := &countedReader{}
	if resp, _ := send("/no", unread); resp.StatusCode != http.StatusExpectationFailed {
		t.Errorf("status %d", resp.StatusCode)
	}
	if unread.n > 0 {
		t.Errorf("%d bytes were sent that nobody wanted", unread.n)
	}
	s.checkCounts(t, 0)
}

type countedReader struct{ n int }

func (r *countedReader) Read(p []byte) (int, error) {
	r.n += len(p)
	return len(p), nil
}

// Limits are of the app's line here: what is over them is refused, with the time after
// which it may be tried again where that helps.
func TestLimitsOfALineHoldForRequestsAndTunnels(t *testing.T) {
	t.Parallel()
	sink := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err == nil {
			fmt.Fprint(w, n)
		}
	})
	small, slow := portOf(rig.Serve(t, sink)), portOf(rig.Serve(t, sink))
	one, few := portOf(rig.ServeRaw(t, echo)), portOf(rig.ServeRaw(t, echo))
	s := newSite(t, loopbackManifest([]string{small, slow, one, few}, map[string]string{"shop": fmt.Sprintf(`{allow: [
      {host: "http://%[1]s:%[2]s", limits: {upload_bytes: 10KiB}},
      {host: "http://%[1]s:%[3]s", limits: {rps: 0.1, burst: 2}},
      {host: "tcp://%[1]s:%[4]s", limits: {tunnels: 1}, optimistic: false},
      {host: "tcp://%[1]s:%[5]s", limits: {upload_bytes: 10KiB}}]}`, webName, small, slow, one, few)}), webName)
	agent := s.agent(t, rig.AgentConfig{})
	client := proxyClient(t, agent.Proxy)
	post := func(port string, body io.Reader) (*http.Response, error) {
		resp, err := client.Post("http://"+webName+":"+port+"/", "text/plain", body)
		if err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		return resp, err
	}
	if resp, err := post(small, strings.NewReader(strings.Repeat("x", 10<<10))); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("as much as is allowed: %v, %v", resp, err)
	}
	for kind, body := range map[string]io.Reader{
		"a length": strings.NewReader(strings.Repeat("x", 10<<10+1)),
		"chunks":   io.LimitReader(&countedReader{}, 1<<20),
	} {
		resp, err := post(small, body)
		if err != nil || resp.StatusCode != http.StatusRequestEntityTooLarge || resp.Header.Get("Proxy-Status") == "" {
			t.Errorf("too much with %s: %v, %v", kind, resp, err)
		}
	}
	var statuses []int
	var last *http.Response
	for range 3 {
		resp, err := post(slow, nil)
		if err != nil {
			t.Fatal(err)
		}
		statuses, last = append(statuses, resp.StatusCode), resp
	}
	if !slices.Equal(statuses, []int{200, 200, 429}) || last.Header.Get("Retry-After") == "" || last.Header.Get("Proxy-Status") == "" {
		t.Errorf("statuses %v, the last with the header %v", statuses, last.Header)
	}

	first, err := tunnelTo(agent.Proxy, webName+":"+one, wait)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.echoed("one"); err != nil {
		t.Error(err)
	}
	_, err = tunnelTo(agent.Proxy, webName+":"+one, wait)
	wantRefused(t, err, http.StatusServiceUnavailable, "connection_limit_reached")
	first.Close()
	rig.Eventually(t, wait, "a tunnel after the other", func() error {
		conn, err := tunnelTo(agent.Proxy, webName+":"+one, wait)
		if err == nil {
			conn.Close()
		}
		return err
	})
	long, err := tunnelTo(agent.Proxy, webName+":"+few, wait)
	if err != nil {
		t.Fatal(err)
	}
	defer long.Close()
	if err := long.echoed(strings.Repeat("x", 8<<10)); err != nil {
		t.Errorf("within the limit: %v", err)
	}
	if err := long.echoed(strings.Repeat("x", 8<<10)); err == nil || isTimeout(err) {
		t.Errorf("over the limit: %v", err)
	}
	s.checkCounts(t, 0)
}

// What cannot be done is said with the status, the error of RFC 9209 and the line, and
// what the policy refuses in no time.
func TestRefusalsAreSaidAsTheContractSays(t *testing.T) {
	t.Parallel()
	nobody := portOf(rig.FreeAddr(t))
	s := newSite(t, loopbackManifest([]string{nobody}, map[string]string{"shop": fmt.Sprintf(`{allow: [
      {host: "tcp://%[1]s:%[2]s", optimistic: false}, "http://%[1]s:%[2]s",
      {host: "tcp://gone.shop.test:%[2]s", optimistic: false}, {host: "tcp://inside.shop.test:%[2]s", optimistic: false}]}`, webName, nobody)}), webName)
	s.dns.Point("inside.shop.test", "10.11.12.13")
	agent := s.agent(t, rig.AgentConfig{})
	for _, c := range []struct {
		target string
		status int
		word   string
	}{
		{webName + ":" + nobody, 502, "connection_refused"},
		{"gone.shop.test:" + nobody, 502, "dns_error"},
		{"inside.shop.test:" + nobody, 403, "destination_ip_prohibited"},
		{"169.254.169.254:80", 403, "destination_ip_prohibited"},
		{"203.0.113.9:443", 508, "proxy_loop_detected"},
		{"other.shop.test:443", 403, "http_request_denied"},
		{"a b:443", 400, ""},
	} {
		_, err := tunnelTo(agent.Proxy, c.target, wait)
		r := wantRefused(t, err, c.status, c.word)
		if c.status != 400 && (!strings.Contains(r.Body, `"error"`) || !strings.Contains(r.Body, `"message"`)) {
			t.Errorf("%s: the body is %s", c.target, r.Body)
		}
	}
	resp, body, err := getThrough(agent.Proxy, "http://"+webName+":"+nobody+"/")
	if err != nil || resp.StatusCode != http.StatusBadGateway || !strings.Contains(resp.Header.Get("Proxy-Status"), "connection_refused") {
		t.Errorf("a request: %v, %q, %v", resp, body, err)
	}
	var took []time.Duration
	for range 101 {
		began := time.Now()
		_, err := tunnelTo(agent.Proxy, "other.shop.test:443", wait)
		took = append(took, time.Since(began))
		var no *refused
		if !errors.As(err, &no) {
			t.Fatal(err)
		}
	}
	slices.Sort(took)
	t.Logf("to be refused takes %v, at most %v", took[50], took[100])
	if took[50] > 5*time.Millisecond {
		t.Errorf("to be refused takes %v, want less than 5 ms", took[50])
	}
	s.checkCounts(t, 0)
}

// A line may have the relay speak TLS for the app: the request in clear goes to port
// 443.
func TestALineUpgradesRequestsToTLS(t *testing.T) {
	t.Parallel()
	const other = "other.shop.test"
	ca := newAuthority(t)
	hello := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "hello %s %v", r.Host, r.TLS != nil) })
	// Addresses that nobody else here listens on.
	ca.serveTLSOn(t, "127.77.1.1:443", hello, webName)
	ca.serveTLSOn(t, "127.77.1.2:443", hello, "somebody.else.test")
	manifest := fmt.Sprintf(`
version: 1
apps:
  shop:
    egress: {allow: [{host: "http://%s", upgrade: true}, {host: "http://%s", upgrade: true}]}
egress:
  allow_ranges: [{range: 127.77.1.0/24, ports: [443], reason: the destinations of this test}]
`, webName, other)
	s := newSiteWith(t, manifest, []string{"SSL_CERT_FILE=" + ca.File})
	s.dns.Point(webName, "127.77.1.1")
	s.dns.Point(other, "127.77.1.2")
	agent := s.agent(t, rig.AgentConfig{})
	for range 2 {
		resp, body, err := getThrough(agent.Proxy, "http://"+webName+"/")
		if err != nil || resp.StatusCode != http.StatusOK || body != "hello "+webName+" true" {
			t.Errorf("%v, %q, %v", resp, body, err)
		}
	}
	resp, body, err := getThrough(agent.Proxy, "http://"+other+"/")
	if err != nil || resp.StatusCode != http.StatusBadGateway || !strings.Contains(resp.Header.Get("Proxy-Status"), "tls_certificate_error") {
		t.Errorf("a certificate for another name: %v, %q, %v", resp, body, err)
	}
	s.checkCounts(t, 0)
}

// Partners open their firewalls by this document, and operators watch these numbers.
func TestTheRelaySaysWhereCallsComeFromAndCountsThem(t *testing.T) {
	t.Parallel()
	s, agent, _, base := newWebSite(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), "")
	for range 3 {
		if resp, _, err := getThrough(agent.Proxy, base+"/"); err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%v, %v", resp, err)
		}
	}
	s.checkCounts(t, 0)
	read := func(url string) string {
		t.Helper()
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s, %v", url, resp.Status, err)
		}
		return string(text)
	}
	if feed := read(s.URL + "/.well-known/postern-egress.json"); !strings.Contains(feed, "203.0.113.9") {
		t.Errorf("the feed is %s", feed)
	}
	metrics := read("http://" + s.Admin + "/metrics")
	if !strings.Contains(metrics, "postern_egress_") || !strings.Contains(metrics, "postern_policy_applied_seconds") {
		t.Errorf("the metrics are %s", metrics)
	}
	if strings.Contains(metrics, webName) {
		t.Error("the metrics have a label for every destination that an app thinks of")
	}
}
