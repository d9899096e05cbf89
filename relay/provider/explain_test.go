package provider

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/relay"
)

// explained is a webhook that was damaged, and what Explain says of it.
type explained struct {
	name, sample string
	damage       func(*relay.Endpoint, *relay.Incoming)
	want         string // a part of what is said; "" means nothing is
}

func checkExplained(t *testing.T, cases []explained) {
	t.Helper()
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ep, in := relay.Endpoint{Provider: "none"}, relay.Incoming{}
			if tt.sample != "none" {
				s := sampleOf(tt.sample)
				ep, in = s.make(0, s.body)
			}
			tt.damage(&ep, &in)
			rules := testRules()
			if v := rules.Verify(t.Context(), ep, in); v.OK && tt.sample != "none" {
				t.Fatal("it is accepted, so there is nothing to explain")
			}
			got := rules.Explain(ep, in)
			if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("explanation %q, want %q", got, tt.want)
			}
			for _, secret := range ep.Secrets {
				if secret != "x" && secret != "" && strings.Contains(got, secret.Reveal()) {
					t.Errorf("explanation %q has a secret", got)
				}
			}
		})
	}
}

func TestExplainBodies(t *testing.T) {
	t.Parallel()
	checkExplained(t, []explained{
		{"the line end was cut off", "github", githubDamage("{}\n", "{}"), lostLineEnd},
		{"CR LF was cut off", "sendgrid", func(_ *relay.Endpoint, in *relay.Incoming) { in.Body = []byte(strings.TrimSpace(string(in.Body))) }, lostLineEnd},
		{"a line end was added", "github", githubDamage("{}", "{}\r\n"), "added one"},
		{"line ends were changed", "github", githubDamage("{\n}\n", "{\r\n}\r\n"), changedLineEnds},
		{"a byte order mark", "github", githubDamage("{}", "\ufeff{}"), "byte order mark"},
		{"JSON was indented", "github", githubDamage(`{"b":1,"a":[1,2]}`, "{\n  \"b\": 1,\n  \"a\": [\n    1,\n    2\n  ]\n}"), reserialised},
		{"JSON was compacted", "github", githubDamage("{\n    \"b\": 1\n}", `{"b":1}`), reserialised},
		{"JSON was written by Python", "github", githubDamage(`{"b": "x: \"y, z\"", "a": [1, 2.50]}`, `{"b":"x: \"y, z\"","a":[1,2.50]}`), reserialised},
		{"keys were put in another order", "github", githubDamage(`{"a":"<1>","b":12345678901234567890}`, `{"b":12345678901234567890,"a":"<1>"}`), reserialised},
		{"slashes were escaped", "github", githubDamage(`{"a":"x\/y"}`, `{"a":"x/y"}`), reserialised},
		{"a form was encoded again", "github", githubDamage("b=1&a=x%20y", "b=1&a=x+y"), reencoded},
		{"a form was sorted", "github", githubDamage("a=1&b=2", "b=2&a=1"), reencoded},
	})
}

func TestExplainSecrets(t *testing.T) {
	t.Parallel()
	checkExplained(t, []explained{
		{"a blank around the secret", "github", secretDamage("first secret\n"), "trim the secret"},
		{"quotation marks around the secret", "github", secretDamage(`"first secret"`), "quotation marks"},
		{"the secret has a prefix", "github", secretDamage("whsec_first secret"), "without its whsec_"},
		{"the secret lost its prefix", "stripe", func(ep *relay.Endpoint, in *relay.Incoming) {
			ep.Secrets = []relay.Secret{"abc"}
			in.Header.Set("Stripe-Signature", "t=1750000000,v1="+hexs(sum(sha256.New, "whsec_abc", "1750000000.", string(in.Body))))
		}, "whsec_ in front"},
		{"the secret is encoded", "github", secretDamage(relay.Secret(b64([]byte("first secret")))), "decoded from base64"},
		{"the secret is in hex", "github", secretDamage(relay.Secret(hexs([]byte("first secret")))), "decoded from hex"},
		{"the sender does not decode its key", "standard", func(ep *relay.Endpoint, in *relay.Incoming) {
			ep.Secrets = []relay.Secret{"not base64!"}
			in.Header.Set("Webhook-Signature", "v1,"+b64(sum(sha256.New, "not base64!", "msg_1.1750000000.", string(in.Body))))
		}, "does not decode the key"},
		{"GitLab's token with a line end", "gitlab", secretDamage("first secret\n"), "trim the secret"},
	})
}

