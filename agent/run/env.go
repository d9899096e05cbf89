package run

import (
	"slices"
	"strings"
)

// secrets holds the agent's credential, and the way to it between two starts of the
// agent (see agent/conceal). No app ever gets them: whoever can run code in the app
// could then speak for it.
var secrets = []string{"POSTERN_TOKEN", "POSTERN_TOKEN_FD"}

// ChildEnv returns environ without POSTERN_TOKEN, POSTERN_TOKEN_FD and the variables
// named in remove; names are compared exactly. The rest keeps its order, odd entries and
// duplicates included. environ itself is not changed.
func ChildEnv(environ []string, remove ...string) []string {
	kept := make([]string, 0, len(environ))
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		if !slices.Contains(secrets, name) && !slices.Contains(remove, name) {
			kept = append(kept, entry)
		}
	}
	return kept
}
