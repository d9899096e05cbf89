package provider

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/relay"
)

// hook is a webhook as the tests of one provider write it.
type hook struct {
	Header     http.Header
	Body       []byte
	URL        string
	Secrets    []relay.Secret
	ReceivedAt time.Time
}

func verifyAs(provider string, h hook) relay.Verdict {
	ep := relay.Endpoint{Provider: provider, Secrets: h.Secrets}
	return New(Config{}).Verify(context.Background(), ep, relay.Incoming{
		Method: http.MethodPost, Header: h.Header, Body: h.Body, PublicURL: h.URL, ReceivedAt: h.ReceivedAt,
	})
}

func verifyStripe(h hook) relay.Verdict { return verifyAs("stripe", h) }
func verifyGitHub(h hook) relay.Verdict { return verifyAs("github", h) }

func TestTheTableIsSortedAndComplete(t *testing.T) {
	t.Parallel()
	names := allNames()
	if !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != len(names) {
		t.Errorf("All() = %q, want them sorted and each once", names)
	}
	want := strings.Fields("stripe github shopify slack twilio square paddle zoom discord sendgrid mailgun gitlab bitbucket " +
		"linear standard svix sns paypal meta graph dropbox intercom hubspot typeform hmac none")
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Errorf("All() = %q, want %q", names, want)
	}
	for i := range table {
		p := &table[i]
		if ways := bools(p.scheme != nil, p.pick != nil, p.verify != nil); ways != 1 {
			t.Errorf("%s has %d ways to verify", p.Name, ways)
		}
		if p.Mode == "" {
			t.Errorf("%s has no mode", p.Name)
		}
		if p.Resigns && p.scheme != nil && p.scheme.fixed != "" {
			t.Errorf("%s says that it can be signed anew, and that it cannot", p.Name)
		}
	}
	for _, name := range []string{"", "Stripe", "nobody"} {
		if lookup(name) != nil || Facts(name).Name != "" {
			t.Errorf("%q is known", name)
		}
	}
}

func bools(all ...bool) (n int) {
	for _, b := range all {
		if b {
			n++
		}
	}
	return n
}

// Every provider but "none" must refuse a request without anything in it, with
// whatever secrets; one that accepts it would accept everybody.
func TestEveryProviderRefusesABareRequest(t *testing.T) {
	t.Parallel()
	for _, name := range allNames() {
		for _, method := range []string{"POST", "PUT", "GET", "HEAD", "OPTIONS", ""} {
			for _, secrets := range [][]relay.Secret{nil, {""}, {"s"}} {
				ep := relay.Endpoint{Provider: name, Secrets: secrets, HMAC: &relay.HMACScheme{Header: "X-Sig"}}
				v := New(Config{}).Verify(t.Context(), ep, relay.Incoming{Method: method, ReceivedAt: stripeTime})
				want := name == "none" && method != "HEAD" && method != "OPTIONS" || name == "intercom" && method == "HEAD"
				if v.OK != want || v.OK == (v.Reason != "") || v.Verified {
					t.Errorf("%s %s with %d secrets: verdict %+v", method, name, len(secrets), v)
				}
			}
		}
	}
}

func TestVerifyChoosesByTheEndpoint(t *testing.T) {
	t.Parallel()
	in := relay.Incoming{
		Header: http.Header{"X-Hub-Signature-256": {githubSignature}},
		Body:   []byte(githubBody), ReceivedAt: stripeTime,
	}
	ep := relay.Endpoint{Provider: "github", Secrets: []relay.Secret{githubSecret}}
	if v := New(Config{}).Verify(t.Context(), ep, in); !v.OK || !v.Verified {
		t.Errorf("github: %+v", v)
	}
	ep.Provider = "stripe"
	if v := New(Config{}).Verify(t.Context(), ep, in); v.OK || !strings.Contains(v.Reason, "Stripe-Signature") {
		t.Errorf("the same as stripe: %+v", v)
	}
	ep.Provider = "none"
	if v := New(Config{}).Verify(t.Context(), ep, in); !v.OK || v.Verified {
		t.Errorf("the same as none: %+v", v)
	}
}

func TestAnUnknownProviderRefusesEverything(t *testing.T) {
	t.Parallel()
	v := New(Config{}).Verify(t.Context(), relay.Endpoint{Provider: "stirpe"}, relay.Incoming{})
	if v.OK || v.Reason == "" {
		t.Errorf("verdict %+v, want a refusal with a reason", v)
	}
}

func TestScan(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, body, id, typ string }{
		{"both", `{"id":"evt_1","type":"a.b"}`, "evt_1", "a.b"},
		{"the type far behind", `{"id":"evt_1","data":{"id":"no","type":"no","l":[1,{"id":"no"}]},"type":"a"}`, "evt_1", "a"},
		{"only nested ones", `{"data":{"id":"no","type":"no"}}`, "", ""},
		{"names are exact", `{"ID":"no","Id":"no","type ":"no"}`, "", ""},
		{"the first of two", `{"id":"one","id":"two","type":"a"}`, "one", "a"},
		{"not a string", `{"id":7,"type":["a"]}`, "", ""},
		{"escapes", `{"id":"\u0065vt_1","type":"a\/b"}`, "evt_1", "a/b"},
		{"cut off", `{"id":"evt_1","type":`, "evt_1", ""},
		{"an array", `["id","evt_1"]`, "", ""},
		{"empty", ``, "", ""},
		{"not JSON", "\xff\xfe{", "", ""},
		{"a form", `id=evt_1&type=a`, "", ""},
		{"beyond the limit", `{"pad":"` + strings.Repeat("x", maxBodyScan) + `","id":"late"}`, "", ""},
		{"very deep", strings.Repeat(`{"id":`, 20_000), "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := scan([]byte(tt.body), "id", "type")
			if got.text("id") != tt.id || got.text("type") != tt.typ {
				t.Errorf("got %v, want id %q and type %q", got, tt.id, tt.typ)
			}
		})
	}
}

func TestScanBelow(t *testing.T) {
	t.Parallel()
	const body = `{"a":{"b":{"c":"deep"},"n":-1.5e3,"l":["zero",{"x":"one"}]},"n":7,"s":"text","a2":null}`
	got := scan([]byte(body), "a.b.c", "a.n", "a.l.0", "a.l.1.x", "n", "s", "a2", "a.nothing", "s.below")
	for path, want := range map[string]string{"a.b.c": "deep", "a.l.0": "zero", "a.l.1.x": "one", "n": "", "a2": "", "a.nothing": "", "s.below": ""} {
		if got.text(path) != want {
			t.Errorf("text(%q) = %q, want %q", path, got.text(path), want)
		}
	}
	if got.number("n") != "7" || got.number("a.n") != "-1.5e3" || got.number("a.b.c") != "" {
		t.Errorf("numbers %v", got)
	}
}

func TestLabel(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ in, want string }{
		{"evt_1", "evt_1"},
		{"push", "push"},
		{"with\x00nul", ""},
		{"two\nlines", ""},
		{"\xff", ""},
		{strings.Repeat("x", maxLabel), strings.Repeat("x", maxLabel)},
		{strings.Repeat("x", maxLabel+1), ""},
	} {
		if got := label(tt.in); got != tt.want {
			t.Errorf("label(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

func allNames() []string {
	var names []string
	for _, f := range All() {
		names = append(names, f.Name)
	}
	return names
}