func TestExplainURLs(t *testing.T) {
	t.Parallel()
	checkExplained(t, []explained{
		{"http instead of https", "square", urlDamage("http" + sampleURL[5:]), "http instead of https"},
		{"a port", "square", urlDamage("https://relay.example:8443/hooks/shop/x?a=1&b=2"), "without its port"},
		{"no port", "square", func(_ *relay.Endpoint, in *relay.Incoming) {
			in.Header.Set("X-Square-Hmacsha256-Signature", b64(sum(sha256.New, "first secret", strings.Replace(sampleURL, "example", "example:443", 1), string(in.Body))))
		}, "port 443"},
		{"a slash", "square", urlDamage("https://relay.example/hooks/shop/x/?a=1&b=2"), "one slash"},
		{"the host in capitals", "twilio", urlDamage("https://Relay.Example/hooks/shop/x?a=1&b=2"), "lower case"},
		{"a query was added", "hubspot", func(_ *relay.Endpoint, in *relay.Incoming) {
			in.Header.Set("X-HubSpot-Signature-v3", b64(sum(sha256.New, "first secret", "POST", "https://relay.example/x", string(in.Body), "1750000000000")))
			in.PublicURL = "https://relay.example/x?utm=1"
		}, "without its query"},
		{"a query was sorted", "square", urlDamage("https://relay.example/hooks/shop/x?b=2&a=1"), "another order"},
	})
}

func TestExplainAges(t *testing.T) {
	t.Parallel()
	checkExplained(t, []explained{
		{"a replay", "stripe", arrivedDamage(412 * time.Second), "right, but it is 412 s old"},
		{"a clock", "slack", arrivedDamage(-412 * time.Second), "412 s in the future"},
		{"Linear", "linear", arrivedDamage(61 * time.Second), "61 s old"},
	})
}

func TestExplainSchemes(t *testing.T) {
	t.Parallel()
	checkExplained(t, []explained{
		{"SHA-1", "github", signatureDamage("X-Hub-Signature-256", "sha1="+hexs(sum(sha1.New, "first secret", `{"zen":"x"}`))), "HMAC-SHA1 written in hex"},
		{"base64", "github", signatureDamage("X-Hub-Signature-256", b64(sum(sha256.New, "first secret", `{"zen":"x"}`))), "HMAC-SHA256 written in base64"},
		{"SHA-512", "dropbox", signatureDamage("X-Dropbox-Signature", hexs(sum(sha512.New, "first secret", `{"list_folder":{"accounts":["x"]}}`))), "HMAC-SHA512"},
		{"only GitHub's old header", "github", func(_ *relay.Endpoint, in *relay.Incoming) {
			in.Header.Del("X-Hub-Signature-256")
			in.Header.Set("X-Hub-Signature", "sha1=00")
		}, "old SHA-1"},
		{"not signed", "github", func(_ *relay.Endpoint, in *relay.Incoming) { in.Header.Del("X-Hub-Signature-256") }, "not signed"},
		{"GitHub's at Stripe's", "github", func(ep *relay.Endpoint, _ *relay.Incoming) { ep.Provider = "stripe" }, "looks like a webhook of github"},
		{"Meta's at Stripe's", "meta", func(ep *relay.Endpoint, _ *relay.Incoming) { ep.Provider = "stripe" }, "looks like a webhook of github or meta"},
		{"Stripe's at GitHub's", "stripe", func(ep *relay.Endpoint, _ *relay.Incoming) { ep.Provider = "github" }, "looks like a webhook of stripe"},
		{"GitHub's at a declared one's", "github", func(ep *relay.Endpoint, _ *relay.Incoming) {
			ep.Provider, ep.HMAC = "hmac", &relay.HMACScheme{Header: "X-Sig"}
		}, "looks like a webhook of github"},
		{"Stripe's test mode", "stripe", func(ep *relay.Endpoint, in *relay.Incoming) {
			ep.Secrets, in.Body = []relay.Secret{"x"}, []byte(`{"id":"evt","livemode":false}`)
		}, "test mode"},
		{"Stripe's live mode", "stripe", func(ep *relay.Endpoint, in *relay.Incoming) {
			ep.Secrets, in.Body = []relay.Secret{"x"}, []byte(`{"livemode":true}`)
		}, "live mode"},
	})
}

