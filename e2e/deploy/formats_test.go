package deploy

import (
	"encoding/json"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
	"github.com/santhosh-tekuri/jsonschema/v6"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// schemas says which file has which schema in testdata.
var schemas = map[string]string{
	"deploy/fly/relay.toml":       "fly",
	"deploy/fly/agent.toml":       "fly",
	"deploy/render/render.yaml":   "render",
	"deploy/railway/railway.json": "railway",
	"deploy/railway/agent.json":   "railway",
	"deploy/cf/manifest.yml":      "cf",
	"deploy/cf/manifest-run.yml":  "cf",
	"deploy/dokku/app.json":       "dokku",
}

// values reads a file strictly: a key that stands twice is an error.
func values(t testing.TB, file string) any {
	t.Helper()
	text := read(t, file)
	var v any
	var err error
	switch path.Ext(file) {
	case ".toml":
		_, err = toml.Decode(text, &v)
	case ".json":
		// YAML's reader, because JSON's own takes a key that stands twice.
		if err = yaml.UnmarshalStrict([]byte(text), &v); err == nil {
			err = json.Unmarshal([]byte(text), &v)
		}
	default:
		err = yaml.UnmarshalStrict([]byte(text), &v)
	}
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	// What the schema's program knows are JSON's types.
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	plain, err := jsonschema.UnmarshalJSON(strings.NewReader(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

func schema(t testing.TB, name string) *jsonschema.Schema {
	t.Helper()
	file, err := os.Open(filepath.Join("testdata", name+".schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	doc, err := jsonschema.UnmarshalJSON(file)
	if err != nil {
		t.Fatalf("%s: %v", file.Name(), err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource(name, doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile(name)
	if err != nil {
		t.Fatalf("%s: %v", file.Name(), err)
	}
	return s
}

func TestThePlatformsWouldTakeTheFiles(t *testing.T) {
	t.Parallel()
	for file, name := range schemas {
		if err := schema(t, name).Validate(values(t, file)); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// Every file of a structured format is read at least, schema or not.
func TestEveryFileParses(t *testing.T) {
	t.Parallel()
	parsed := 0
	for _, file := range deployFiles(t) {
		switch path.Ext(file) {
		case ".toml", ".json", ".yaml", ".yml":
			if strings.Contains(file, "/templates/") || file == "deploy/helm/sidecar.yaml" {
				continue // see chart_test.go
			}
			values(t, file)
			parsed++
		}
	}
	if parsed < 12 {
		t.Errorf("parsed %d files", parsed)
	}
}

// cloudRun is what Cloud Run takes of a Service and a WorkerPool. Its containers
// are Kubernetes' own, of which it takes a part.
// cloud.google.com/run/docs/reference/yaml/v1 and …/reference/rest/v1/namespaces.workerpools
type cloudRun struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        metav1.ObjectMeta `json:"metadata"`
	Spec            struct {
		Template struct {
			Metadata metav1.ObjectMeta `json:"metadata"`
			Spec     struct {
				ContainerConcurrency *int64             `json:"containerConcurrency"`
				TimeoutSeconds       *int64             `json:"timeoutSeconds"`
				ServiceAccountName   string             `json:"serviceAccountName"`
				Containers           []corev1.Container `json:"containers"`
				Volumes              []corev1.Volume    `json:"volumes"`
			} `json:"spec"`
		} `json:"template"`
	} `json:"spec"`
}

func TestCloudRunWouldTakeTheFiles(t *testing.T) {
	t.Parallel()
	for file, kind := range map[string][2]string{
		"deploy/cloudrun/service.yaml":    {"serving.knative.dev/v1", "Service"},
		"deploy/cloudrun/workerpool.yaml": {"run.googleapis.com/v1", "WorkerPool"},
	} {
		var c cloudRun
		if err := yaml.UnmarshalStrict([]byte(read(t, file)), &c); err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if c.APIVersion != kind[0] || c.Kind != kind[1] {
			t.Errorf("%s is a %s of %s", file, c.Kind, c.APIVersion)
		}
		ports := 0
		for _, container := range c.Spec.Template.Spec.Containers {
			ports += len(container.Ports)
			if container.Image == "" || container.Resources.Limits.Memory().IsZero() {
				t.Errorf("%s: container %q without image or memory", file, container.Name)
			}
		}
		// Exactly one container of a service takes requests; a worker pool's none.
		if want := map[string]int{"Service": 1}[c.Kind]; ports != want {
			t.Errorf("%s: %d ports, want %d", file, ports, want)
		}
		// What keeps a tunnel alive between requests.
		if a := c.Spec.Template.Metadata.Annotations; c.Kind == "Service" &&
			(a["run.googleapis.com/cpu-throttling"] != "false" || a["autoscaling.knative.dev/minScale"] != "1") {
			t.Errorf("%s: a tunnel needs CPU between requests: %v", file, a)
		}
		if c.Kind == "Service" && *c.Spec.Template.Spec.TimeoutSeconds > 3600 {
			t.Errorf("%s: Cloud Run allows 3600 s", file)
		}
	}
}
