package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/posternhq/postern/protocol/api"
)

var explainVerb = eventVerb{
	name: "egress explain", about: "what would become of a call, and which line of the manifest decides", usage: "[flags] URL",
	examples: `postern egress explain https://api.stripe.com --app shop
postern egress explain http://api.partner.example/v1/items --method POST
postern egress explain tcp://db.partner.example:5432
postern egress explain --check https://api.stripe.com || echo refused`,
	notes: `A host without https://, http:// or tcp:// in front is taken as https://. Nothing is
called: the relay looks the name up, unless it is refused before that. With
--instance, the policy is that of one instance, which matters while a new version
of the manifest is tried on a part of them.`,
	run: explainCall,
}

// errWouldBeRefused is what --check ends with.
var errWouldBeRefused = errors.New("the call would be refused")

// explainCall is postern egress explain.
func explainCall(ctx context.Context, c *console, v eventVerb, args []string) (int, error) {
	f := newCallFlags(v)
	method := f.str("method", "of a request to http://: `METHOD`; default GET")
	instance := f.str("instance", "as the instance `NAME` would be answered")
	check := f.yes("check", "exit code 1 when the call would be refused")
	f.asJSON("print the explanation as the API has it")
	if err := f.parse(c.out, args); err != nil {
		return exitUsage, err
	}
	target, err := f.only("URL", "postern egress explain https://api.example.com")
	if err != nil {
		return exitUsage, err
	}
	if target, err = callURL(target); err != nil {
		return exitUsage, err
	}
	client, err := f.api()
	if err != nil {
		return exitUsage, err
	}
	if client.tokenApp() == "" {
		return exitUsage, usagef("whose call? postern egress explain %s --app NAME", line(target))
	}
	query := url.Values{"url": {target}}
	for name, value := range map[string]string{"method": strings.ToUpper(*method), "instance": *instance} {
		if value != "" {
			query.Set(name, value)
		}
	}
	var e api.Explanation
	if err := c.ask(ctx, client, apiRequest{path: []string{"egress", "explain"}, query: query, ofApp: true}, &e); err != nil {
		return exitFailed, err
	}
	code := exitOK
	if *check && e.Verdict == "deny" {
		code, err = exitFailed, errWouldBeRefused
	}
	if *f.json {
		return code, errors.Join(c.printData(e, true), err)
	}
	io.WriteString(c.out, c.explanation(&e))
	return code, err
}

// callURL is s as the relay is asked about it: with a scheme, and without what the
// policy does not look at and nobody is to see.
func callURL(s string) (string, error) {
	if s == "" {
		return "", usagef("the URL is empty; expected https://api.example.com")
	}
	if i := strings.IndexAny(s, "?#"); i >= 0 {
		s = s[:i]
	}
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	_, rest, _ := strings.Cut(s, "://")
	authority, _, _ := strings.Cut(rest, "/")
	if strings.Contains(authority, "@") {
		return "", usagef("the URL has a user in it; leave out everything up to the @, no app may call with it")
	}
	return s, nil
}

// explanation is all of e, to be read.
func (c *console) explanation(e *api.Explanation) string {
	var b strings.Builder
	call := e.URL
	if e.Method != "" {
		call = e.Method + " " + call
	}
	fmt.Fprintf(&b, "%s  %s  by %s\n\n", paint(c.color, verdictColor(e.Verdict), verdictWords(e)), paint(c.color, bold, line(call)), line(e.App))
	deciding := line(e.Rule)
	if e.Line > 0 {
		deciding += ", line " + strconv.Itoa(e.Line)
	}
	answer := ""
	if e.Verdict == "deny" && e.Status > 0 {
		answer = fmt.Sprintf("%d %s", e.Status, line(e.Cause))
	}
	way := ""
	if e.Verdict != "deny" {
		way = wayWords(e)
	}
	facts := []fact{
		{name: "why", text: line(e.Reason)},
		{name: "decided by", text: deciding},
		{name: "which says", text: strings.TrimSpace(line(e.Text))},
		{name: "the app gets", text: answer, color: red},
		{name: "way", text: way},
		{name: "manifest", text: versionWords(e.Version) + ", mode " + orDash(line(e.Mode))},
	}
	b.WriteString(c.factList(facts))
	c.addresses(&b, e)
	if e.Suggestion != "" {
		b.WriteString("\n" + paint(c.color, bold, "To allow it") + "\n" + indent(printable(e.Suggestion, "\n"), "  ") + "\n")
	}
	return b.String()
}

// addresses are what the name leads to.
func (c *console) addresses(b *strings.Builder, e *api.Explanation) {
	if e.DNSError != "" {
		b.WriteString("\n" + paint(c.color, yellow, "The name leads nowhere: "+line(e.DNSError)) + "\n")
	}
	if len(e.Addresses) == 0 {
		return
	}
	b.WriteString("\n" + paint(c.color, bold, "Addresses") + "\n")
	width := 0
	for _, a := range e.Addresses {
		width = max(width, utf8.RuneCountInString(line(a.Address)))
	}
	for _, a := range e.Addresses {
		verdict := "allow"
		if !a.Allowed {
			verdict = "deny"
		}
		address := line(a.Address)
		text := "  " + address + strings.Repeat(" ", width-utf8.RuneCountInString(address)) + gap + paint(c.color, verdictColor(verdict), verdict)
		if a.Reason != "" {
			text += gap + line(a.Reason)
		}
		b.WriteString(text + "\n")
	}
}

func verdictWords(e *api.Explanation) string {
	switch e.Verdict {
	case "report":
		return "allowed, and reported"
	case "allow":
		return "allowed"
	case "deny":
		return "refused"
	}
	return line(e.Verdict)
}

// wayWords is who dials, and what is done without a relay.
func wayWords(e *api.Explanation) string {
	if e.Via == "direct" {
		return "direct, dialed by the agent"
	}
	if e.OnLoss == "direct" {
		return "through the relay; direct while there is none"
	}
	return "through the relay; refused while there is none"
}

func versionWords(version int64) string {
	if version == 0 {
		return "none"
	}
	return "version " + strconv.FormatInt(version, 10)
}
