package e2e

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/idna"

	"github.com/posternhq/postern/e2e/rig"
)

// probeWithin bounds a probe; only one whose hello stalls takes seconds.
const probeWithin = 15 * time.Second

// probeHost asks for a tunnel to a host or an address: kinds addr and host.
func (c *corpusRun) probeHost(l corpusLine) (outcome, error) {
	var in struct {
		Host, Addr, Role string
		Port             int
	}
	if err := json.Unmarshal(l.Input, &in); err != nil {
		return outcome{}, err
	}
	if in.Addr != "" {
		in.Host = in.Addr
		if strings.Contains(in.Addr, ":") {
			in.Host = "[" + in.Addr + "]"
		}
	}
	o, err := c.connect(in.Role, fmt.Sprintf("%s:%d", in.Host, in.Port), in.Host)
	target := fmt.Sprintf("%s:%d", strings.Trim(in.Host, "[]"), in.Port)
	o.assert = func(assertion string) error {
		if assertion != "log=enforce_would_deny" {
			return errNoAssertion
		}
		return c.flowIs(in.Role, target, func(verdict string, _ bool) bool { return verdict == "report" })
	}
	return o, err
}

// flowIs waits until the latest flow to target is as good says.
func (c *corpusRun) flowIs(app, target string, good func(verdict string, ech bool) bool) error {
	var last error
	for deadline := time.Now().Add(wait); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		flows, err := c.relay.Flows(c.operator, app, target)
		if err == nil && len(flows) > 0 && good(flows[0].Verdict, flows[0].ECH) {
			return nil
		}
		last = fmt.Errorf("the log has %+v, %v", flows[:min(1, len(flows))], err)
	}
	return last
}

// connect asks the agent of role for a tunnel to authority, and tries it with the
// hello of a client of host.
func (c *corpusRun) connect(role, authority, host string) (outcome, error) {
	return c.raw(role, fmt.Sprintf("CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", authority, "x"), nameOf(host))
}

// nameOf is the name that a client of host puts into its hello: none for an address.
func nameOf(host string) hello {
	host = strings.Trim(host, "[]")
	if _, err := netip.ParseAddr(host); err == nil {
		return hello{}
	}
	if ascii, err := idna.Lookup.ToASCII(host); err == nil {
		host = ascii
	}
	return hello{SNI: strings.TrimSuffix(strings.ToLower(host), ".")}
}

// raw sends a CONNECT as it is written, and if a tunnel comes of it the hello.
func (c *corpusRun) raw(role, request string, h hello) (outcome, error) {
	proxy, err := c.agentOf(role)
	if err != nil {
		return outcome{}, err
	}
	conn, err := callProxy(proxy, probeWithin)
	if err != nil {
		return outcome{}, err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(request)); err != nil {
		return outcome{err: err}, nil
	}
	resp, _, err := conn.answer(http.MethodConnect)
	if err != nil {
		return outcome{err: err}, nil
	}
	o := outcome{status: resp.StatusCode, header: resp.Header}
	if resp.StatusCode == http.StatusOK {
		o.try(conn, h)
	}
	return o, nil
}

// try finds out whether the tunnel leads to the destination.
func (o *outcome) try(conn *wayOut, h hello) {
	text := h.bytes()
	if h.Stall > 0 {
		text = text[:h.Stall]
	}
	began := time.Now()
	conn.Write(text)
	n, err := conn.Read(make([]byte, 1))
	o.passed, o.err = n == 1, err
	// A tunnel that only stalls is not closed: then the deadline is what ends it.
	o.ended = n == 0 && !isTimeout(err)
	took := time.Since(began)
	o.assert = func(assertion string) error {
		limit, ok := strings.CutPrefix(assertion, "within=")
		if !ok {
			return errNoAssertion
		}
		within, err := time.ParseDuration(limit)
		if err == nil && took > within+time.Second {
			err = fmt.Errorf("it took %v, more than %v", took, within)
		}
		return err
	}
}

// answers reads what a line says of DNS: lists of addresses, one after the other for
// repeated questions; an error by name; or an alias.
func answers(raw json.RawMessage, ttl uint32) ([]rig.Answer, error) {
	var steps [][]string
	var name string
	var alias struct {
		CNAME   string   `json:"cname"`
		Answers []string `json:"answers"`
	}
	switch {
	case json.Unmarshal(raw, &steps) == nil:
		var out []rig.Answer
		for _, addrs := range steps {
			out = append(out, rig.Answer{Addrs: addrs, TTL: ttl})
		}
		return out, nil
	case json.Unmarshal(raw, &name) == nil:
		code, ok := map[string]dnsmessage.RCode{"SERVFAIL": dnsmessage.RCodeServerFailure, "NXDOMAIN": dnsmessage.RCodeNameError}[name]
		if ok {
			return []rig.Answer{{RCode: code}}, nil
		}
	case json.Unmarshal(raw, &alias) == nil:
		return []rig.Answer{{Addrs: alias.Answers, CNAME: alias.CNAME, TTL: ttl}}, nil
	}
	return nil, fmt.Errorf("no answers: %s", raw)
}

