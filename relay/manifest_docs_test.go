package relay

import (
	"os"
	"strings"
	"testing"
)

// Every example of the reference must be accepted by the reader it describes.
func TestTheExamplesOfTheReferenceAreRead(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../docs/manifest.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(data), "```yaml\n")[1:]
	if len(blocks) < 10 {
		t.Fatalf("%d examples found", len(blocks))
	}
	for _, block := range blocks {
		example, _, _ := strings.Cut(block, "```")
		name, _, _ := strings.Cut(example, "\n")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opts := ManifestOptions{SkipSecrets: true, Providers: testProviders}
			if _, err := ParseManifest("docs", []byte(asManifest(example)), opts); err != nil {
				t.Errorf("%v\n%s", err, example)
			}
		})
	}
}

// asManifest puts an example that shows one section into the rest of a manifest.
func asManifest(example string) string {
	indent := func(s, by string) string {
		return by + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n"+by) + "\n"
	}
	const partner = "secrets: {partner: {env: PARTNER_KEY}}\negress: {quotas: {partner: {rps: 1}}}\n"
	switch {
	case strings.HasPrefix(example, "version:"):
		return example
	case strings.HasPrefix(example, "secrets:"), strings.HasPrefix(example, "egress:\n  deny:"), strings.HasPrefix(example, "egress:\n  rollout:"):
		return "version: 1\napps: {shop: {egress: {allow: [https://api.stripe.com]}}}\n" + example
	default:
		return "version: 1\napps:\n  shop:\n" + indent(example, "    ") + partner
	}
}

func TestTheErrorsOfTheReferenceAreReal(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../docs/manifest.md")
	if err != nil {
		t.Fatal(err)
	}
	const manifest = `version: 1
apps:
  shop:
    endpoint: {}
  blog:
    endpoints:
      github:
        provider: github
        rate: fast
        mode: sync
        secrets:
          - {env: GITHUB_SECRET}
`
	_, err = ParseManifest("postern.yaml", []byte(manifest), ManifestOptions{})
	if err == nil || !strings.Contains(string(data), "```\n"+err.Error()+"\n```") {
		t.Errorf("the reference does not show\n%v", err)
	}
}

// A key that the reader takes and the reference does not know is one that nobody
// finds.
func TestEveryKeyIsInTheReference(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../docs/manifest.md")
	if err != nil {
		t.Fatal(err)
	}
	const wrong = "{?: 0}" // an unknown key makes the reader tell those that it knows
	endpoint := func(s string) string { return "{endpoints: {e: {provider: none, " + s + "}}}" }
	sections := map[string]string{
		"app":         wrong,
		"ingress":     "{ingress: " + wrong + "}",
		"quota":       "{quota: " + wrong + "}",
		"endpoint":    "{endpoints: {e: " + wrong + "}}",
		"hmac":        endpoint("hmac: " + wrong),
		"timestamp":   endpoint("hmac: {timestamp: " + wrong + "}"),
		"breaker":     endpoint("breaker: " + wrong),
		"redact":      endpoint("redact: " + wrong),
		"retention":   endpoint("retention: " + wrong),
		"destination": endpoint("fan_out: [" + wrong + "]"),
	}
	for name, section := range sections {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			section = strings.ReplaceAll(section, "?", "unheard-of")
			_, message, found := strings.Cut(parseErrors(t, "version: 1\napps: {a: "+section+"}\n", ManifestOptions{}), `unknown key "unheard-of"; expected one of `)
			if !found {
				t.Fatal("the reader does not tell its keys")
			}
			keys, _, _ := strings.Cut(message, "\n")
			for key := range strings.SplitSeq(keys, ", ") {
				if !strings.Contains(string(data), "`"+key+"`") && !strings.Contains(string(data), key+": ") {
					t.Errorf("the key %q is not in the reference", key)
				}
			}
		})
	}
}
