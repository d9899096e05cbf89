package policy_test

import (
	"encoding/json"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/posternhq/postern/protocol/policy"
)

// The comments at the causes are what people read; the answers have to be the same.
func TestAnswersAreTheTableAtTheCauses(t *testing.T) {
	source, err := os.ReadFile("decision.go")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile(`Cause = "(\w+)"\s+// (\d+) (\w+)\s+(\d)`).FindAllStringSubmatch(string(source), -1)
	if len(rows) != 21 {
		t.Fatalf("%d causes were found", len(rows))
	}
	for _, row := range rows {
		r := policy.NewRefusal(policy.Cause(row[1]), "no")
		if got := strconv.Itoa(r.Status()); got != row[2] {
			t.Errorf("%s: status %s, want %s", row[1], got, row[2])
		}
		if r.ProxyError() != row[3] {
			t.Errorf("%s: error %s, want %s", row[1], r.ProxyError(), row[3])
		}
		if got := strconv.Itoa(int(r.SOCKS())); got != row[4] {
			t.Errorf("%s: reply %s, want %s", row[1], got, row[4])
		}
	}
	if r := policy.NewRefusal("of_tomorrow", "no"); r.Status() != 502 || r.SOCKS() != 1 || r.ProxyError() != "proxy_internal_error" {
		t.Errorf("unknown cause: %d %s %d", r.Status(), r.ProxyError(), r.SOCKS())
	}
}

func TestProxyStatus(t *testing.T) {
	r := &policy.Refusal{Cause: policy.Denied, Message: "no \"line\" \\ allows ä\r\nX: y", Where: "allow[3]"}
	for pseudonym, want := range map[string]string{
		"postern-node1": `postern-node1; error=http_request_denied; details="allow[3]: no \"line\" \\ allows ????X: y"`,
		"1 node":        `"1 node"; error=http_request_denied; details="allow[3]: no \"line\" \\ allows ????X: y"`,
	} {
		if got := r.ProxyStatus(pseudonym); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	r.Message = strings.Repeat("x", 5000)
	if n := len(r.ProxyStatus("p")); n > 700 {
		t.Errorf("%d bytes in a header", n)
	}
}

func TestWriteHTTP(t *testing.T) {
	w := httptest.NewRecorder()
	r := &policy.Refusal{Cause: policy.Denied, Message: "no line allows evil.test:443", Where: "default", Suggestion: "add it", Flow: "flo_1"}
	r.WriteHTTP(w, "postern-a")
	if w.Code != 403 || w.Header().Get("Content-Type") != "application/json" || w.Header().Get("Retry-After") != "" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	if got := w.Header().Get("Proxy-Status"); !strings.HasPrefix(got, "postern-a; error=http_request_denied; ") {
		t.Errorf("Proxy-Status: %s", got)
	}
	var body struct{ Error policy.Refusal }
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || body.Error != *r {
		t.Errorf("%s: %v", w.Body, err)
	}
	for _, key := range []string{`"code":"denied"`, `"rule":"default"`, `"flow_id":"flo_1"`} {
		if !strings.Contains(w.Body.String(), key) {
			t.Errorf("no %s in %s", key, w.Body)
		}
	}

	for after, want := range map[int]string{0: "1", 7: "7"} {
		w = httptest.NewRecorder()
		(&policy.Refusal{Cause: policy.RateLimited, Message: "slow down", RetryAfter: after}).WriteHTTP(w, "p")
		if w.Code != 429 || w.Header().Get("Retry-After") != want {
			t.Errorf("%d, Retry-After %q", w.Code, w.Header().Get("Retry-After"))
		}
	}
}

func TestSuggestions(t *testing.T) {
	c := policy.Compile(shop(policy.Enforce))
	undeclared := policy.Compile(&policy.Policy{App: "shop"})
	for _, x := range []struct {
		c    *policy.Compiled
		call string
		want string // a part of it; "" for none
	}{
		{c, "https://new.example", "under apps.shop.egress.allow add: - https://new.example"},
		{c, "https://new.example:8443", "- tcp://new.example:8443"},
		{c, "http://new.example/x", "- http://new.example"},
		{c, "http://db.example.com:5432/", "https:// instead"},
		{c, "GET http://plain.example/v9", `under allow[3].rules add: - {methods: [GET], paths: ["/v9"]}`},
		{c, "GET http://plain.example/v1/../x", ""},
		{c, "tcp://pg.internal:22", "- tcp://pg.internal:22"},
		{c, "https://localhost", ""},
		{c, "https://127.0.0.1", ""},
		{c, "https://169.254.169.254", ""},
		{c, "https://93.184.216.99", ""},
		{c, "https://10.0.0.1", `{range: "10.0.0.1/32", ports: [443]`},
		{c, "https://bad.example", ""},
		{c, "https://opened.example", ""},
		{undeclared, "https://new.example", `apps.shop.egress: {mode: enforce, allow: ["https://new.example"]}`},
	} {
		call := call(t, x.call)
		r := x.c.Decide(call, noon).Refusal(x.c, call)
		if r == nil {
			t.Errorf("%s is allowed", x.call)
			continue
		}
		if !strings.Contains(r.Suggestion, x.want) || (r.Suggestion == "") != (x.want == "") {
			t.Errorf("%s: %q, want %q", x.call, r.Suggestion, x.want)
		}
	}
}
