package deploy

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"sigs.k8s.io/yaml"
)

const chartDir = root + "/deploy/helm/postern"

// objects are the rendered objects, by kind and name.
type objects map[string]any

// decode reads YAML documents strictly into Kubernetes' own types.
func decode(t testing.TB, into objects, text string) {
	t.Helper()
	for doc := range strings.SplitSeq(text, "\n---") {
		doc = strings.TrimPrefix(strings.TrimSpace(doc), "---")
		var head struct {
			Kind     string
			Metadata struct{ Name string }
		}
		if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if head.Kind == "" {
			continue // a template that renders to nothing
		}
		var object any
		switch head.Kind {
		case "StatefulSet":
			object = new(appsv1.StatefulSet)
		case "Deployment":
			object = new(appsv1.Deployment)
		case "Service":
			object = new(corev1.Service)
		case "ConfigMap":
			object = new(corev1.ConfigMap)
		case "Secret":
			object = new(corev1.Secret)
		case "Ingress":
			object = new(networkingv1.Ingress)
		case "PodDisruptionBudget":
			object = new(policyv1.PodDisruptionBudget)
		default:
			t.Fatalf("unexpected kind %s", head.Kind)
		}
		if err := yaml.UnmarshalStrict([]byte(doc), object); err != nil {
			t.Errorf("%s %s: %v in\n%s", head.Kind, head.Metadata.Name, err, doc)
		}
		into[head.Kind+" "+head.Metadata.Name] = object
	}
}

// render is helm template, with values as JSON over the chart's own.
func render(t testing.TB, values string) (objects, error) {
	t.Helper()
	chart, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	var over map[string]any
	if err := json.Unmarshal([]byte(values), &over); err != nil {
		t.Fatal(err)
	}
	vals, err := chartutil.ToRenderValues(chart, over, chartutil.ReleaseOptions{Name: "postern", Namespace: "relay", Revision: 1, IsInstall: true}, nil)
	if err != nil {
		return nil, err // the schema's word
	}
	files, err := engine.Engine{Strict: true}.Render(chart, vals)
	if err != nil {
		t.Fatal(err)
	}
	all := objects{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if filepath.Ext(name) == ".yaml" {
			decode(t, all, files[name])
		} else if strings.HasSuffix(name, "NOTES.txt") && !strings.Contains(files[name], "postern-relay token create") {
			t.Errorf("the notes do not say how to make a token:\n%s", files[name])
		}
	}
	return all, nil
}

const fewValues = `{"publicURL": "https://relay.example.com", "appsDomain": "apps.example.com"}`

const allValues = `{
	"publicURL": "https://relay.example.com", "appsDomain": "apps.example.com",
	"image": {"repository": "registry.example.com/postern-relay", "tag": "1"}, "imagePullSecrets": [{"name": "pull"}],
	"manifest": "version: 1\napps:\n  shop:\n    endpoints:\n      github:\n        provider: github\n        secrets: [{env: GITHUB_SECRET}]\n",
	"secrets": {"GITHUB_SECRET": "a: \"b\" #c"}, "existingSecret": "more", "trustedProxies": ["10.0.0.0/8", "fd00::/8"],
	"env": {"POSTERN_HEARTBEAT": "10s"}, "grace": 60,
	"persistence": {"size": "20Gi", "storageClass": "fast", "annotations": {"a": "b"}},
	"service": {"type": "LoadBalancer", "port": 8000, "annotations": {"a": "b"}},
	"ingress": {"enabled": true, "className": "nginx", "tlsSecret": "both"},
	"podDisruptionBudget": {"enabled": true}, "nodeSelector": {"a": "b"}, "tolerations": [{"key": "a", "operator": "Exists"}],
	"affinity": {"nodeAffinity": {}}, "podAnnotations": {"a": "b"}
}`

func TestTheChartRenders(t *testing.T) {
	t.Parallel()
	few, err := render(t, fewValues)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := slices.Sorted(maps.Keys(few)), []string{"ConfigMap postern", "Service postern", "Service postern-pods", "StatefulSet postern"}; !slices.Equal(got, want) {
		t.Errorf("with few values: %v, want %v", got, want)
	}
	all, err := render(t, allValues)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Secret postern", "Ingress postern", "PodDisruptionBudget postern"} {
		if all[name] == nil {
			t.Errorf("with all values there is no %s", name)
		}
	}
	checkStatefulSet(t, few["StatefulSet postern"].(*appsv1.StatefulSet), 25)
	checkStatefulSet(t, all["StatefulSet postern"].(*appsv1.StatefulSet), 60)
	if t.Failed() {
		return
	}
	if got := all["Secret postern"].(*corev1.Secret).StringData["GITHUB_SECRET"]; got != `a: "b" #c` {
		t.Errorf("a secret with special characters became %q", got)
	}
	if got := all["ConfigMap postern"].(*corev1.ConfigMap).Data["postern.yaml"]; !strings.Contains(got, "\n      github:\n") {
		t.Errorf("the manifest became\n%s", got)
	}
	var hosts []string
	for _, rule := range all["Ingress postern"].(*networkingv1.Ingress).Spec.Rules {
		hosts = append(hosts, rule.Host)
		backend := rule.HTTP.Paths[0].Backend.Service
		if service := all["Service "+backend.Name].(*corev1.Service); service.Spec.Ports[0].Port != backend.Port.Number {
			t.Errorf("the ingress sends to %s:%d, which is not there", backend.Name, backend.Port.Number)
		}
	}
	if want := []string{"relay.example.com", "*.apps.example.com"}; !slices.Equal(hosts, want) {
		t.Errorf("the ingress has %v, want %v", hosts, want)
	}
}

