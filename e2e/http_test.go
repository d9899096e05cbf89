package e2e

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// mirror answers with what it was sent, as JSON.
type mirror struct {
	Method, Target, Host string
	Header               http.Header
	Body                 string
}

func serveMirror(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	json.NewEncoder(w).Encode(mirror{r.Method, r.RequestURI, r.Host, r.Header, string(body)})
}

// look sends req to an app that is a mirror and returns what the app saw.
func look(t *testing.T, client *http.Client, req *http.Request) mirror {
	t.Helper()
	resp, body := do(t, client, req)
	return reflected(t, resp, body)
}

func reflected(t *testing.T, resp *http.Response, body []byte) mirror {
	t.Helper()
	var m mirror
	if err := json.Unmarshal(body, &m); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", resp.Status, body)
	}
	return m
}

// rawLook is look for a request below HTTP; head ends without the empty line.
func rawLook(t *testing.T, r *rig.Relay, head string) mirror {
	t.Helper()
	conn := r.Dial(t, soon)
	defer conn.Close()
	io.WriteString(conn, head+"\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%q: %v", head, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reflected(t, resp, body)
}

func TestABrowserReachesEachAppUnderItsOwnHost(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	for _, app := range []string{"shop", "blog"} {
		r.StartAgent(rig.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			http.SetCookie(w, &http.Cookie{Name: "a", Value: "1"})
			http.SetCookie(w, &http.Cookie{Name: "b", Value: "2"})
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			fmt.Fprintf(z, "%s at %s%s, %s", app, req.Host, req.RequestURI, req.Header.Get("Accept-Encoding"))
			z.Close()
		})), rig.AgentConfig{App: app})
	}
	for _, test := range []struct{ host, want string }{
		{"shop.localhost:" + r.Port, "shop"},
		{"blog.localhost:" + r.Port, "blog"},
		{"blog.localhost", "blog"},
		{"BLOG.LocalHost.", "blog"},
	} {
		req := newRequest(t, http.MethodGet, r.AppURL("shop", "/page?x=1"), nil)
		req.Host = test.host
		req.Header.Set("Accept-Encoding", "gzip, br")
		resp, body := do(t, r.Client(), req)
		z, err := gzip.NewReader(bytes.NewReader(body))
		if err != nil {
			t.Fatalf("%s: %v: %q", resp.Status, err, body)
		}
		page, err := io.ReadAll(z)
		if want := test.want + " at " + test.host + "/page?x=1, gzip, br"; err != nil || string(page) != want {
			t.Errorf("%s shows %q, %v", test.host, page, err)
		}
		if cookies := resp.Header.Values("Set-Cookie"); !slices.Equal(cookies, []string{"a=1", "b=2"}) {
			t.Errorf("cookies %q", cookies)
		}
	}
	// The relay's own paths belong to the app when they are asked for under its
	// host, and to the relay under its own.
	for _, path := range []string{"/healthz", "/readyz", "/hooks/shop/stripe", "/v1/tunnel", "/api/v1/apps", "/.well-known/postern-egress.json"} {
		if resp, body := do(t, r.Client(), newRequest(t, http.MethodGet, r.AppURL("shop", path), nil)); resp.Header.Get("Content-Encoding") != "gzip" {
			t.Errorf("%s under the app's host: %s %s", path, resp.Status, body)
		}
	}
	if _, body := do(t, r.Client(), newRequest(t, http.MethodGet, r.URL+"/healthz", nil)); !strings.Contains(string(body), "ok") {
		t.Errorf("/healthz under the relay's own host: %s", body)
	}
}

