package relay

import (
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Manifest is the declared state of the relay: which apps exist, their webhook
// endpoints, who may reach them. It is read from one YAML file, refused whole
// when anything in it is wrong, and then applied as one value that nobody
// changes.
//
// A nil *Manifest is a relay without a manifest: it declares nothing.
type Manifest struct {
	Apps   map[AppID]App
	Egress GlobalEgress

	// Unused names the sections of the file, sorted, that were checked but that
	// this version does not act on ("apps.shop.debug"), so that the relay can
	// say once that they are without effect.
	Unused []string

	hosts map[string]AppID // Ingress.Hosts of all apps, made by ParseManifest
}

// App is the app that the manifest declares under id.
func (m *Manifest) App(id AppID) (App, bool) {
	if m == nil {
		return App{}, false
	}
	app, ok := m.Apps[id]
	return app, ok
}

// AppByHost is the app that names host among its Ingress.Hosts. The caller cuts
// off the port; letter case and one trailing dot do not matter. The built-in
// <app>.<domain> names are not the manifest's and are not found here.
func (m *Manifest) AppByHost(host string) (App, bool) {
	if m == nil {
		return App{}, false
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if m.hosts != nil {
		return m.App(m.hosts[host])
	}
	// A Manifest written as a literal, in a test, has no index.
	for _, app := range m.Apps {
		if slices.Contains(app.Ingress.Hosts, host) {
			return app, true
		}
	}
	return App{}, false
}

// Endpoint is the webhook endpoint /hooks/<app>/<name>.
func (m *Manifest) Endpoint(app AppID, name string) (Endpoint, bool) {
	a, ok := m.App(app)
	if !ok {
		return Endpoint{}, false
	}
	endpoint, ok := a.Endpoints[name]
	return endpoint, ok
}

// ManifestOptions is what the reader of a manifest needs to know of the world,
// which this package never looks at by itself. The zero value knows no
// variable and no file, and believes every provider name.
type ManifestOptions struct {
	// Env looks up the variable of a secret {env: NAME}; nil knows none.
	Env func(name string) (string, bool)
	// ReadFile reads the file of a secret {file: /path}; nil finds none.
	ReadFile func(path string) ([]byte, error)
	// SkipSecrets checks how secrets are written but resolves none, for a
	// manifest that is validated where its secrets are not. The result has no
	// secrets and must not be served.
	SkipSecrets bool

	// Now is the time at which the manifest's own tests are judged: lines expire.
	// Default time.Now.
	Now func() time.Time

	// Providers are the known providers besides "none"; nil: do not check.
	Providers []ProviderFacts
	// AppsDomain is the domain under which apps have their built-in names. When
	// set, a host <other app>.<AppsDomain> is refused; "" does not check.
	AppsDomain string
}

// ParseManifest reads the manifest in data. Name is the file's name in errors.
// Every error is a ManifestErrors: at most 20 problems, sorted by position,
// each with line, column and what was expected. No secret value, and nothing
// that was written where a secret belongs, is ever part of an error.
//
//	ParseManifest
//	├── parseYAML            bytes to one tree: size, UTF-8, syntax, one document
//	├── expandAliases        anchors and merge keys, within a budget
//	└── manifestReader
//	    ├── checkVersion
//	    └── readManifest
//	        ├── checkSecrets                           (not acted on)
//	        ├── readGlobalEgress ─ readHole, readEgressTest, readRollout
//	        ├── readApp
//	        │   ├── readIngress ─ readHosts, readBasicAuth
//	        │   ├── readEndpoint ─ readProvider, readSecrets, readHMAC, readRetry
//	        │   │   └── readFanOut ─ readURL, readFilter
//	        │   ├── readQuota
//	        │   ├── readEgress ─ readRule, readDeny, readLimits
//	        │   └── checkDebug                         (not acted on)
//	        └── runTests                               egress.tests, once all is read
func ParseManifest(name string, data []byte, opts ManifestOptions) (*Manifest, error) {
	if name == "" {
		name = "manifest"
	}
	r := &manifestReader{
		file:   name,
		opts:   opts,
		apps:   map[AppID]bool{},
		named:  map[string]bool{},
		quotas: map[string]bool{},
		hosts:  map[string]hostClaim{},
	}
	m := r.read(data)
	if len(r.errs) > 0 {
		return nil, r.errs.sorted()
	}
	slices.Sort(m.Unused)
	return m, nil
}

func (r *manifestReader) read(data []byte) *Manifest {
	root, ok := r.parseYAML(data)
	if !ok {
		return nil
	}
	root, ok = r.expandAliases(root)
	if !ok {
		return nil
	}
	return r.readManifest(place{node: root})
}

// manifestVersion is the only version of the format so far.
const manifestVersion = 1

// readManifest reads the whole file. Names are collected before what refers to
// them is read, so that the order of sections in the file does not matter.
func (r *manifestReader) readManifest(p place) *Manifest {
	if !r.checkVersion(p) {
		return nil
	}
	f := r.fields(p, "version", "apps", "egress", "secrets")
	r.require(p, f, "version", "apps")

	apps := r.appEntries(f["apps"])
	for _, e := range apps {
		r.apps[AppID(e.name)] = true
	}
	m := &Manifest{Apps: map[AppID]App{}, hosts: map[string]AppID{}}
	if r.checkSecrets(f["secrets"]) {
		r.unused = append(r.unused, "secrets")
	}
	r.collectQuotas(f["egress"])
	m.Egress = r.readGlobalEgress(f["egress"])
	for _, e := range apps {
		app := r.readApp(e)
		m.Apps[app.ID] = app
	}
	for host, claim := range r.hosts {
		m.hosts[host] = claim.app
	}
	m.Unused = r.unused
	if len(r.errs) == 0 {
		r.runTests(m)
	}
	return m
}

// checkVersion runs before everything else: against a file of another version
// every further message would mislead.
func (r *manifestReader) checkVersion(p place) bool {
	if p.node.Kind != yaml.MappingNode {
		r.fail(p, "expected a mapping with the keys version and apps, found %s", kindOf(p.node))
		return false
	}
	for i := 0; i < len(p.node.Content); i += 2 {
		if p.node.Content[i].Value != "version" {
			continue
		}
		v := p.child("version", p.node.Content[i], p.node.Content[i+1])
		if n, ok := r.integer(v); !ok || n != manifestVersion {
			if ok {
				r.fail(v, "expected %d, the only version there is, found %d", manifestVersion, n)
			}
			return false
		}
	}
	return true
}

// appEntries lists the declared apps. An empty "apps:" is refused, unlike other
// empty sections: it is what a half-written file looks like, and would take
// every app away.
func (r *manifestReader) appEntries(p place) []place {
	if p.given() && isNull(p.node) {
		r.fail(p, "expected a mapping of app names, found nothing; to declare no app write {}")
		return nil
	}
	var valid []place
	for _, e := range r.entries(p) {
		if err := AppID(e.name).Validate(); err != nil {
			r.failAt(e.key, "apps", "expected an app name of 1 to 63 characters a-z, 0-9 and inner hyphens, found %s", quote(e.name))
			continue
		}
		valid = append(valid, e)
	}
	return valid
}
