package relay

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// maxManifestErrors is how many problems one ParseManifest reports: enough to
// repair a file in few rounds, few enough to read.
const maxManifestErrors = 20

// ManifestError is one problem of a manifest.
type ManifestError struct {
	File    string
	Line    int // from 1
	Column  int // from 1, in characters
	Message string
}

func (e ManifestError) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Message)
}

// ManifestErrors is everything found wrong with a manifest, sorted by position.
// It prints one problem on each line.
type ManifestErrors []ManifestError

func (e ManifestErrors) Error() string {
	lines := make([]string, len(e))
	for i, err := range e {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "\n")
}

// sorted orders e by position, drops what was found twice (an anchor's content
// is read once for each alias) and keeps the first maxManifestErrors.
func (e ManifestErrors) sorted() ManifestErrors {
	slices.SortStableFunc(e, func(a, b ManifestError) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Message, b.Message))
	})
	e = slices.Compact(e)
	return e[:min(len(e), maxManifestErrors)]
}
