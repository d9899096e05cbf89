package admin

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"go/format"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/relay"
)

// hostile are webhooks that try to be something else in a shell, in Go source or
// in JSON.
func hostile() map[string]relay.Event {
	post := func(body string, fields ...relay.Field) relay.Event {
		e := event(1, "shop", "stripe", body)
		e.Header = fields
		e.Target, e.PublicURL = "", "https://relay.example/hooks/shop/stripe"
		return e
	}
	field := func(name, value string) relay.Field { return relay.Field{Name: name, Value: value} }
	with := func(e relay.Event, target string) relay.Event {
		e.Target = target
		e.PublicURL += target
		return e
	}
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	return map[string]relay.Event{
		"plain":             post(`{"id":1}`, field("Content-Type", "application/json"), field("User-Agent", "Stripe/1.0"), field("Accept", "*/*")),
		"quotes":            post(`it's "$(touch owned)" `+"`id`"+` \ \' !! !1 {a,b} [1-3] $HOME`, field("X-Quote", `it's "$(id)" \ !! {x}`)),
		"new lines":         post("a\nb\r\nc\n\n", field("Content-Type", "text/plain")),
		"ends in CRLF":      post("[{}]\r\n"),
		"a file's name":     post("@/etc/passwd"),
		"a file's name, =":  post("=@/etc/passwd"),
		"a dash":            post("--output owned"),
		"tabs and unicode":  post("a\tb\u2028c\u00e9\U0001f600\ufeff"),
		"all bytes":         post(string(all), field("Content-Type", "application/octet-stream")),
		"no UTF-8":          post("caf\xe9", field("X-Name", "Andr\xe9 \xff")),
		"gzip":              post("\x1f\x8b\x08\x00\x00", field("Content-Encoding", "gzip")),
		"empty":             post(""),
		"large text":        post(strings.Repeat("0123456789'\n", 20_000)),
		"large bytes":       post(strings.Repeat("\x00\xff", 100_000)),
		"just inline":       post(strings.Repeat("x'\n\t", maxInline/4)),
		"a line of emoji":   post(strings.Repeat("\U0001f600", 100)),
		"here document":     post("\x00\nPOSTERN_BODY\n`touch owned`\n"),
		"headers twice":     post("{}", field("X-A", "1"), field("X-B", "2"), field("X-A", "3"), field("X-Empty", ""), field("X-Semi", "a;"), field("X-At", "@/etc/passwd")),
		"of the connection": post("{}", field("Connection", "close"), field("Content-Length", "999"), field("Transfer-Encoding", "chunked"), field("Expect", "100-continue"), field("Host", "evil")),
		"target encoded":    with(post("{}"), "/a%2Fb/%C3%A9/../x//y/./?q=%20+&q=2&[a]={b}"),
		"target odd":        with(post("{}"), "/a\"b<c>{d}|e\\f^`g'h?i='j'&k=\"l\"#m"),
		"target raw bytes":  with(post("{}"), "/\xc3\xa9\xff?\xff"),
		"only a query":      with(post("{}"), "?a=1&b"),
		"a put":             func() relay.Event { e := post("x"); e.Method = "PUT"; return e }(),
		"a get":             func() relay.Event { e := post(""); e.Method = "GET"; return e }(),
		"a get with a body": func() relay.Event { e := post("x"); e.Method = "GET"; return e }(),
		"a head":            func() relay.Event { e := post(""); e.Method = "HEAD"; return e }(),
		"an odd method":     func() relay.Event { e := post("x"); e.Method = "M'$`!"; return e }(),
	}
}

// took is a request as a server got it.
type took struct {
	method, target string
	header         http.Header
	body           string
}

// takes makes a server that keeps the last request.
func takes(t *testing.T) (string, func() took) {
	got := make(chan took, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Header.Del("Content-Length")
		got <- took{r.Method, r.RequestURI, r.Header, string(body)}
	}))
	t.Cleanup(server.Close)
	return server.URL, func() took {
		select {
		case one := <-got:
			return one
		case <-time.After(10 * time.Second):
			t.Error("no request came")
			return took{}
		}
	}
}

