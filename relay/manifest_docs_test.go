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
	if len(blocks) < 7 {
		t.Fatalf("%d examples found", len(blocks))
	}
	for _, block := range blocks {
		example, _, _ := strings.Cut(block, "```")
		name, _, _ := strings.Cut(example, "\n")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opts := ManifestOptions{SkipSecrets: true}
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
	const partner = "secrets: {partner: {env: PARTNER_KEY}}\n"
	switch {
	case strings.HasPrefix(example, "version:"):
		return example
	case strings.HasPrefix(example, "secrets:"), strings.HasPrefix(example, "egress:\n  deny:"):
		return "version: 1\napps: {shop: {}}\n" + example
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
