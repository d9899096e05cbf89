package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// request sends raw to the agent of role and reads n answers.
func (c *corpusRun) request(role, raw string, n int) ([]*http.Response, *wayOut, error) {
	proxy, err := c.agentOf(role)
	if err != nil {
		return nil, nil, err
	}
	conn, err := callProxy(proxy, probeWithin)
	if err != nil {
		return nil, nil, err
	}
	conn.Write([]byte(raw))
	var got []*http.Response
	for range n {
		resp, _, err := conn.answer(http.MethodGet)
		if resp != nil {
			got = append(got, resp)
		}
		if err != nil {
			break
		}
	}
	return got, conn, nil
}

// httpOutcome is what became of one request in clear.
func httpOutcome(got []*http.Response) outcome {
	if len(got) == 0 {
		return outcome{err: errors.New("no answer")}
	}
	o := outcome{status: got[0].StatusCode, header: got[0].Header}
	o.passed = o.status < 400 && o.status != http.StatusContinue
	return o
}

// probeHTTP sends a request as it stands in the line.
func (c *corpusRun) probeHTTP(l corpusLine) (outcome, error) {
	var in struct{ Raw, Role string }
	if err := json.Unmarshal(l.Input, &in); err != nil {
		return outcome{}, err
	}
	mark := c.world.mark()
	got, conn, err := c.request(in.Role, in.Raw, 1)
	if err != nil {
		return outcome{}, err
	}
	o := httpOutcome(got)
	o.close = func() { conn.Close() }
	o.assert = func(assertion string) error {
		if strings.HasPrefix(assertion, "userinfo dropped") {
			if strings.Contains(c.cameSince(mark), "Authorization") {
				return errors.New("the userinfo became an Authorization")
			}
			return nil
		}
		return errNoAssertion
	}
	return o, nil
}

// cameSince is all bytes that reached the world since mark.
func (c *corpusRun) cameSince(mark int) string {
	var b strings.Builder
	for _, a := range c.world.since(mark) {
		b.Write(a.bytes())
	}
	return b.String()
}

// probeSmuggle is probeHTTP with a look at what came out on the other side.
func (c *corpusRun) probeSmuggle(l corpusLine) (outcome, error) {
	var in struct{ Raw, Role string }
	if err := json.Unmarshal(l.Input, &in); err != nil {
		return outcome{}, err
	}
	n := 1
	if strings.HasPrefix(l.Expect, "allow:first only") {
		n = 2
	}
	mark := c.world.mark()
	got, conn, err := c.request(in.Role, in.Raw, n)
	if err != nil {
		return outcome{}, err
	}
	o := httpOutcome(got)
	o.close = func() { conn.Close() }
	o.assert = func(assertion string) error {
		arrivals, out := c.world.since(mark), c.cameSince(mark)
		head, _, _ := strings.Cut(out, "\r\n\r\n")
		switch {
		case assertion == "501 is fine":
			return nil
		case strings.HasPrefix(assertion, "outbound carries Transfer-Encoding only"):
			if strings.Contains(head, "Content-Length") || !strings.Contains(head, "Transfer-Encoding: chunked") {
				return fmt.Errorf("out went %q", out)
			}
			conn.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := conn.r.ReadByte(); err != io.EOF {
				return fmt.Errorf("the connection goes on: %v", err)
			}
		case assertion == "upstream sees an aborted body":
			if o.status < 400 && o.err == nil {
				return fmt.Errorf("status %d", o.status)
			}
			for _, a := range arrivals {
				<-a.over
				if s := a.sightings(); len(s) > 0 && s[0].Err == nil {
					return errors.New("the request arrived whole")
				}
			}
		case assertion == "outbound has one Content-Length":
			if strings.Count(head, "Content-Length") != 1 {
				return fmt.Errorf("out went %q", out)
			}
		case strings.HasPrefix(assertion, "one outbound request, body is "):
			var want int
			fmt.Sscanf(assertion, "one outbound request, body is %d bytes", &want)
			if len(arrivals) != 1 || len(arrivals[0].sightings()) != 1 || len(arrivals[0].sightings()[0].Body) != want {
				return fmt.Errorf("out went %q", out)
			}
		case strings.HasPrefix(assertion, "first only"):
			if len(arrivals) != 1 || len(got) != 2 || got[1].StatusCode != http.StatusForbidden {
				return fmt.Errorf("%d answers; out went %q", len(got), out)
			}
		case assertion == "Upgrade and HTTP2-Settings removed":
			if strings.Contains(head, "Upgrade") || strings.Contains(head, "Http2-Settings") || strings.Contains(head, "HTTP2-Settings") {
				return fmt.Errorf("out went %q", out)
			}
		case assertion == "Host is kept":
			if !strings.Contains(head, "\r\nHost: plain.allowed.test\r\n") {
				return fmt.Errorf("out went %q", out)
			}
		default:
			return errNoAssertion
		}
		return nil
	}
	return o, nil
}

