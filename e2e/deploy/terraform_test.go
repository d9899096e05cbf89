package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
	"sigs.k8s.io/yaml"
)

const terraformDir = "deploy/terraform"

// hetzner are the arguments of the resources that are used, and the attributes
// that they answer with: registry.terraform.io/providers/hetznercloud/hcloud,
// from 1.58 on, which the module asks for.
var hetzner = map[string]struct{ arguments, attributes []string }{
	"hcloud_primary_ip": {
		[]string{"name", "type", "location", "assignee_type", "assignee_id", "auto_delete", "delete_protection", "labels"},
		[]string{"id", "ip_address", "ip_network"},
	},
	"hcloud_volume": {
		[]string{"name", "location", "size", "format", "server_id", "automount", "delete_protection", "labels"},
		[]string{"id", "linux_device"},
	},
	"hcloud_volume_attachment": {[]string{"volume_id", "server_id", "automount"}, []string{"id"}},
	"hcloud_firewall":          {[]string{"name", "labels", "rule", "apply_to"}, []string{"id"}},
	"hcloud_server": {
		[]string{"name", "server_type", "image", "location", "ssh_keys", "firewall_ids", "user_data", "public_net", "labels", "backups", "keep_disk", "delete_protection", "rebuild_protection"},
		[]string{"id", "ipv4_address", "ipv6_address", "status"},
	},
}

// module is the Terraform files, parsed.
type module struct {
	blocks     []*hclsyntax.Block
	traversals []hcl.Traversal // all references, but those to names of the block itself
}

func parseModule(t *testing.T) *module {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, terraformDir, "*.tf"))
	if err != nil || len(files) < 5 {
		t.Fatalf("files %v, %v", files, err)
	}
	m, parser := &module{}, hclparse.NewParser()
	for _, file := range files {
		parsed, diags := parser.ParseHCLFile(file)
		if diags.HasErrors() {
			t.Fatal(diags)
		}
		body := parsed.Body.(*hclsyntax.Body)
		m.blocks = append(m.blocks, body.Blocks...)
		m.traversals = append(m.traversals, references(body)...)
	}
	return m
}

// references are all references in a body, at any depth.
func references(body *hclsyntax.Body) []hcl.Traversal {
	var all []hcl.Traversal
	for _, attr := range body.Attributes {
		all = append(all, attr.Expr.Variables()...)
	}
	for _, block := range body.Blocks {
		all = append(all, references(block.Body)...)
	}
	return all
}

// attribute is the name of the nth step of a reference, "" when it has none.
func attribute(tr hcl.Traversal, n int) string {
	if n < len(tr) {
		if step, ok := tr[n].(hcl.TraverseAttr); ok {
			return step.Name
		}
	}
	return ""
}

// Terraform itself would need the provider, which cannot be had everywhere. This
// is what it would say of references and of arguments' names.
func TestTheModuleRefersToWhatIsThere(t *testing.T) {
	t.Parallel()
	m := parseModule(t)
	declared := map[string]bool{}
	for _, b := range m.blocks {
		switch b.Type {
		case "variable":
			declared["var."+b.Labels[0]] = true
			for _, need := range []string{"description", "type"} {
				if b.Body.Attributes[need] == nil {
					t.Errorf("variable %s has no %s", b.Labels[0], need)
				}
			}
		case "locals":
			for name := range b.Body.Attributes {
				declared["local."+name] = true
			}
		case "resource":
			declared[b.Labels[0]+"."+b.Labels[1]] = true
			known, ok := hetzner[b.Labels[0]]
			if !ok {
				t.Errorf("resource %s is not known to this test", b.Labels[0])
				continue
			}
			for name := range b.Body.Attributes {
				if !slices.Contains(known.arguments, name) {
					t.Errorf("%s.%s: %s takes no argument %s", b.Labels[0], b.Labels[1], b.Labels[0], name)
				}
			}
		}
	}
	used := map[string]bool{}
	for _, tr := range m.traversals {
		name := tr.RootName() + "." + attribute(tr, 1)
		switch tr.RootName() {
		case "path", "rule", "each":
			continue
		case "string", "number", "list", "bool": // types
			continue
		case "app": // of a for expression
			continue
		}
		used[name] = true
		if !declared[name] {
			t.Errorf("%s: %s is declared nowhere", tr.SourceRange(), name)
		}
		if known, ok := hetzner[tr.RootName()]; ok && !slices.Contains(known.attributes, attribute(tr, 2)) {
			t.Errorf("%s: %s has no attribute %s", tr.SourceRange(), name, attribute(tr, 2))
		}
	}
	for name := range declared {
		if strings.HasPrefix(name, "var.") && !used[name] {
			t.Errorf("%s is used nowhere", name)
		}
	}
	var example map[string]bool
	for _, line := range settings(t, read(t, terraformDir+"/terraform.tfvars.example")) {
		if name := strings.Fields(line)[0]; !declared["var."+name] {
			t.Errorf("the example sets %s, which is no variable", name)
		} else if example == nil {
			example = map[string]bool{name: true}
		} else {
			example[name] = true
		}
	}
	for _, b := range m.blocks {
		if b.Type == "variable" && b.Body.Attributes["default"] == nil && !example[b.Labels[0]] {
			t.Errorf("variable %s is required, and not in the example", b.Labels[0])
		}
	}
}

