package postern_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The layers of ARCHITECTURE.md, kept. Every package of the module has a row
// below; the most exact one counts, and "x/*" is any one package right under x.
//
// A package may import the standard library, what its row names, and nothing
// else. Its tests may import that, itself, and what testsMay names.

const module = "github.com/posternhq/postern"

// row is what one package, or one kind of package, may import.
type row struct {
	pkg      string   // below the module's path
	may      []string // packages of this module
	outside  []string // packages of other modules, each by its whole path
	testsMay []string // packages that only its tests may import
}

// Two packages with the same parent ("relay/inbox", "relay/tunnel") never name
// each other here. Only relay/node knows them all, and hands them to one another.
var rows = []row{
	{pkg: "protocol",
		outside: []string{
			"github.com/coder/websocket",
			"golang.org/x/net/http/httpproxy",
			"golang.org/x/net/proxy",
		},
		testsMay: []string{"protocol/protocoltest", "github.com/hashicorp/yamux"}}, // the peer to understand
	{pkg: "protocol/protocoltest", may: []string{"protocol"}},
	{pkg: "protocol/api", may: []string{"protocol"}},
	{pkg: "protocol/policy", outside: []string{"golang.org/x/net/idna"}}, // pure
	{pkg: "protocol/outbound", may: []string{"protocol/policy"}, outside: []string{"golang.org/x/sync/singleflight"}},

	{pkg: "relay", may: []string{"protocol", "protocol/policy"},
		outside: []string{"go.yaml.in/yaml/v3", "golang.org/x/net/publicsuffix"}},
	{pkg: "relay/*", may: []string{"protocol", "relay"}, testsMay: []string{"protocol/protocoltest"}},
	{pkg: "relay/auth", may: []string{"relay"}, outside: []string{"github.com/golang-jwt/jwt/v5"}},
	{pkg: "relay/ingress", may: []string{"protocol", "relay"}, outside: []string{"github.com/go-chi/chi/v5"}},
	{pkg: "relay/tunnel", may: []string{"protocol", "relay"}, outside: []string{"golang.org/x/net/http/httpguts"},
		testsMay: []string{"protocol/protocoltest"}},
	{pkg: "relay/dns", may: []string{"protocol/outbound"}, outside: []string{"github.com/miekg/dns"},
		testsMay: []string{"protocol/policy"}},
	{pkg: "relay/egress", may: []string{"protocol", "protocol/policy", "protocol/outbound", "protocol/api", "relay"},
		outside:  []string{"golang.org/x/time/rate"},
		testsMay: []string{"protocol/protocoltest"}},
	{pkg: "relay/policies", may: []string{"protocol", "protocol/policy", "protocol/api", "relay"},
		testsMay: []string{"protocol/protocoltest"}},
	{pkg: "relay/storetest", may: []string{"protocol/policy", "relay"}},
	{pkg: "relay/admin", may: []string{"protocol", "protocol/api", "protocol/policy", "relay"}, outside: []string{"github.com/go-chi/chi/v5"}},
	{pkg: "relay/selftest", may: []string{"protocol", "relay", "agent", "agent/forward"}},
	{pkg: "relay/sqlite", may: []string{"protocol/policy", "relay"},
		outside:  []string{"modernc.org/sqlite", "modernc.org/sqlite/lib"},
		testsMay: []string{"relay/storetest"}},
	{pkg: "relay/node", may: []string{"protocol", "protocol/policy", "protocol/outbound", "relay", "relay/*", "web"},
		outside:  []string{"github.com/go-chi/chi/v5", "github.com/go-chi/chi/v5/middleware"},
		testsMay: []string{"protocol/protocoltest"}},

	{pkg: "agent", may: []string{"agent/*", "protocol"}, testsMay: []string{"protocol/protocoltest"}},
	{pkg: "agent/*", may: []string{"protocol"}, testsMay: []string{"protocol/protocoltest"}},
	{pkg: "agent/run", outside: []string{"golang.org/x/sys/unix"}},
	{pkg: "agent/forward", may: []string{"protocol"}, outside: []string{"golang.org/x/sys/unix"},
		testsMay: []string{"protocol/protocoltest"}},
	{pkg: "agent/egress", may: []string{"protocol", "protocol/policy", "protocol/outbound"},
		testsMay: []string{"protocol/protocoltest"}},
	{pkg: "agent/proc"}, // a leaf: what the kernel says
	{pkg: "agent/doctor", may: []string{"protocol", "agent/proc"}, outside: []string{"golang.org/x/sys/unix"}},
	{pkg: "agent/conceal", outside: []string{"golang.org/x/sys/unix"}},

	{pkg: "web"},
	{pkg: "cmd/postern", may: []string{"agent", "agent/*", "protocol", "protocol/api"}},
	{pkg: "cmd/postern-relay", may: []string{"protocol", "relay", "relay/*"}},
	{pkg: "deploy/demo", outside: []string{"golang.org/x/net/dns/dnsmessage"}}, // it drives the two binaries as anybody would
	{pkg: "."}, // this test
}

