package run

import (
	"slices"
	"strings"
)

// tokenVariable holds the agent's credential. No app ever gets it: whoever can run
// code in the app could then speak for it.
const tokenVariable = "POSTERN_TOKEN"

// ChildEnv returns environ without POSTERN_TOKEN and without the variables named in
// remove; names are compared exactly. The rest keeps its order, odd entries and
// duplicates included. environ itself is not changed.
func ChildEnv(environ []string, remove ...string) []string {
	kept := make([]string, 0, len(environ))
	for _, entry := range environ {
		name, _, _ := strings.Cut(entry, "=")
		if name != tokenVariable && !slices.Contains(remove, name) {
			kept = append(kept, entry)
		}
	}
	return kept
}