// ownName is how the relay calls itself, out of the Proxy-Status of a refusal.
func (c *corpusRun) ownName() string {
	c.t.Helper()
	c.world.answerWith(nil)
	got, conn, err := c.request("enforce", "GET http://plain.allowed.test/ HTTP/1.1\r\nHost: x\r\n\r\n", 1)
	if err != nil {
		c.t.Fatal(err)
	}
	defer conn.Close()
	if len(got) != 1 {
		c.t.Fatal("a request that is allowed has no answer")
	}
	via := got[0].Header.Values("Via")
	if got[0].StatusCode != http.StatusOK || len(via) == 0 {
		c.t.Fatalf("a request that is allowed has status %d and Via %q", got[0].StatusCode, via)
	}
	_, name, _ := strings.Cut(via[len(via)-1], " ")
	name, _, _ = strings.Cut(name, " ")
	return name
}

// validTraceparent is of W3C Trace Context, version 00.
var validTraceparent = regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// probeHeader sends one request with the headers, or has the destination answer with
// them.
func (c *corpusRun) probeHeader(l corpusLine) (outcome, error) {
	var in struct {
		Direction, Host, Role string
		Headers               map[string]string
	}
	if err := json.Unmarshal(l.Input, &in); err != nil {
		return outcome{}, err
	}
	if in.Headers["Content-Encoding"] != "" {
		return outcome{}, errLater("looking into bodies")
	}
	defer c.world.answerWith(nil)
	method, body, host, fields := "GET", "", in.Host, ""
	for name, value := range in.Headers {
		// The relay's own names, where the corpus has those of relays in general.
		name = strings.Replace(name, "X-Relay-", "Postern-", 1)
		value = strings.ReplaceAll(value, "relay.example", c.pseudonym)
		switch {
		case name == "_host":
			host = value
			continue
		case name == "Expect":
			method, body = "POST", "12345"
			fields += "Content-Length: 5\r\n"
		case name == "Upgrade" && in.Direction == "request":
			fields += "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
			c.world.answerWith(func(*http.Request) string {
				return "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
			})
		}
		fields += name + ": " + value + "\r\n"
	}
	if in.Direction == "response" {
		extra := fields
		fields = ""
		c.world.answerWith(func(*http.Request) string {
			return "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n" + extra + "\r\n"
		})
	}
	mark := c.world.mark()
	got, conn, err := c.request(in.Role, method+" http://"+host+"/ HTTP/1.1\r\nHost: "+host+"\r\n"+fields+"\r\n", 1)
	if err != nil {
		return outcome{}, err
	}
	o := httpOutcome(got)
	o.close = func() { conn.Close() }
	if body != "" && o.status == http.StatusContinue {
		conn.Write([]byte(body))
		resp, _, err := conn.answer(method)
		if err != nil {
			conn.Close()
			return outcome{err: err}, nil
		}
		o = httpOutcome([]*http.Response{resp})
		o.close = func() { conn.Close() }
	}
	o.assert = func(assertion string) error { return c.headerIs(assertion, mark, got, conn) }
	return o, nil
}