// kept is what must never be linked into a binary, however far down.
var kept = map[string][]string{
	"cmd/postern": {"relay", "web", "database/sql", "modernc.org", "github.com/jackc/pgx", "github.com/lib/pq",
		"github.com/miekg", "golang.org/x/net/publicsuffix"},
}

// vague are names that say nothing about what a package gives.
var vague = []string{"internal", "pkg", "util", "utils"}

// pkg is what the rules look at; the fields are those of go list.
type pkg struct {
	ImportPath   string
	Dir          string
	Imports      []string
	TestImports  []string
	XTestImports []string
	Deps         []string

	documented bool // some file of it has a package comment
}

func TestLayersAreKept(t *testing.T) {
	described := packageComments(t)
	for _, system := range []string{"linux", "darwin"} {
		pkgs := list(t, system)
		if len(pkgs) < len(rows)/2 {
			t.Fatalf("go list found %d packages, which cannot be all", len(pkgs))
		}
		for i := range pkgs {
			pkgs[i].documented = described[pkgs[i].Dir]
		}
		for _, fault := range check(pkgs) {
			t.Errorf("%s: %s", system, fault)
		}
	}
}

// list asks the go command for every package of the module as system sees it.
func list(t *testing.T, system string) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,TestImports,XTestImports,Deps", "./...")
	cmd.Env = append(os.Environ(), "GOOS="+system, "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		pkgs = append(pkgs, p)
	}
}