// wanted is e as it should come.
func wanted(e relay.Event, path string) took {
	h := http.Header{}
	for _, f := range endToEnd(e.Header) {
		h.Add(f.Name, f.Value)
	}
	return took{e.Method, path + e.Target, h, string(e.Body)}
}

// The command is run for real, by bash and curl.
func TestCurlSendsTheSameRequest(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"bash", "curl", "base64"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(tool + " is not here")
		}
	}
	url, last := takes(t)
	d := newDesk(t)
	d.eps["shop/stripe"] = relay.Endpoint{App: "shop", Name: "stripe", Path: "/hook"}
	for name, e := range hostile() {
		e.ID = relay.EventID("evt_" + strings.Map(func(r rune) rune {
			if r < 'a' || r > 'z' {
				return '_'
			}
			return r
		}, name))
		d.store.add(e)
		got := d.call("shop", "GET", "/events/"+string(e.ID)+"/export?as=curl&target="+url, "")
		if got.status != 200 || got.header.Get("Content-Disposition") != `attachment; filename="`+string(e.ID)+`.sh"` {
			t.Errorf("%s: %d %s %v", name, got.status, got.body, got.header)
			continue
		}
		runCurl(t, name, got.body)
		if arrived, want := last(), wanted(e, "/hook"); !reflect.DeepEqual(arrived, want) {
			t.Errorf("%s: arrived\n%.500q, want\n%.500q, by\n%.2000s", name, arrived, want, got.body)
		}
	}
}

// runCurl runs script from standard input, as somebody pastes it.
func runCurl(t *testing.T, name, script string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-s")
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "HOME="+cmd.Dir, "no_proxy=*") // no .curlrc
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s\n%.2000s", name, err, out, script)
	}
	if _, err := os.Stat(filepath.Join(cmd.Dir, "owned")); err == nil {
		t.Errorf("%s: the event ran a command:\n%.2000s", name, script)
	}
}

// What no list of cases has: words of random bytes through a real shell.
func TestQuotedWordsStayOneWord(t *testing.T) {
	t.Parallel()
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("bash is not here")
	}
	random := rand.New(rand.NewPCG(1, 2))
	var script strings.Builder
	var want []byte
	alphabet := "'\"\\$`!{}[]()<>|&;*?~#= \n\r\tabc019\x01\x7f\xff\xc3\xa9\xe2\x80\xa8"
	for range 2000 {
		word := make([]byte, random.IntN(12))
		for i := range word {
			if word[i] = alphabet[random.IntN(len(alphabet))]; random.IntN(4) == 0 {
				word[i] = byte(1 + random.IntN(255))
			}
		}
		script.WriteString("printf '%s\\0' " + quoteShell(string(word)) + "\n")
		want = append(append(want, word...), 0)
	}
	cmd := exec.Command(bash, "-s")
	cmd.Stdin = strings.NewReader(script.String())
	if got, err := cmd.Output(); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%v: the words came out different", err)
	}
}

