package deploy

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/posternhq/postern/e2e/rig"
)

func TestMain(m *testing.M) { os.Exit(rig.Main(m)) }

// root is the repository, seen from this package.
const root = "../.."

// others are folders of deploy whose tests are elsewhere.
var others = []string{"deploy/demo/", "deploy/examples/", "deploy/buildpack/", "deploy/cnb/"}

// deployFiles are the paths of all files that are tested here, from root, with
// slashes.
func deployFiles(t testing.TB) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(filepath.Join(root, "deploy"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		for _, prefix := range others {
			if strings.HasPrefix(rel, prefix) {
				return nil
			}
		}
		files = append(files, rel)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 30 {
		t.Fatalf("only %d files below deploy, is this the right folder?", len(files))
	}
	return files
}

// read is a file's text; path is from root.
func read(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(path)))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// write puts text into a new file.
func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// swap replaces every old by its new, in pairs, and fails the test when an old
// is not there: then the sample has changed and the test no longer tests it.
func swap(t testing.TB, text string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("the sample does not say %q any more; change the test with it", pairs[i])
		}
		text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
	}
	return text
}