func TestTerraformFormatsTheModuleTheSame(t *testing.T) {
	t.Parallel()
	terraform := program(t, "terraform", "terraform, from HashiCorp")
	cmd := exec.CommandContext(t.Context(), terraform, "fmt", "-check", "-diff", "-recursive", ".")
	cmd.Dir = filepath.Join(root, terraformDir)
	cmd.Env = append(os.Environ(), "CHECKPOINT_DISABLE=1")
	if out, err := cmd.Output(); err != nil {
		t.Errorf("terraform fmt: %v\n%s", err, out)
	}
}

// evaluate works out local.cloud_init as Terraform does, with the example's
// values.
func evaluate(t *testing.T) string {
	t.Helper()
	variables := map[string]cty.Value{"manifest": cty.StringVal("version: 1\napps: {}\n")}
	parser := hclparse.NewParser()
	example, diags := parser.ParseHCLFile(filepath.Join(root, terraformDir, "terraform.tfvars.example"))
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	attrs, _ := example.Body.JustAttributes()
	for name, attr := range attrs {
		v, diags := attr.Expr.Value(nil)
		if diags.HasErrors() {
			t.Fatal(diags)
		}
		variables[name] = v
	}
	file, diags := parser.ParseHCLFile(filepath.Join(root, terraformDir, "cloud-init.tf"))
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	locals := file.Body.(*hclsyntax.Body).Blocks[0].Body.Attributes
	scope := &hcl.EvalContext{
		Functions: functions(t),
		Variables: map[string]cty.Value{
			"var":           cty.ObjectVal(variables),
			"path":          cty.ObjectVal(map[string]cty.Value{"module": cty.StringVal(filepath.Join(root, terraformDir))}),
			"hcloud_volume": cty.ObjectVal(map[string]cty.Value{"data": cty.ObjectVal(map[string]cty.Value{"id": cty.StringVal("4711")})}),
		},
	}
	hosts, diags := locals["hosts"].Expr.Value(scope)
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	scope.Variables["local"] = cty.ObjectVal(map[string]cty.Value{"hosts": hosts})
	v, diags := locals["cloud_init"].Expr.Value(scope)
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	return v.AsString()
}

// functions are those of Terraform's that the module uses.
func functions(t *testing.T) map[string]function.Function {
	of := map[string]function.Function{
		"jsonencode": stdlib.JSONEncodeFunc,
		"join":       stdlib.JoinFunc,
		"concat":     stdlib.ConcatFunc,
		"file": function.New(&function.Spec{
			Params: []function.Parameter{{Name: "path", Type: cty.String}},
			Type:   function.StaticReturnType(cty.String),
			Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
				text, err := os.ReadFile(args[0].AsString())
				return cty.StringVal(string(text)), err
			},
		}),
	}
	of["templatefile"] = function.New(&function.Spec{
		Params: []function.Parameter{{Name: "path", Type: cty.String}, {Name: "vars", Type: cty.DynamicPseudoType}},
		Type:   function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			text, err := os.ReadFile(args[0].AsString())
			if err != nil {
				return cty.NilVal, err
			}
			expr, diags := hclsyntax.ParseTemplate(text, args[0].AsString(), hcl.InitialPos)
			if diags.HasErrors() {
				return cty.NilVal, diags
			}
			v, diags := expr.Value(&hcl.EvalContext{Functions: of, Variables: args[1].AsValueMap()})
			if diags.HasErrors() {
				return cty.NilVal, diags
			}
			return v, nil
		},
	})
	return of
}