func TestTargetsArriveExactlyAsSent(t *testing.T) {
	t.Parallel()
	r := startApp(t, http.HandlerFunc(serveMirror))
	for _, target := range []string{
		"/", "/?", "/??", "/x?", "/x?a=1&b=%20+;&c", "/x?a=b=c&&=&", "/x?%zz",
		"/a%2Fb", "/a%2fb", "/%41", "/%C3%A9", "/%00", "/a%20b",
		"//", "//x//y/", "///", "/./x", "/a/../b", "/a/%2e%2e/b", "/a;p=1;q", "/~!$&'()*+,;=:@-._",
		"/[x]", "/{x}|^`", "/a\"b", "/<x>", "/a\\b", "/caf\xc3\xa9", "/x?caf\xc3\xa9", "/x?<{|}>\"",
		"/http://elsewhere.example/", "//elsewhere.example/x", "/@host", "/:80",
		"/" + strings.Repeat("long/", 4000),
	} {
		if got := rawLook(t, r, "GET "+target+" HTTP/1.1\r\nHost: "+r.AppHost("shop")); got.Target != target {
			t.Errorf("%.60q arrived as %.60q", target, got.Target)
		}
	}
	// The absolute form names the host; the Host line does not count (RFC 9112,
	// section 3.2.2).
	got := rawLook(t, r, "GET http://"+r.AppHost("shop")+"/a%2Fb?c HTTP/1.1\r\nHost: elsewhere.example")
	if got.Target != "/a%2Fb?c" || got.Host != r.AppHost("shop") {
		t.Errorf("the absolute form arrived as %s for %s", got.Target, got.Host)
	}
}

func TestWhatOnlyTheRelayMaySayIsStripped(t *testing.T) {
	t.Parallel()
	r := startApp(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		h := w.Header()
		h.Set("Connection", "X-App-Hop")
		h.Set("X-App-Hop", "1")
		h.Set("Keep-Alive", "timeout=5")
		h.Set("Proxy-Authenticate", "Basic")
		h.Set("X-App-End", "2")
		serveMirror(w, req)
	}))
	head := "GET / HTTP/1.1\r\nHost: " + r.AppHost("shop") + "\r\n" + strings.Join([]string{
		"Connection: keep-alive, X-Hop", "X-Hop: 1", "Keep-Alive: timeout=5", "Proxy-Connection: keep-alive",
		"Proxy-Authorization: Basic eDp5", "TE: gzip", "Upgrade-Insecure-Requests: 1",
		"Postern-Verified: true", "postern-event-id: evt_forged", "POSTERN-ATTEMPT: 9", "Postern-Request-Id: req_forged", "Postern-X: 1",
		// For an app behind CGI, WSGI or Rack these are the same names.
		"Postern_Verified: true", "postern_event-id: evt_forged", "X_Forwarded_For: 192.0.2.1", "X-Forwarded_Proto: https",
		"X-End: 2", "X-End: 3", "Cookie: a=1; b=2", "Authorization: Bearer x", "x-lower: y", "X-Empty:",
	}, "\r\n")
	conn := r.Dial(t, soon)
	io.WriteString(conn, head+"\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	got := reflected(t, resp, body).Header
	for name, values := range got {
		lower := strings.ReplaceAll(strings.ToLower(name), "_", "-")
		switch {
		case lower == "postern-request-id":
			if len(values) != 1 || values[0] == "req_forged" || !strings.HasPrefix(values[0], "req_") {
				t.Errorf("%s: %q", name, values)
			}
		case strings.HasPrefix(lower, "postern-"), strings.Contains(name, "_"), lower == "x-hop", lower == "keep-alive", strings.HasPrefix(lower, "proxy-"), lower == "te":
			t.Errorf("the app got %s: %q", name, values)
		}
	}
	for name, want := range map[string][]string{
		"X-End": {"2", "3"}, "Cookie": {"a=1; b=2"}, "Authorization": {"Bearer x"}, "X-Lower": {"y"},
		"X-Empty": {""}, "Upgrade-Insecure-Requests": {"1"}, "User-Agent": nil, "Accept-Encoding": nil,
	} {
		if !slices.Equal(got.Values(name), want) {
			t.Errorf("the app got %s: %q, expected %q", name, got.Values(name), want)
		}
	}
	for _, name := range []string{"X-App-Hop", "Keep-Alive", "Proxy-Authenticate"} {
		if resp.Header.Get(name) != "" {
			t.Errorf("the client got %s", name)
		}
	}
	if resp.Header.Get("X-App-End") != "2" {
		t.Error("the client lost a header of the app's")
	}
}

