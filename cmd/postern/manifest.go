package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/posternhq/postern/protocol/api"
)

// manifestGroup is postern manifest.
func manifestGroup() verbGroup {
	return verbGroup{
		name: "manifest", about: "the versions of the file that declares apps and what they may call", first: "diff -f postern.yaml",
		notes: `The relay and the token come from POSTERN_RELAY and POSTERN_TOKEN; the token is an
administrator's: postern-relay token create --scope admin
A new version comes into force with postern apply -f FILE.
Flags and examples: postern manifest diff --help
`,
		verbs: []eventVerb{diffVerb, historyVerb, sourceVerb, rollbackVerb, promoteVerb},
	}
}

// runManifest is postern manifest …
//
//	runManifest → runGroup → verbGroup.run → eventVerb.run
//	  diff                       manifest_diff.go
//	  history, show, …           manifest_versions.go
func runManifest(ctx context.Context, args []string) (int, error) {
	return runGroup(ctx, manifestGroup(), args)
}

// What the relay takes and gives of a manifest.
const (
	maxSource  = 8 << 20             // bytes of a text
	maxVersion = 6*maxSource + 1<<20 // bytes of an answer with it: one byte of text may be six in JSON
)

// source is a text of the manifest and what it is called in errors.
type source struct{ name, text string }

// fileFlag gives f the flag --file.
func (f *callFlags) fileFlag() *string {
	return f.str("file", "the manifest: a `FILE`, or - for standard input")
}

// readSource reads the file that --file names.
func (c *console) readSource(f *callFlags, file string) (*source, error) {
	if file == "" {
		return nil, usagef("which file? postern %s -f postern.yaml", f.Name())
	}
	in, name := c.in, "standard input"
	if file != "-" {
		opened, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("the manifest cannot be read: %w", err)
		}
		defer opened.Close()
		in, name = opened, file
	}
	text, err := io.ReadAll(io.LimitReader(in, maxSource+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("the manifest cannot be read: %w", err)
	case len(text) > maxSource:
		return nil, fmt.Errorf("%s has more than 8 MiB, which no manifest may have", name)
	case strings.TrimSpace(string(text)) == "":
		return nil, fmt.Errorf("%s is empty; a manifest begins with: version: 1", name)
	case !utf8.Valid(text):
		return nil, fmt.Errorf("%s is not UTF-8 text", name)
	}
	return &source{name: name, text: string(text)}, nil
}

// place is what stands before each problem of a manifest.
var place = regexp.MustCompile(`(?m)^[^:\n]*:([0-9]+:[0-9]+: )`)

// explain puts the relay's refusal of s into the words of whoever has the file.
func (s *source) explain(err error) error {
	var refused *refusedError
	if !errors.As(err, &refused) {
		return err
	}
	switch {
	case refused.status == http.StatusBadRequest && place.MatchString(refused.message):
		problems := place.ReplaceAllString(refused.message, strings.ReplaceAll(s.name, "$", "$$")+":$1")
		return &sourceError{problems: problems, cause: refused}
	case refused.status == http.StatusConflict:
		refused.hint = fmt.Sprintf("Look at what changed, then apply with the new --base: postern manifest diff -f %s", s.name)
	}
	return err
}

// sourceError is what the relay found wrong with a manifest, a problem a line.
type sourceError struct {
	problems string
	cause    error
}

func (e *sourceError) Error() string {
	return "the relay refuses the manifest, and the running version stays:\n" + e.problems
}

func (e *sourceError) Unwrap() error { return e.cause }

// change posts body to a route of the manifest, and prints the version that comes
// back.
func (c *console) change(ctx context.Context, client *apiClient, route string, body any, asJSON bool) (int, error) {
	var v api.ManifestVersion
	if err := c.order(ctx, client, apiRequest{method: http.MethodPost, path: []string{"manifest", route}, body: body}, &v); err != nil {
		return exitFailed, err
	}
	if asJSON {
		return exitOK, c.printData(v, true)
	}
	fmt.Fprintln(c.out, standingWords(&v))
	for _, warning := range v.Warnings {
		c.say("%s", paint(c.errColor, yellow, "warning: "+line(warning)))
	}
	if v.Status == "canary" && c.errTerminal {
		c.say("postern egress status shows who has it; postern manifest promote gives it to all, postern manifest rollback takes it back")
	}
	return exitOK, nil
}

// standingWords says where a version stands.
func standingWords(v *api.ManifestVersion) string {
	text := fmt.Sprintf("version %d ", v.Number)
	switch v.Status {
	case "running":
		text += "is running"
	case "canary":
		text += "is a canary: a part of the instances has it"
		if v.Base != 0 {
			text += fmt.Sprintf(", the rest has version %d", v.Base)
		}
	case "replaced":
		text += "was replaced"
	case "rolled_back":
		text += "was rolled back"
	default:
		text += "is " + line(v.Status)
	}
	return text
}

func statusColor(status string) string {
	switch status {
	case "running":
		return green
	case "canary":
		return yellow
	case "rolled_back":
		return red
	}
	return dim
}

// diffDefault is how far back the recorded calls go that a new text is tried on.
const diffDefault = 24 * time.Hour