// What the server is told: strict YAML of cloud-init's keys, the files in it whole.
func TestTheServersCloudInit(t *testing.T) {
	t.Parallel()
	text := evaluate(t)
	if !strings.HasPrefix(text, "#cloud-config\n") {
		t.Error("cloud-init knows it by its first line")
	}
	if len(text) > 32<<10 {
		t.Errorf("%d bytes, Hetzner takes 32 KiB", len(text))
	}
	var init struct {
		Package_update, Package_upgrade bool
		Packages                        []string
		Mounts                          [][]string
		Write_files                     []struct{ Path, Content, Permissions string }
		Runcmd                          [][]string
	}
	if err := yaml.UnmarshalStrict([]byte(text), &init); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	files := map[string]string{}
	for _, f := range init.Write_files {
		files[f.Path] = f.Content
		if f.Path == "/etc/postern/relay.env" && f.Permissions != "0600" {
			t.Errorf("%s has mode %q", f.Path, f.Permissions)
		}
	}
	for path, sample := range map[string]string{
		"/etc/systemd/system/postern-relay.service": "deploy/systemd/postern-relay.service",
		"/usr/lib/sysusers.d/postern.conf":          "deploy/systemd/postern.sysusers.conf",
		"/usr/local/sbin/postern-install":           "deploy/terraform/install.sh",
	} {
		if files[path] != read(t, sample) {
			t.Errorf("%s is not %s, but\n%s", path, sample, files[path])
		}
	}
	env := settings(t, files["/etc/postern/relay.env"])
	for _, want := range []string{"POSTERN_PUBLIC_URL=https://relay.example.com", "POSTERN_APPS_DOMAIN=apps.example.com", "POSTERN_LISTEN=127.0.0.1:8080"} {
		if !slices.Contains(env, want) {
			t.Errorf("the settings are %q, without %s", env, want)
		}
	}
	if caddy := files["/etc/caddy/Caddyfile.postern"]; !strings.Contains(caddy, "\nrelay.example.com, shop.apps.example.com {\n") || !strings.Contains(caddy, "reverse_proxy 127.0.0.1:8080 {") {
		t.Errorf("the Caddyfile is\n%s", caddy)
	}
	if m := init.Mounts; len(m) != 1 || m[0][0] != "/dev/disk/by-id/scsi-0HC_Volume_4711" || m[0][1] != "/var/lib/postern" {
		t.Errorf("mounts %v", m)
	}
	if first := init.Runcmd[0]; len(first) != 3 || !regexp.MustCompile(`^[0-9a-f]{64}$`).MatchString(first[2]) {
		t.Errorf("the first command is %v", first)
	}
}

// Bicep's compiler cannot be had here: the least is that what is opened is closed,
// and that every name is declared.
func TestTheBicepFile(t *testing.T) {
	t.Parallel()
	text := regexp.MustCompile(`(?m)//.*$`).ReplaceAllString(strings.ReplaceAll(read(t, "deploy/azure/main.bicep"), "https://", ""), "")
	declared := []string{"resourceGroup", "string"}
	for _, m := range regexp.MustCompile(`(?m)^(?:param|var|resource|output) (\w+)`).FindAllStringSubmatch(text, -1) {
		declared = append(declared, m[1])
	}
	bare := regexp.MustCompile(`'[^']*'`).ReplaceAllString(text, "''")
	var stack []rune
	closes := map[rune]rune{'}': '{', ']': '[', ')': '('}
	for i, r := range bare {
		switch r {
		case '{', '[', '(':
			stack = append(stack, r)
		case '}', ']', ')':
			if len(stack) == 0 || stack[len(stack)-1] != closes[r] {
				t.Fatalf("%q at %d closes nothing", r, i)
			}
			stack = stack[:len(stack)-1]
		}
	}
	if len(stack) > 0 || strings.Count(text, "'")%2 != 0 {
		t.Errorf("not closed: %q", stack)
	}
	used := regexp.MustCompile(`\$\{(\w+)`).FindAllStringSubmatch(text, -1)
	used = append(used, regexp.MustCompile(`(?m)^\s+\w+: (\w+)(?:\.\w+|\(.*\))?$`).FindAllStringSubmatch(bare, -1)...)
	used = append(used, regexp.MustCompile(`\w\((\w+)\)`).FindAllStringSubmatch(bare, -1)...)
	if len(used) < 10 {
		t.Errorf("found %d names, is this test looking at them?", len(used))
	}
	for _, m := range used {
		if !slices.Contains(append(declared, "true", "false"), m[1]) {
			t.Errorf("%s is declared nowhere", m[1])
		}
	}
	for _, m := range regexp.MustCompile(`resource \w+ '([^']+)'`).FindAllStringSubmatch(text, -1) {
		if !regexp.MustCompile(`^Microsoft\.Web/\w+@\d{4}-\d{2}-\d{2}$`).MatchString(m[1]) {
			t.Errorf("resource type %s", m[1])
		}
	}
	if grace := regexp.MustCompile(`var grace = (\d+)`).FindStringSubmatch(text); grace == nil || len(grace[1]) > 3 || grace[1] > "120" {
		t.Errorf("Azure's limit is 120 s: %v", grace)
	}
}