func TestForwardingHeadersAreBelievedFromTrustedProxiesOnly(t *testing.T) {
	t.Parallel()
	claims := "X-Forwarded-For: 198.51.100.7, 203.0.113.9\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.example\r\nForwarded: for=198.51.100.7"
	for name, test := range map[string]struct{ trusted, forwarded, proto string }{
		"nobody is trusted":   {"", "127.0.0.1", "http"},
		"another is trusted":  {"192.0.2.0/24", "127.0.0.1", "http"},
		"the peer is trusted": {"127.0.0.0/8", "203.0.113.9, 127.0.0.1", "https"},
		"a chain is trusted":  {"127.0.0.1, 203.0.113.0/24", "198.51.100.7, 203.0.113.9, 127.0.0.1", "https"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := startApp(t, http.HandlerFunc(serveMirror), "POSTERN_TRUSTED_PROXIES="+test.trusted)
			got := rawLook(t, r, "GET / HTTP/1.1\r\nHost: "+r.AppHost("shop")+"\r\n"+claims).Header
			for name, want := range map[string]string{
				"X-Forwarded-For": test.forwarded, "X-Forwarded-Proto": test.proto,
				"X-Forwarded-Host": r.AppHost("shop"), "Forwarded": "",
			} {
				if got := strings.Join(got.Values(name), " / "); got != want {
					t.Errorf("%s: %q, expected %q", name, got, want)
				}
			}
		})
	}
}

func TestMethodsAndStatusesWithoutABodyPassAsTheyAre(t *testing.T) {
	t.Parallel()
	r := startRawApp(t, serveStatuses)
	client := r.Client()
	for _, test := range []struct {
		method, path, status string
		length               int64
	}{
		{http.MethodHead, "/200", "200 OK", 1234},
		{http.MethodGet, "/204", "204 No Content", 0},
		{http.MethodGet, "/304", "304 Not Modified", -1},
		{http.MethodGet, "/205", "205 Reset Content", 0},
		{http.MethodGet, "/599", "599 Our Own Words", 0},
		{http.MethodPost, "/200", "200 OK", 0},
		{http.MethodOptions, "/200", "200 OK", 0},
		{"PROPFIND", "/200", "200 OK", 0},
		{"BREW", "/200", "200 OK", 0},
		{http.MethodTrace, "/200", "200 OK", 0},
	} {
		resp, body := do(t, client, newRequest(t, test.method, r.AppURL("shop", test.path), nil))
		code, _, _ := strings.Cut(test.status, " ")
		if !strings.HasPrefix(resp.Status, code) || len(body) > 0 || resp.Header.Get("X-Method") != test.method {
			t.Errorf("%s %s: %s, %q, the app saw %s", test.method, test.path, resp.Status, body, resp.Header.Get("X-Method"))
		}
		if test.length > 0 && resp.ContentLength != test.length {
			t.Errorf("%s %s: length %d, expected %d", test.method, test.path, resp.ContentLength, test.length)
		}
	}
	t.Run("OPTIONS *", func(t *testing.T) {
		conn := r.Dial(t, soon)
		fmt.Fprintf(conn, "OPTIONS * HTTP/1.1\r\nHost: %s\r\n\r\n", r.AppHost("shop"))
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Header.Get("X-Target") != "*" {
			t.Errorf("answered %s by somebody else than the app", resp.Status)
		}
	})
}

// serveStatuses answers /<code> with that status and no body, and says what it
// was asked.
func serveStatuses(conn net.Conn) {
	in := bufio.NewReader(conn)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		for header := line; header != "\r\n"; {
			if header, err = in.ReadString('\n'); err != nil {
				return
			}
		}
		method, rest, _ := strings.Cut(line, " ")
		target, _, _ := strings.Cut(rest, " ")
		code, length := strings.Trim(target, "/*"), "Content-Length: 0\r\n"
		switch {
		case code == "":
			code = "200"
		case code == "204" || code == "304":
			length = ""
		case method == http.MethodHead:
			length = "Content-Length: 1234\r\n"
		}
		fmt.Fprintf(conn, "HTTP/1.1 %s Our Own Words\r\n%sX-Method: %s\r\nX-Target: %s\r\n\r\n", code, length, method, target)
	}
}