func TestHARIsWhatTheFormatSays(t *testing.T) {
	t.Parallel()
	d := stocked(t)
	d.store.add(func() relay.Event { e := event(9, "shop", "stripe", "caf\xe9"); e.ID = "evt_binary"; return e }())
	read := func(id string) (map[string]any, string) {
		got := d.call("shop", "GET", "/events/"+id+"/export?as=har&target=http://localhost:3000/x?y=1", "")
		var har map[string]any
		if err := json.Unmarshal([]byte(got.body), &har); err != nil || got.status != 200 {
			t.Fatalf("%v in %d %s", err, got.status, got.body)
		}
		if !strings.Contains(got.header.Get("Content-Disposition"), id+".har") {
			t.Errorf("%v", got.header)
		}
		log := har["log"].(map[string]any)
		if log["version"] != "1.2" || log["creator"].(map[string]any)["name"] == nil {
			t.Errorf("log %v", log)
		}
		return log["entries"].([]any)[0].(map[string]any), got.body
	}
	entry, body := read("evt_shop_0001")
	for path, fields := range map[string]string{ // what the format requires
		"":         "startedDateTime time request response cache timings",
		"request":  "method url httpVersion cookies headers queryString headersSize bodySize postData",
		"response": "status statusText httpVersion cookies headers content redirectURL headersSize bodySize",
		"timings":  "send wait receive",
	} {
		object := entry
		if path != "" {
			object = entry[path].(map[string]any)
		}
		for _, field := range strings.Fields(fields) {
			if object[field] == nil {
				t.Errorf("%s lacks %s in %s", path, field, body)
			}
		}
	}
	request, response := entry["request"].(map[string]any), entry["response"].(map[string]any)
	if request["url"] != "http://localhost:3000/x/sub?x=1&y=1" || len(request["queryString"].([]any)) != 2 ||
		request["postData"].(map[string]any)["text"] != `{"id":1}` || request["postData"].(map[string]any)["mimeType"] != "application/json" {
		t.Errorf("request %v", request)
	}
	content := response["content"].(map[string]any)
	text, _ := base64.StdEncoding.DecodeString(content["text"].(string))
	if response["status"] != 500.0 || response["statusText"] != "Internal Server Error" || entry["time"] != 500.0 ||
		content["encoding"] != "base64" || string(text) != "broken\xff" {
		t.Errorf("response %v, time %v", response, entry["time"])
	}
	entry, _ = read("evt_binary")
	data := entry["request"].(map[string]any)["postData"].(map[string]any)
	if text, err := base64.StdEncoding.DecodeString(data["text"].(string)); data["_encoding"] != "base64" || err != nil || string(text) != "caf\xe9" {
		t.Errorf("postData %v", data)
	}
	if entry["response"].(map[string]any)["status"] != 0.0 {
		t.Errorf("an answer that nobody gave: %v", entry["response"])
	}
}

// The Go tests are vetted and run for real, all in one package, with a handler
// that sends on what it got.
func TestGoTestSendsTheSameRequest(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("runs the go command")
	}
	folder := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("go.mod", "module example\n\ngo 1.24\n")
	write("sink_test.go", `package webhook

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

func sink(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Header.Del("Content-Length")
		values := [][]byte{[]byte(r.Method), []byte(r.RequestURI), body}
		for k, list := range r.Header {
			values = append(values, []byte(k+": "+strings.Join(list, "\n")))
		}
		data, _ := json.Marshal(values)
		os.WriteFile(filepath.Join(os.Getenv("SINK"), name), data, 0o600)
	})
}
`)
	d := newDesk(t, func(c *Config) {
		c.Resign = func(relay.Endpoint, relay.Event, string, time.Time) ([]relay.Field, error) {
			return []relay.Field{{Name: "Stripe-Signature", Value: "t=1,v1=2"}}, nil
		}
	})
	d.eps["shop/stripe"] = relay.Endpoint{App: "shop", Name: "stripe", Path: "/hook"}
	want := make(map[string]took)
	for name, e := range hostile() {
		e.ID = relay.EventID("evt_" + strings.NewReplacer(" ", "_", ",", "", "'", "").Replace(strings.ReplaceAll(name, "=", "")))
		d.store.add(e)
		got := d.call("shop", "GET", "/events/"+string(e.ID)+"/export?as=go", "")
		if got.status != 200 || !strings.Contains(got.header.Get("Content-Disposition"), string(e.ID)+"_test.go") {
			t.Fatalf("%s: %d %s", name, got.status, got.body)
		}
		if !strings.Contains(got.body, "// The signature (Stripe-Signature) may cover") {
			t.Errorf("%s: says nothing of the signature", name)
		}
		if formatted, err := format.Source([]byte(got.body)); err != nil || string(formatted) != got.body {
			t.Errorf("%s: not as gofmt has it: %v\n%.1500s", name, err, got.body)
		}
		want[string(e.ID)] = wanted(e, "/hook")
		source := strings.Replace(got.body, "var handler http.Handler //", `var handler = sink("`+string(e.ID)+`") //`, 1)
		write(string(e.ID)+"_test.go", source)
	}
	for _, args := range [][]string{{"vet", "./..."}, {"test", "./..."}} {
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir, cmd.Env = folder, append(os.Environ(), "SINK="+folder, "GOFLAGS=-mod=mod", "GOWORK=off", "GOPROXY=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %v: %v\n%.3000s", args, err, out)
		}
	}
	for id, w := range want {
		data, err := os.ReadFile(filepath.Join(folder, id))
		if err != nil {
			t.Errorf("%s did not run: %v", id, err)
			continue
		}
		var values [][]byte
		if err := json.Unmarshal(data, &values); err != nil {
			t.Fatal(err)
		}
		got := took{string(values[0]), string(values[1]), http.Header{}, string(values[2])}
		for _, field := range values[3:] {
			k, list, _ := strings.Cut(string(field), ": ")
			got.header[k] = strings.Split(list, "\n")
		}
		if !reflect.DeepEqual(got, w) {
			t.Errorf("%s: got\n%.500q, want\n%.500q", id, got, w)
		}
	}
}

