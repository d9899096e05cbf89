package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// is checks one alternative of an expectation: a verdict and what may be asserted
// besides. The fixture's line of the corpus says what the verdicts are.
func (o outcome) is(verdict, assertion string) error {
	switch verdict {
	case "allow", "rewrite", "direct", "proxied", "config_error":
		if !o.passed {
			return fmt.Errorf("%s: it did not get through", verdict)
		}
		return o.asserts(assertion)
	case "deny":
		return o.denied(assertion)
	case "deny_nodns":
		if len(o.asked) > 0 {
			return fmt.Errorf("deny_nodns: the name server was asked %q", o.asked)
		}
		return o.denied(assertion)
	case "bad_request":
		bad := []int{http.StatusBadRequest, http.StatusRequestHeaderFieldsTooLarge, http.StatusNotImplemented, http.StatusHTTPVersionNotSupported}
		switch {
		case len(o.asked) > 0:
			return fmt.Errorf("bad_request: the name server was asked %q", o.asked)
		case o.socks == nil && !slices.Contains(bad, o.status):
			return fmt.Errorf("bad_request: status %d", o.status)
		case o.socks != nil && o.socks.Asked && o.socks.Rep == 0:
			return errors.New("bad_request: SOCKS was answered with success")
		}
		return o.reachedNothing("bad_request")
	case "terminate":
		return o.terminated(assertion)
	case "dns_error":
		if o.status != http.StatusBadGateway || !strings.Contains(o.header.Get("Proxy-Status"), "dns_error") {
			return errors.New("dns_error: no 502 with that error")
		}
		return o.reachedNothing("dns_error")
	}
	return fmt.Errorf("no verdict %q", verdict)
}

// denied is a refusal by the policy, with nothing dialed.
func (o outcome) denied(assertion string) error {
	if assertion == "upstream sees an aborted body" || strings.HasPrefix(assertion, "method=") {
		return o.asserts(assertion) // the request went out before, or never was one
	}
	status := http.StatusForbidden
	switch assertion {
	case "407":
		status = http.StatusProxyAuthRequired
	case "proxy_loop_detected":
		status = http.StatusLoopDetected
		if o.socks == nil && !strings.Contains(o.header.Get("Proxy-Status"), assertion) {
			return errors.New("deny: Proxy-Status does not tell of a loop")
		}
	case "421":
		status = http.StatusMisdirectedRequest
	}
	rep := byte(2)
	fmt.Sscanf(assertion, "rep=%d", &rep)
	switch {
	case o.socks != nil && (!o.socks.Asked || o.socks.Rep != rep):
		return fmt.Errorf("deny: SOCKS reply %+v, want %d", *o.socks, rep)
	case o.socks == nil && o.status != status:
		return fmt.Errorf("deny: status %d, want %d", o.status, status)
	}
	if strings.HasPrefix(assertion, "lookups=") {
		if err := o.looksUp(assertion); err != nil {
			return err
		}
	}
	return o.reachedNothing("deny")
}

// terminated is a tunnel that was given, and then ended with nothing passed on.
func (o outcome) terminated(assertion string) error {
	if o.status != http.StatusOK && (o.socks == nil || !o.socks.Asked || o.socks.Rep != 0) {
		return fmt.Errorf("terminate: no tunnel, status %d", o.status)
	}
	if !o.ended {
		return errors.New("terminate: the tunnel was not closed")
	}
	for _, a := range o.arrivals {
		if got := a.bytes(); len(got) > 0 {
			return fmt.Errorf("terminate: %d bytes reached %v", len(got), a.To)
		}
	}
	if assertion != "" {
		return o.asserts(assertion)
	}
	return nil
}

func (o outcome) reachedNothing(verdict string) error {
	if len(o.arrivals) > 0 {
		return fmt.Errorf("%s: %v was dialed", verdict, o.dialed())
	}
	return nil
}

func (o outcome) dialed() []string {
	var to []string
	for _, a := range o.arrivals {
		to = append(to, a.To.String())
	}
	return to
}

// asserts goes through the assertions that several kinds share and leaves the rest to
// the line's kind.
func (o outcome) asserts(assertion string) error {
	if assertion == "" {
		return nil
	}
	if o.assert != nil {
		if err := o.assert(assertion); !errors.Is(err, errNoAssertion) {
			return err
		}
	}
	for part := range strings.SplitSeq(assertion, ",") {
		switch {
		case strings.HasPrefix(part, "dial="):
			want, _ := strings.CutSuffix(strings.TrimPrefix(part, "dial="), " only")
			if got := o.dialed(); !slices.Equal(got, []string{want}) {
				return fmt.Errorf("dialed %q, want %s", got, want)
			}
		case strings.HasPrefix(part, "lookups="):
			if err := o.looksUp(part); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: %s", errNoAssertion, part)
		}
	}
	return nil
}

// looksUp checks lookups=N: one lookup is a question for A and one for AAAA.
func (o outcome) looksUp(assertion string) error {
	var want int
	fmt.Sscanf(assertion, "lookups=%d", &want)
	for _, kind := range []string{" A", " AAAA"} {
		n := 0
		for _, q := range o.asked {
			if strings.HasSuffix(q, kind) {
				n++
			}
		}
		if n != want {
			return fmt.Errorf("%d questions for%s, want %d", n, kind, want)
		}
	}
	return nil
}

func (o outcome) String() string {
	s := fmt.Sprintf("status %d, Proxy-Status %q, dialed %q, asked %q", o.status, o.header.Get("Proxy-Status"), o.dialed(), o.asked)
	if o.socks != nil {
		s += fmt.Sprintf(", SOCKS %+v", *o.socks)
	}
	if o.ended {
		s += ", the tunnel was closed"
	}
	if o.err != nil {
		s += fmt.Sprintf(", the client saw %v", o.err)
	}
	return s
}