func TestAnAppThatRefusesConnectionsIsA502(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	r.StartAgent(rig.FreeAddr(t), rig.AgentConfig{})
	for _, body := range []io.Reader{nil, strings.NewReader("a body")} {
		resp, answer := do(t, r.Client(), newRequest(t, http.MethodPost, r.AppURL("shop", "/"), body))
		refused := wantRefusal(t, resp, answer, http.StatusBadGateway, "app_refused")
		id := resp.Header.Get("Postern-Request-Id")
		if id == "" || refused.Error.RequestID != id {
			t.Errorf("request id %q in the header, %q in the answer", id, refused.Error.RequestID)
		}
		r.Log.Wait(t, soon, 0, 1, id, "app_refused")
	}
}

func TestAnAppWithoutAnAgentIsA503AndNeverA404(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{Env: []string{"POSTERN_PARK=200ms"}})
	r.Token("shop")
	resp, body := do(t, r.Client(), newRequest(t, http.MethodGet, r.AppURL("shop", "/"), nil))
	wantRefusal(t, resp, body, http.StatusServiceUnavailable, "no_agent")
}

func TestBadRequestsAreRefusedAndReachNoApp(t *testing.T) {
	t.Parallel()
	var reached atomic.Int64
	r := startRawApp(t, func(conn net.Conn) {
		// A kept-alive connection that ends without a byte is no request.
		if n, _ := conn.Read(make([]byte, 1)); n > 0 {
			reached.Add(1)
		}
	})
	host := "Host: " + r.AppHost("shop") + "\r\n"
	for name, test := range map[string]struct {
		raw    string
		status string // what the answer begins with
	}{
		"a header of 100 KiB":          {"GET / HTTP/1.1\r\n" + host + "X-Big: " + strings.Repeat("x", 100<<10) + "\r\n\r\n", "431"},
		"1000 headers of 100 bytes":    {"GET / HTTP/1.1\r\n" + host + strings.Repeat("X-Many: "+strings.Repeat("x", 90)+"\r\n", 1000) + "\r\n", "431"},
		"a target of 100 KiB":          {"GET /" + strings.Repeat("x", 100<<10) + " HTTP/1.1\r\n" + host + "\r\n", "4"},
		"no HTTP at all":               {"hello, is anybody there?\r\n\r\n", "400"},
		"a TLS hello":                  {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "400"},
		"no version":                   {"GET /\r\n\r\n", "400"},
		"HTTP/3.0":                     {"GET / HTTP/3.0\r\n" + host + "\r\n", "5"},
		"no Host":                      {"GET / HTTP/1.1\r\n\r\n", "400"},
		"two Hosts":                    {"GET / HTTP/1.1\r\n" + host + host + "\r\n", "400"},
		"a blank in the target":        {"GET /a b HTTP/1.1\r\n" + host + "\r\n", "400"},
		"a control byte in the target": {"GET /a\x01b HTTP/1.1\r\n" + host + "\r\n", "400"},
		"a bad escape in the path":     {"GET /%zz HTTP/1.1\r\n" + host + "\r\n", "400"},
		"a NUL in a header":            {"GET / HTTP/1.1\r\n" + host + "X-A: a\x00b\r\n\r\n", "400"},
		"a CR in a header":             {"GET / HTTP/1.1\r\n" + host + "X-A: a\rX-B: b\r\n\r\n", "400"},
		"a blank before the colon":     {"GET / HTTP/1.1\r\n" + host + "Transfer-Encoding : chunked\r\n\r\n", "400"},
		"a folded header":              {"GET / HTTP/1.1\r\n" + host + " X-A: a\r\n\r\n", "400"},
		"two different lengths":        {"POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", "400"},
		"a signed length":              {"POST / HTTP/1.1\r\n" + host + "Content-Length: +5\r\n\r\nhello", "400"},
		"a list of lengths":            {"POST / HTTP/1.1\r\n" + host + "Content-Length: 5, 6\r\n\r\nhello", "400"},
		"an unknown coding":            {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "501"},
		"two codings":                  {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", "501"},
		"a proxy's CONNECT":            {"CONNECT shop.localhost:443 HTTP/1.1\r\nHost: shop.localhost:443\r\n\r\n", "4"},
	} {
		t.Run(name, func(t *testing.T) {
			conn := r.Dial(t, 5*time.Second)
			io.WriteString(conn, test.raw)
			// All there is until the relay hangs up: whatever came after a bad
			// request must not be taken for another one. Hanging up on unread
			// bytes is a reset.
			answer, err := io.ReadAll(conn)
			if isTimeout(err) {
				t.Errorf("the connection stays open")
			}
			if !strings.HasPrefix(string(answer), "HTTP/1.1 "+test.status) {
				t.Errorf("answered %.120q", answer)
			}
			if bytes.Contains(answer[min(len(answer), 9):], []byte("HTTP/1.1 ")) {
				t.Errorf("answered twice: %.200q", answer)
			}
			if n := reached.Swap(0); n > 0 {
				t.Errorf("the app got %d requests", n)
			}
		})
	}
}

// Who reads the length, and who reads the coding, disagree about where the next
// request begins. net/http drops the length before anybody sees it, so the relay
// cannot refuse the request; but nothing that follows on the connection is taken
// for one.
func TestARequestWithALengthAndACodingIsTheLastOnItsConnection(t *testing.T) {
	t.Parallel()
	var reached atomic.Int64
	r := startApp(t, http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		reached.Add(1)
		if req.URL.Path != "/" {
			t.Errorf("the app got %s", req.URL)
		}
	}))
	conn := r.Dial(t, 5*time.Second)
	fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: %[1]s\r\nContent-Length: 60\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"+
		"GET /smuggled HTTP/1.1\r\nHost: %[1]s\r\n\r\n", r.AppHost("shop"))
	if _, err := io.ReadAll(conn); isTimeout(err) {
		t.Error("the connection stays open")
	}
	if n := reached.Load(); n > 1 {
		t.Errorf("the app got %d requests", n)
	}
}