// checkStatefulSet checks what a relay in Kubernetes stands on.
func checkStatefulSet(t *testing.T, set *appsv1.StatefulSet, grace int64) {
	t.Helper()
	pod := set.Spec.Template.Spec
	relay := pod.Containers[0]
	env := map[string]string{}
	for _, e := range relay.Env {
		env[e.Name] = e.Value
	}
	mounts := map[string]string{}
	for _, m := range relay.VolumeMounts {
		mounts[m.Name] = m.MountPath
	}
	expect := func(what string, ok bool) {
		if !ok {
			t.Errorf("grace %d: %s", grace, what)
		}
	}
	expect("one replica", *set.Spec.Replicas == 1)
	expect("more time than the relay's grace", *pod.TerminationGracePeriodSeconds >= grace+2)
	expect("the relay knows its grace", env["POSTERN_GRACE"] == fmt.Sprintf("%ds", grace))
	expect("the data are on the claimed volume", mounts["data"] != "" && strings.HasPrefix(env["POSTERN_DATA"], mounts["data"]+"/"))
	expect("a volume is claimed", len(set.Spec.VolumeClaimTemplates) == 1 && set.Spec.VolumeClaimTemplates[0].Name == "data")
	expect("the manifest is mounted where the relay looks", filepath.Dir(env["POSTERN_MANIFEST"]) == mounts["manifest"])
	expect("the relay listens where the ports say", env["POSTERN_LISTEN"] == fmt.Sprintf("0.0.0.0:%d", relay.Ports[0].ContainerPort))
	expect("the admin listener stays on loopback", env["POSTERN_ADMIN_LISTEN"] == "")
	expect("readiness is /readyz", relay.ReadinessProbe.HTTPGet.Path == "/readyz")
	expect("liveness is /healthz", relay.LivenessProbe.HTTPGet.Path == "/healthz" && relay.StartupProbe.HTTPGet.Path == "/healthz")
	expect("a start may wait a minute for the lock", relay.StartupProbe.PeriodSeconds*relay.StartupProbe.FailureThreshold > 60)
	security := relay.SecurityContext
	expect("no root, no powers", *pod.SecurityContext.RunAsNonRoot && *security.ReadOnlyRootFilesystem &&
		!*security.AllowPrivilegeEscalation && slices.Equal(security.Capabilities.Drop, []corev1.Capability{"ALL"}))
	expect("no token of the cluster", !*pod.AutomountServiceAccountToken)
	for key, value := range set.Spec.Selector.MatchLabels {
		expect("the selector finds the pods", set.Spec.Template.Labels[key] == value)
	}
}

// The schema refuses what would only fail later, or not at all.
func TestTheChartRefusesWrongValues(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ about, values, word string }{
		{"no names", `{}`, "publicURL"},
		{"an unknown value", `{"publicURL": "https://relay.example.com", "appsDomain": "apps.example.com", "replicas": 2}`, "replicas"},
		{"a path in the URL", `{"publicURL": "https://relay.example.com/x", "appsDomain": "apps.example.com"}`, "publicURL"},
		{"a variable that is not the relay's", `{"publicURL": "https://relay.example.com", "appsDomain": "apps.example.com", "env": {"DATABASE_URL": "x"}}`, "DATABASE_URL"},
		{"a number as a secret", `{"publicURL": "https://relay.example.com", "appsDomain": "apps.example.com", "secrets": {"A": 1}}`, "secrets"},
	} {
		_, err := render(t, c.values)
		if err == nil || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v, want an error about %s", c.about, err, c.word)
		}
	}
}

func TestHelmLintLikesTheChart(t *testing.T) {
	t.Parallel()
	var values map[string]any
	if err := json.Unmarshal([]byte(allValues), &values); err != nil {
		t.Fatal(err)
	}
	for _, m := range lint.AllWithKubeVersion(chartDir, values, "relay", nil).Messages {
		if m.Severity >= support.WarningSev {
			t.Errorf("helm lint: %v", m)
		}
	}
}

// The snippet is as strict as the chart, and the agent dials the app's port.
func TestTheSidecar(t *testing.T) {
	t.Parallel()
	all := objects{}
	decode(t, all, read(t, "deploy/helm/sidecar.yaml"))
	pod := all["Deployment shop"].(*appsv1.Deployment).Spec.Template.Spec
	env := map[string]map[string]string{}
	for _, c := range pod.Containers {
		env[c.Name] = map[string]string{}
		for _, e := range c.Env {
			env[c.Name][e.Name] = e.Value
		}
	}
	if to, want := env["postern"]["POSTERN_TO"], "127.0.0.1:"+env["shop"]["PORT"]; to != want {
		t.Errorf("the agent dials %s, the app listens on %s", to, want)
	}
	if _, ok := env["shop"]["POSTERN_TOKEN"]; ok {
		t.Error("the app has the token")
	}
}