// packageComments tells which folders hold a package with a package comment. It
// reads every Go file itself: the go command does not know what its own child
// process has read, and would call a result from before a change still good.
func packageComments(t *testing.T) map[string]bool {
	t.Helper()
	root, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	err = filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "node_modules" || d.Name() == "bin" || strings.HasPrefix(d.Name(), ".")):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(file, ".go"):
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		if parsed.Doc != nil && !strings.HasSuffix(file, "_test.go") {
			found[filepath.Dir(file)] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// check names every breach in pkgs.
func check(pkgs []pkg) []string {
	var faults []string
	fault := func(p pkg, format string, args ...any) {
		faults = append(faults, short(p.ImportPath)+" "+fmt.Sprintf(format, args...))
	}
	for _, p := range pkgs {
		name := short(p.ImportPath)
		for part := range strings.SplitSeq(name, "/") {
			if slices.Contains(vague, part) {
				fault(p, "has %q in its path, which does not say what it gives", part)
			}
		}
		if !p.documented && name != "." {
			fault(p, "has no package comment")
		}
		r, ok := rowOf(name)
		if !ok {
			fault(p, "is in no layer; give it a row")
			continue
		}
		for _, imported := range p.Imports {
			if !r.allows(imported) {
				fault(p, "imports %s", short(imported))
			}
		}
		for _, imported := range append(p.TestImports, p.XTestImports...) {
			if !r.allows(imported) && imported != p.ImportPath && !matches(r.testsMay, short(imported)) {
				fault(p, "imports %s in a test", short(imported))
			}
		}
		for _, linked := range p.Deps {
			for _, never := range kept[name] {
				if short(linked) == never || strings.HasPrefix(short(linked), never+"/") {
					fault(p, "links %s", short(linked))
				}
			}
		}
	}
	return faults
}

// short is an import path below the module, "." for its root, or any other one
// as it is.
func short(importPath string) string {
	if importPath == module {
		return "."
	}
	return strings.TrimPrefix(importPath, module+"/")
}

// rowOf finds name's row: its own, else that of its kind.
func rowOf(name string) (row, bool) {
	for _, pattern := range []string{name, path.Dir(name) + "/*"} {
		for _, r := range rows {
			if r.pkg == pattern {
				return r, true
			}
		}
	}
	return row{}, false
}

// allows reports whether code of r's package may import importPath.
func (r row) allows(importPath string) bool {
	name := short(importPath)
	if name == "relay/storetest" { // only by name, and only in tests
		return false
	}
	ours := name != importPath || name == module
	domain, _, _ := strings.Cut(importPath, "/")
	return !ours && !strings.Contains(domain, ".") || // the standard library
		ours && matches(r.may, name) ||
		!ours && slices.Contains(r.outside, importPath)
}

func matches(patterns []string, name string) bool {
	return slices.Contains(patterns, name) || slices.Contains(patterns, path.Dir(name)+"/*")
}

// The rules themselves: each breach, put into a list that is otherwise good,
// must be reported, or the test above proves nothing.
func TestEachBreachOfTheLayersIsReported(t *testing.T) {
	t.Parallel()
	ours := func(names ...string) []string {
		for i := range names {
			names[i] = module + "/" + names[i]
		}
		return names
	}
	good := func(name string) pkg {
		return pkg{ImportPath: module + "/" + name, Imports: []string{"context", "net/http"}, documented: true}
	}
	tests := []struct {
		name   string
		pkg    string
		change func(*pkg)
		want   string
	}{
		{"protocol knows nothing above it", "protocol",
			func(p *pkg) { p.Imports = ours("relay") }, "protocol imports relay"},
		{"protocol's tests know nothing above it either", "protocol",
			func(p *pkg) { p.XTestImports = ours("agent") }, "protocol imports agent in a test"},
		{"protocol has few dependencies", "protocol",
			func(p *pkg) { p.Imports = []string{"github.com/go-chi/chi/v5"} }, "protocol imports github.com/go-chi/chi/v5"},
		{"a peer for tests stays in tests", "protocol",
			func(p *pkg) { p.Imports = []string{"github.com/hashicorp/yamux"} }, "protocol imports github.com/hashicorp/yamux"},
		{"the nouns know no machinery", "relay",
			func(p *pkg) { p.Imports = ours("relay/tunnel") }, "relay imports relay/tunnel"},
		{"the nouns reach no database", "relay",
			func(p *pkg) { p.Imports = []string{"modernc.org/sqlite"} }, "relay imports modernc.org/sqlite"},
		{"siblings under relay do not import one another", "relay/inbox",
			func(p *pkg) { p.Imports = ours("relay/tunnel") }, "relay/inbox imports relay/tunnel"},
		{"nor in tests", "relay/ingress",
			func(p *pkg) { p.TestImports = ours("relay/inbox") }, "relay/ingress imports relay/inbox in a test"},
		{"nobody imports the node", "relay/inbox",
			func(p *pkg) { p.Imports = ours("relay/node") }, "relay/inbox imports relay/node"},
		{"the relay does not import the agent", "relay/node",
			func(p *pkg) { p.Imports = ours("agent") }, "relay/node imports agent"},
		{"the stores' suite is for stores", "relay/inbox",
			func(p *pkg) { p.TestImports = ours("relay/storetest") }, "relay/inbox imports relay/storetest in a test"},
		{"and for their tests", "relay/sqlite",
			func(p *pkg) { p.Imports = ours("relay/storetest") }, "relay/sqlite imports relay/storetest"},
		{"not even the node links the stores' suite", "relay/node",
			func(p *pkg) { p.Imports = ours("relay/storetest") }, "relay/node imports relay/storetest"},
		{"siblings under agent do not import one another", "agent/forward",
			func(p *pkg) { p.Imports = ours("agent/run") }, "agent/forward imports agent/run"},
		{"nor their parent", "agent/run",
			func(p *pkg) { p.Imports = ours("agent") }, "agent/run imports agent"},
		{"the agent does not import the relay", "agent",
			func(p *pkg) { p.Imports = ours("relay") }, "agent imports relay"},
		{"nor does a part of it", "agent/forward",
			func(p *pkg) { p.Imports = ours("relay/tunnel") }, "agent/forward imports relay/tunnel"},
		{"the agent's command links no database", "cmd/postern",
			func(p *pkg) { p.Deps = []string{"io", "database/sql"} }, "cmd/postern links database/sql"},
		{"nor a driver", "cmd/postern",
			func(p *pkg) { p.Deps = []string{"modernc.org/sqlite/lib"} }, "cmd/postern links modernc.org/sqlite/lib"},
		{"nor pages", "cmd/postern",
			func(p *pkg) { p.Deps = ours("web") }, "cmd/postern links web"},
		{"nor any of the relay, through whatever", "cmd/postern",
			func(p *pkg) { p.Deps = ours("agent", "relay/auth") }, "cmd/postern links relay/auth"},
		{"pages import nothing", "web",
			func(p *pkg) { p.Imports = ours("relay") }, "web imports relay"},
		{"every package says what it is for", "relay/inbox",
			func(p *pkg) { p.documented = false }, "relay/inbox has no package comment"},
		{"no internal", "internal/clock", nil, `internal/clock has "internal" in its path`},
		{"no util", "relay/util", nil, `relay/util has "util" in its path`},
		{"every package has a layer", "sundry", nil, "sundry is in no layer"},
		{"also one of another module with our beginning", "relay",
			func(p *pkg) { p.Imports = []string{module + "-extras/relay"} }, "relay imports " + module + "-extras/relay"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			p := good(test.pkg)
			if test.change != nil {
				if faults := check([]pkg{p}); len(faults) > 0 {
					t.Fatalf("faults before the breach: %q", faults)
				}
				test.change(&p)
			}
			faults := check([]pkg{p})
			if !slices.ContainsFunc(faults, func(s string) bool { return strings.HasPrefix(s, test.want) }) {
				t.Errorf("reported %q, want %q", faults, test.want)
			}
		})
	}
}