func TestASlowHeaderIsHungUpOn(t *testing.T) {
	t.Parallel()
	r := startApp(t, http.HandlerFunc(serveMirror))
	conn := r.Dial(t, 30*time.Second) // the relay's limit is 10 s
	fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n", r.AppHost("shop"))
	ended := make(chan error, 1)
	go func() {
		_, err := io.ReadAll(conn)
		ended <- err
	}()
	// A byte now and then does not help.
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); ; {
		select {
		case err := <-ended:
			if isTimeout(err) {
				t.Errorf("the connection is still open after %v", time.Since(began))
			}
			return
		case <-tick.C:
			io.WriteString(conn, "X")
		}
	}
}

func TestAThousandRequestsUseFewConnectionsOfTheApp(t *testing.T) {
	t.Parallel()
	var connections atomic.Int64
	app := rig.Serve(t, http.HandlerFunc(serveMirror))
	counted := rig.ServeRaw(t, func(conn net.Conn) {
		connections.Add(1)
		up, err := net.Dial("tcp", app)
		if err != nil {
			return
		}
		defer up.Close()
		go func() {
			io.Copy(up, conn)
			up.Close()
		}()
		io.Copy(conn, up)
	})
	r := rig.StartRelay(t, rig.RelayConfig{})
	r.StartAgent(counted, rig.AgentConfig{})
	const clients, each = 8, 125
	var running sync.WaitGroup
	for range clients {
		running.Go(func() {
			client := r.Client()
			for range each {
				resp, err := client.Post(r.AppURL("shop", "/"), "text/plain", strings.NewReader("hello"))
				if err != nil {
					t.Error(err)
					return
				}
				_, err = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != http.StatusOK {
					t.Errorf("%s, %v", resp.Status, err)
				}
			}
		})
	}
	running.Wait()
	// One for each client, and some that lay idle too long on a busy machine.
	if n := connections.Load(); n > 5*clients {
		t.Errorf("%d requests opened %d connections to the app", clients*each, n)
	}
}