// probeDNS asks for a tunnel to a name that leads to what the line says.
func (c *corpusRun) probeDNS(l corpusLine) (outcome, error) {
	var in struct {
		Host, Role string
		Port       int
		Answers    json.RawMessage
		TTL        uint32
		Requests   int
		DialErrors map[string]string `json:"dial_errors"`
	}
	if err := json.Unmarshal(l.Input, &in); err != nil {
		return outcome{}, err
	}
	steps, err := answers(in.Answers, in.TTL)
	if err != nil {
		return outcome{}, err
	}
	c.dns.Set(in.Host, steps...)
	for addr := range in.DialErrors {
		to, err := netip.ParseAddrPort(addr)
		if err != nil {
			return outcome{}, err
		}
		if err := ip("route add unreachable " + to.Addr().String() + " table local metric 0"); err != nil {
			return outcome{}, err
		}
		defer ip("route del unreachable " + to.Addr().String() + " table local metric 0")
	}
	target := fmt.Sprintf("%s:%d", in.Host, in.Port)
	mark := c.world.mark()
	o, err := c.connect(in.Role, target, in.Host)
	for range in.Requests - 1 {
		if err == nil && o.passed {
			o, err = c.connect(in.Role, target, in.Host)
		}
	}
	o.assert = func(assertion string) error {
		if addr, ok := strings.CutPrefix(assertion, "second request within TTL uses "); ok {
			addr, _, _ = strings.Cut(addr, " ")
			for _, a := range c.world.since(mark) {
				if a.To.Addr().String() != addr {
					return fmt.Errorf("%v was dialed", a.To)
				}
			}
			return o.looksUpOnce(c.dns.Asked(0), in.Host)
		}
		return errNoAssertion
	}
	if len(in.DialErrors) > 0 {
		c.onlyUnreachable(&o)
	}
	return o, err
}

// looksUpOnce checks that name was asked for once, of all that was asked ever.
func (outcome) looksUpOnce(asked []string, name string) error {
	o := outcome{}
	for _, q := range asked {
		if strings.HasPrefix(q, name+" ") {
			o.asked = append(o.asked, q)
		}
	}
	return o.looksUp("lookups=1")
}

// onlyUnreachable is for lines whose allowed address cannot be reached: right is an
// error of the connection, and that no other address was tried.
func (c *corpusRun) onlyUnreachable(o *outcome) {
	errorOfDial := o.status == http.StatusBadGateway || o.status == http.StatusGatewayTimeout || o.status == http.StatusServiceUnavailable
	o.passed = errorOfDial || o.status == http.StatusOK && o.ended
	o.assert = func(assertion string) error {
		if strings.HasSuffix(assertion, " only") {
			return o.reachedNothing("allow")
		}
		return errNoAssertion
	}
}

// hostOfConnect finds the host in a CONNECT, for the hello.
var hostOfConnect = regexp.MustCompile(`^CONNECT ([^ ]*):\d+ `)

// probeConnect sends a CONNECT as it stands in the line.
func (c *corpusRun) probeConnect(l corpusLine) (outcome, error) {
	var in struct{ Raw, Role string }
	if err := json.Unmarshal(l.Input, &in); err != nil {
		return outcome{}, err
	}
	var h hello
	if m := hostOfConnect.FindStringSubmatch(in.Raw); m != nil {
		h = nameOf(m[1])
	}
	if strings.Contains(in.Raw, ":5432 ") {
		h = hello{Raw: "\x00what a database is sent"}
	}
	// The bytes behind a CONNECT stand for a hello: the relay passes nothing else on
	// to where TLS is expected.
	head, early, ok := strings.Cut(in.Raw, "\r\n\r\n")
	if ok && early != "" {
		in.Raw, h = head+"\r\n\r\n"+string(h.bytes()), hello{}
	}
	mark := c.world.mark()
	o, err := c.rawEarly(in.Role, in.Raw, h, early != "")
	o.assert = func(assertion string) error {
		arrivals := c.world.since(mark)
		switch assertion {
		case "destination receives the early bytes":
			if len(arrivals) != 1 || len(arrivals[0].bytes()) == 0 {
				return errors.New("no early bytes arrived")
			}
		case "header ignored and not sent":
			if got := o; len(arrivals) != 1 || strings.Contains(string(arrivals[0].bytes()), "X-Upstream") {
				return fmt.Errorf("dialed %q", got.dialed())
			}
		default:
			return errNoAssertion
		}
		return nil
	}
	return o, err
}