func (c *corpusRun) headerIs(assertion string, mark int, got []*http.Response, conn *wayOut) error {
	out := c.cameSince(mark)
	head, _, _ := strings.Cut(out, "\r\n\r\n")
	switch {
	case assertion == "removed", assertion == "removed by default":
		for _, name := range []string{"Proxy-Authorization", "X-Forwarded-", "Forwarded:", "Postern-"} {
			if strings.Contains(head, "\r\n"+name) {
				return fmt.Errorf("out went %q", out)
			}
		}
	case strings.HasPrefix(assertion, "our entry appended last"):
		all := strings.Join(got[0].Header.Values("Proxy-Status"), ", ")
		entries := strings.Split(all, ", ")
		if last := entries[len(entries)-1]; !strings.HasPrefix(last, c.pseudonym) {
			return fmt.Errorf("Proxy-Status is %q", all)
		}
	case assertion == "invalid value replaced by a new one":
		_, value, _ := strings.Cut(head, "\r\nTraceparent: ")
		value, _, _ = strings.Cut(value, "\r\n")
		if !validTraceparent.MatchString(value) {
			return fmt.Errorf("out went %q", out)
		}
	case assertion == "101 is tunnelled":
		if got[0].StatusCode != http.StatusSwitchingProtocols {
			return fmt.Errorf("status %d", got[0].StatusCode)
		}
		return conn.echoed("a frame")
	default:
		return errNoAssertion
	}
	return nil
}

// probeRedirect has the destination send the client elsewhere, and goes there.
func (c *corpusRun) probeRedirect(l corpusLine) (outcome, error) {
	var in struct {
		First, Location, Role string
		Status                int
		By                    string `json:"followed_by"`
	}
	if err := json.Unmarshal(l.Input, &in); err != nil {
		return outcome{}, err
	}
	if in.By == "relay" {
		return outcome{}, errLater("calls of the relay's own: it makes none yet")
	}
	c.world.answerWith(func(*http.Request) string {
		return fmt.Sprintf("HTTP/1.1 %d Found\r\nLocation: %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", in.Status, in.Location)
	})
	u, err := url.Parse(in.First)
	if err != nil {
		return outcome{}, err
	}
	got, conn, err := c.request(in.Role, "GET "+in.First+" HTTP/1.1\r\nHost: "+u.Host+"\r\n\r\n", 1)
	c.world.answerWith(nil)
	if err != nil {
		return outcome{}, err
	}
	defer conn.Close()
	o := httpOutcome(got)
	o.assert = func(assertion string) error {
		if o.status != in.Status || o.header.Get("Location") != in.Location {
			return fmt.Errorf("status %d, Location %q", o.status, o.header.Get("Location"))
		}
		return c.follow(in.Role, in.Location, assertion)
	}
	return o, nil
}

// follow does what a client that follows redirects does.
func (c *corpusRun) follow(role, location, assertion string) error {
	asked, arrived := c.dns.Mark(), c.world.mark()
	var o outcome
	u, err := url.Parse(location)
	if err != nil {
		return err
	}
	if u.Scheme == "https" {
		o, err = c.connect(role, u.Hostname()+":443", u.Hostname())
	} else {
		var got []*http.Response
		var conn *wayOut
		got, conn, err = c.request(role, "GET "+location+" HTTP/1.1\r\nHost: "+u.Host+"\r\n\r\n", 1)
		if err == nil {
			conn.Close()
			o = httpOutcome(got)
		}
	}
	if err != nil {
		return err
	}
	o.asked, o.arrivals = c.dns.Asked(asked), c.world.since(arrived)
	switch {
	case strings.HasSuffix(assertion, "judged as CONNECT"):
		return o.is("allow", "")
	case strings.HasSuffix(assertion, "deny_nodns"):
		return o.is("deny_nodns", "")
	case strings.HasSuffix(assertion, "refused"):
		if err := o.is("bad_request", ""); err == nil {
			return nil
		}
		return o.is("deny_nodns", "")
	}
	return errNoAssertion
}
