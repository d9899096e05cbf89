package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/posternhq/postern/protocol/api"
)

// What of a body is shown without --raw or --body.
const (
	textShown = 64 << 10
	hexShown  = 512
)

// bodyText is a body to be read: JSON indented at a terminal, text as it is,
// anything else as a hex dump. Without raw, a long one is cut.
func (c *console) bodyText(body *api.Body, raw bool) string {
	all := body.Bytes()
	if len(all) == 0 {
		return "(empty)"
	}
	if body.Base64 != nil || !utf8.Valid(all) {
		return hexDump(all, raw)
	}
	shown := all
	if c.outTerminal && !raw {
		var pretty bytes.Buffer
		if json.Indent(&pretty, all, "", "  ") == nil {
			shown = pretty.Bytes()
		}
	}
	rest := 0
	if !raw && len(shown) > textShown {
		cut := textShown
		for !utf8.RuneStart(shown[cut]) {
			cut--
		}
		shown, rest = shown[:cut], len(shown)-cut
	}
	text := strings.ReplaceAll(string(shown), "\r\n", "\n")
	text = strings.TrimSuffix(printable(text, "\n\t"), "\n")
	if rest > 0 {
		text += fmt.Sprintf("\n… and %s more; --raw shows all of it", size(int64(rest)))
	}
	return text
}

func hexDump(body []byte, all bool) string {
	shown, rest := body, 0
	if !all && len(body) > hexShown {
		shown, rest = body[:hexShown], len(body)-hexShown
	}
	text := strings.TrimSuffix(hex.Dump(shown), "\n")
	if rest > 0 {
		text += fmt.Sprintf("\n… and %s more; --body writes all of it as it is", size(int64(rest)))
	}
	return text
}

// excerpt is the beginning of an answer's body, at most lines of it.
func (c *console) excerpt(body *api.Body, lines int) string {
	text := strings.Split(c.bodyText(body, false), "\n")
	if len(text) > lines {
		text = append(text[:lines], "… --json has all of it")
	}
	return strings.Join(text, "\n")
}