// rawEarly is raw with the hello sent right behind the CONNECT already.
func (c *corpusRun) rawEarly(role, request string, h hello, early bool) (outcome, error) {
	if !early {
		return c.raw(role, request, h)
	}
	return c.raw(role, request, hello{Raw: "\x00"})
}

// probeSNI sends a hello of the line's making through a tunnel.
func (c *corpusRun) probeSNI(l corpusLine) (outcome, error) {
	var in struct {
		Connect, Role string
		Hello         hello  `json:"client_hello"`
		SNI           string `json:"sni_policy"`
	}
	if err := json.Unmarshal(l.Input, &in); err != nil {
		return outcome{}, err
	}
	app := in.Role
	if in.SNI == "allowlisted" {
		app += "-allowlisted"
	}
	mark := c.world.mark()
	o, err := c.raw(app, fmt.Sprintf("CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", in.Connect, in.Connect), in.Hello)
	timed := o.assert
	o.assert = func(assertion string) error {
		if assertion == "log ech=1" {
			return c.flowIs(app, in.Connect, func(_ string, ech bool) bool { return ech })
		}
		if timed != nil {
			return timed(assertion)
		}
		return errNoAssertion
	}
	// What got through must be the hello as it was sent.
	if arrivals := c.world.since(mark); o.passed && len(arrivals) == 1 {
		if sent := in.Hello.bytes(); in.Hello.Raw == "" && len(arrivals[0].bytes()) != len(sent) {
			return o, fmt.Errorf("%d bytes arrived of a hello of %d", len(arrivals[0].bytes()), len(sent))
		}
	}
	return o, err
}

// probeSOCKS speaks SOCKS to the same port.
func (c *corpusRun) probeSOCKS(l corpusLine) (outcome, error) {
	var in struct {
		Cmd, Atyp, Addr string
		Port            uint16
		RawHex          string `json:"raw_hex"`
		Role            string
		Auth            bool   `json:"auth_required"`
		ThenSNI         string `json:"then_sni"`
	}
	if err := json.Unmarshal(l.Input, &in); err != nil {
		return outcome{}, err
	}
	if in.Role == "" {
		in.Role = "enforce"
	}
	proxy, err := c.agentOf(in.Role)
	if err != nil {
		return outcome{}, err
	}
	conn, err := callProxy(proxy, probeWithin)
	if err != nil {
		return outcome{}, err
	}
	defer conn.Close()
	if in.RawHex != "" {
		bytes, err := hex.DecodeString(in.RawHex)
		if err != nil {
			return outcome{}, err
		}
		conn.Write(bytes)
		resp, _, err := conn.answer(http.MethodGet) // whatever comes, or the end
		if err != nil {
			return outcome{socks: &socksReply{}, err: err}, nil
		}
		return outcome{status: resp.StatusCode, header: resp.Header}, nil
	}
	methods := []byte{0}
	if in.Auth {
		// The listener on loopback wants no credentials; what it does not take is a
		// client that offers only those.
		methods = []byte{2}
	}
	cmd := map[string]byte{"": 1, "CONNECT": 1, "BIND": 2, "UDP ASSOCIATE": 3, "UDP_ASSOCIATE": 3, "UDP": 3}[in.Cmd]
	if in.Atyp == "" {
		in.Atyp, in.Addr = "domain", "api.allowed.test"
	}
	request, err := socksRequest(cmd, in.Atyp, in.Addr, in.Port)
	if err != nil {
		return outcome{}, err
	}
	reply, err := conn.socksTo(methods, request)
	o := outcome{socks: &reply, err: err}
	if reply.Asked && reply.Rep == 0 {
		h := nameOf(in.Addr)
		if in.ThenSNI != "" {
			h = hello{SNI: in.ThenSNI}
		}
		o.try(conn, h)
	}
	o.assert = func(assertion string) error {
		if assertion == "method=0xFF" {
			if reply.Method != 0xff {
				return fmt.Errorf("method %d was chosen", reply.Method)
			}
			return nil
		}
		return errNoAssertion
	}
	return o, nil
}
