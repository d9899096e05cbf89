package provider

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/posternhq/postern/relay"
)

func TestTheTableIsSortedAndComplete(t *testing.T) {
	t.Parallel()
	names := Names()
	if !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != len(names) {
		t.Errorf("Names() = %q, want them sorted and each once", names)
	}
	for _, name := range names {
		p, ok := Lookup(name)
		if !ok || p.Name != name || p.Verify == nil {
			t.Errorf("Lookup(%q) = %+v, %v", name, p, ok)
		}
	}
	for _, name := range []string{"", "Stripe", "nobody"} {
		if _, ok := Lookup(name); ok {
			t.Errorf("Lookup(%q) found something", name)
		}
	}
}

// Providers that sign must refuse a request without anything in it, with
// whatever secrets; one that accepts it would accept everybody.
func TestEveryProviderThatNeedsASecretRefusesABareRequest(t *testing.T) {
	t.Parallel()
	for _, name := range Names() {
		p, _ := Lookup(name)
		for _, secrets := range [][]relay.Secret{nil, {""}, {"s"}} {
			v := p.Verify(Request{Secrets: secrets, ReceivedAt: stripeTime})
			if v.OK == p.NeedsSecret {
				t.Errorf("%s with %d secrets: OK = %v", name, len(secrets), v.OK)
			}
			if v.OK == (v.Reason != "") || v.Verified {
				t.Errorf("%s with %d secrets: verdict %+v", name, len(secrets), v)
			}
		}
	}
}

func TestVerifyChoosesByTheEndpoint(t *testing.T) {
	t.Parallel()
	in := relay.Incoming{
		Header: http.Header{githubHeader: {githubSignature}},
		Body:   []byte(githubBody), ReceivedAt: stripeTime,
	}
	ep := relay.Endpoint{Provider: "github", Secrets: []relay.Secret{githubSecret}}
	if v := Verify(ep, in); !v.OK || !v.Verified {
		t.Errorf("github: %+v", v)
	}
	ep.Provider = "stripe"
	if v := Verify(ep, in); v.OK || !strings.Contains(v.Reason, stripeHeader) {
		t.Errorf("the same as stripe: %+v", v)
	}
	ep.Provider = "none"
	if v := Verify(ep, in); !v.OK || v.Verified {
		t.Errorf("the same as none: %+v", v)
	}
}

func TestAnUnknownProviderRefusesEverything(t *testing.T) {
	t.Parallel()
	v := Verify(relay.Endpoint{Provider: "stirpe"}, relay.Incoming{})
	if v.OK || v.Reason == "" {
		t.Errorf("verdict %+v, want a refusal with a reason", v)
	}
}

func TestTopLevelStrings(t *testing.T) {
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
			got := topLevelStrings([]byte(tt.body), "id", "type")
			if got["id"] != tt.id || got["type"] != tt.typ {
				t.Errorf("got %q, want id %q and type %q", got, tt.id, tt.typ)
			}
		})
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