func TestExportsThatCannotBe(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	expired, gone, damaged, binary := event(1, "shop", "stripe", "xx"), event(2, "shop", "old", "{}"), event(3, "shop", "stripe", "{}"), event(4, "shop", "stripe", "{}")
	expired.Body = nil
	damaged.Header = []relay.Field{{Name: "X-A", Value: "1\r\nX-B: 2"}}
	binary.PublicURL = "ftp://x"
	d.store.add(expired, gone, damaged, binary)
	for path, want := range map[string]int{
		"evt_shop_0001/export?as=curl": 409, "evt_shop_0002/export?as=curl": 409, "evt_shop_0003/export?as=go": 409, "evt_shop_0004/export?as=har": 409,
		"evt_shop_0001/export": 400, "evt_shop_0001/export?as=exe": 400,
		"evt_shop_0004/export?as=har&target=http://localhost/%23x":        400,
		"evt_shop_0004/export?as=har&target=file:///etc/passwd":           400,
		"evt_shop_0004/export?as=har&target=http://u:p@localhost":         400,
		"evt_shop_0004/export?as=har&target=localhost:3000":               400,
		"evt_shop_0004/export?as=har&target=http://localhost/a%20b":       400,
		"evt_shop_0004/export?as=har&target=http://localhost:3000":        200,
		"evt_shop_0004/export?as=curl&target=http://localhost:3000/%2561": 200,
	} {
		if got := d.call("shop", "GET", "/events/"+path, ""); got.status != want {
			t.Errorf("%s: %d %s, want %d", path, got.status, got.body, want)
		}
	}
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ base, path, target, want string }{
		{"http://localhost:3000", "/hook", "", "http://localhost:3000/hook"},
		{"http://localhost:3000/", "/hook", "/a?b", "http://localhost:3000/hook/a?b"},
		{"http://localhost:3000/own", "/hook", "/a?b", "http://localhost:3000/own/a?b"},
		{"http://localhost:3000/own/", "/hook", "/a", "http://localhost:3000/own/a"},
		{"http://localhost:3000?c=1", "/hook", "?b=2", "http://localhost:3000/hook?b=2&c=1"},
		{"http://localhost:3000/own?c=1", "/hook", "", "http://localhost:3000/own?c=1"},
		{"https://[::1]:3000", "", "", "https://[::1]:3000/"},
		{"https://a", "", "?x", "https://a/?x"},
		{"https://a", "/h/", "/%2F", "https://a/h/%2F"},
	} {
		v := seen{endpoint: relay.Endpoint{Path: test.path}, Event: relay.Event{Target: test.target}}
		if got := v.addressAt(test.base); got != test.want {
			t.Errorf("%v: %s", test, got)
		}
	}
	if got := safeName("../a \"b\"\r\n\u00e9;" + strings.Repeat("x", 500)); strings.Trim(got, "._abx") != "" || len(got) > maxID {
		t.Errorf("file name %q", got)
	}
}