func TestExplainNothing(t *testing.T) {
	t.Parallel()
	checkExplained(t, []explained{
		{"another secret", "github", secretDamage("another"), ""},
		{"another body", "github", func(_ *relay.Endpoint, in *relay.Incoming) { in.Body = []byte("{}") }, ""},
		{"a body too long to look at", "github", githubDamage("{}"+strings.Repeat(" ", maxExplainBody)+"\n", "{}"+strings.Repeat(" ", maxExplainBody)), ""},
		{"a browser", "github", func(_ *relay.Endpoint, in *relay.Incoming) { in.Method, in.Header = "GET", http.Header{} }, ""},
		{"nobody", "none", func(*relay.Endpoint, *relay.Incoming) {}, ""},
	})
}

func githubDamage(signed, arrived string) func(*relay.Endpoint, *relay.Incoming) {
	return func(_ *relay.Endpoint, in *relay.Incoming) {
		in.Header.Set("X-Hub-Signature-256", "sha256="+hexs(sum(sha256.New, "first secret", signed)))
		in.Body = []byte(arrived)
	}
}

func secretDamage(stored relay.Secret) func(*relay.Endpoint, *relay.Incoming) {
	return func(ep *relay.Endpoint, _ *relay.Incoming) { ep.Secrets = []relay.Secret{"an older one", stored} }
}

func urlDamage(known string) func(*relay.Endpoint, *relay.Incoming) {
	return func(_ *relay.Endpoint, in *relay.Incoming) { in.PublicURL = known }
}

func arrivedDamage(after time.Duration) func(*relay.Endpoint, *relay.Incoming) {
	return func(_ *relay.Endpoint, in *relay.Incoming) { in.ReceivedAt = sampleTime.Add(after) }
}

func signatureDamage(name, value string) func(*relay.Endpoint, *relay.Incoming) {
	return func(_ *relay.Endpoint, in *relay.Incoming) { in.Header.Set(name, value) }
}

// Explain runs on what anybody sends, so its cost must have an end.
func TestExplainIsBounded(t *testing.T) {
	t.Parallel()
	s := sampleOf("hmac")
	ep, in := s.make(0, s.body)
	ep.Secrets = nil
	for range 10 {
		ep.Secrets = append(ep.Secrets, "c2VjcmV0")
	}
	p := lookup("hmac")
	for _, size := range []int{10, 100_000, maxExplainBody} {
		in.Body = []byte(`{"a":"` + strings.Repeat("x", size-8) + `"}`)
		x := explainer{row: p, r: request{ctx: context.Background(), rules: testRules(), ep: ep, in: in, trial: true}}
		for _, search := range []func() string{x.secrets, x.bodies, x.urls, x.algorithms} {
			if got := search(); got != "" {
				t.Errorf("explanation %q", got)
			}
		}
		x.attempts = maxAttempts
		if x.holds(x.r) {
			t.Error("it goes on")
		}
	}
	good, fresh := s.make(0, s.body)
	x := explainer{row: p, r: request{ctx: context.Background(), rules: testRules(), ep: good, in: fresh, trial: true}}
	if !x.holds(x.r) {
		t.Error("nothing holds, so the test above says nothing")
	}
	x.attempts = maxAttempts
	if x.holds(x.r) {
		t.Error("it goes on after the last attempt")
	}
}

func TestExplainFetchesNothing(t *testing.T) {
	t.Parallel()
	rules := New(Config{Fetch: func(context.Context, string) ([]byte, error) {
		t.Error("fetched")
		return nil, nil
	}})
	for _, name := range []string{"sns", "paypal"} {
		s := sampleOf(name)
		ep, in := s.make(0, s.body)
		rules.Explain(ep, in)
	}
}
