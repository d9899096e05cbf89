package provider

import (
	"net/http"
	"strings"
	"testing"

	"github.com/posternhq/postern/relay"
)

// The vector of GitHub's documentation, "Validating webhook deliveries".
const (
	githubSecret    = "It's a Secret to Everybody"
	githubBody      = "Hello, World!"
	githubSignature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
)

func TestGitHub(t *testing.T) {
	t.Parallel()
	ours := []relay.Secret{"another", githubSecret}
	for _, tt := range []struct {
		name    string
		header  []string
		body    string
		secrets []relay.Secret
		reason  string // "" means OK
	}{
		{"the documented vector", []string{githubSignature}, githubBody, ours, ""},
		{"tampered body", []string{githubSignature}, githubBody + "\n", ours, "no secret matches the signature (2 tried)"},
		{"empty body", []string{githubSignature}, "", ours, "no secret matches the signature (2 tried)"},
		{"another secret", []string{githubSignature}, githubBody, []relay.Secret{"another"}, "no secret matches the signature (1 tried)"},
		{"no secret", []string{githubSignature}, githubBody, nil, "the endpoint has no secret to check with"},
		{"no header", nil, githubBody, ours, "the header X-Hub-Signature-256 is missing"},
		{"empty header", []string{""}, githubBody, ours, "the header X-Hub-Signature-256 is empty"},
		{"two headers", []string{githubSignature, githubSignature}, githubBody, ours, "the header X-Hub-Signature-256 is there 2 times"},
		{"joined headers", []string{githubSignature + "," + githubSignature}, githubBody, ours, "the header X-Hub-Signature-256 is malformed"},
		{"no prefix", []string{githubSignature[7:]}, githubBody, ours, "the header X-Hub-Signature-256 is malformed"},
		{"the old algorithm", []string{"sha1=" + githubSignature[7:47]}, githubBody, ours, "the header X-Hub-Signature-256 is malformed"},
		{"cut off", []string{githubSignature[:70]}, githubBody, ours, "the header X-Hub-Signature-256 is malformed"},
		{"cut off at a whole byte", []string{githubSignature[:69]}, githubBody, ours, "the header X-Hub-Signature-256 is malformed"},
		{"not hex", []string{"sha256=" + strings.Repeat("zz", 32)}, githubBody, ours, "the header X-Hub-Signature-256 is malformed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := http.Header{}
			h.Set("X-GitHub-Delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958")
			h.Set("X-GitHub-Event", "ping")
			if tt.header != nil {
				h["X-Hub-Signature-256"] = tt.header
			}
			v := verifyGitHub(hook{Header: h, Body: []byte(tt.body), Secrets: tt.secrets})
			if v.Reason != tt.reason || v.OK != (tt.reason == "") || v.Verified != v.OK {
				t.Fatalf("verdict %+v, want reason %q", v, tt.reason)
			}
			if v.OK && (v.DedupeKey != "72d3162e-cc78-11e3-81ab-4c9367dc0958" || v.Type != "ping" || !v.SentAt.IsZero()) {
				t.Errorf("verdict %+v", v)
			}
		})
	}
}

func FuzzGitHubHeader(f *testing.F) {
	f.Add(githubSignature)
	f.Add("sha256=")
	f.Add("sha1=00")
	f.Fuzz(func(t *testing.T, header string) {
		v := verifyGitHub(hook{
			Header: http.Header{"X-Hub-Signature-256": {header}}, Body: []byte(githubBody),
			Secrets: []relay.Secret{githubSecret},
		})
		if v.OK == (v.Reason != "") {
			t.Errorf("verdict %+v", v)
		}
		if v.OK && !strings.EqualFold(header, githubSignature) {
			t.Errorf("%q was accepted", header)
		}
	})
}

func FuzzTopLevelStrings(f *testing.F) {
	f.Add([]byte(stripeBody))
	f.Add([]byte(`{"id":{"id":[]},"type":"\ud800"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, v := range scan(body, "id", "type", "a.b.0") {
			s := v.text
			if label(s) != s && label(s) != "" {
				t.Errorf("label(%q) = %q", s, label(s))
			}
		}
	})
}
