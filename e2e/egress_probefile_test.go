package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"
	"sigs.k8s.io/yaml"

	"github.com/posternhq/postern/e2e/rig"
	"github.com/posternhq/postern/protocol/api"
)

// probeEnv finds out whether a client with these variables would ask the proxy. They
// are what the agent's own choice of variables rests upon.
func (c *corpusRun) probeEnv(l corpusLine) (outcome, error) {
	in := map[string]string{}
	if err := json.Unmarshal(l.Input, &in); err != nil {
		return outcome{}, err
	}
	if client := in["client"]; client != "" {
		if !strings.HasPrefix(client, "node fetch without") {
			return outcome{}, fmt.Errorf("no client %q", client)
		}
		return c.nodeGoesDirect(in["url"])
	}
	u, err := url.Parse(in["url"])
	if err != nil {
		return outcome{}, err
	}
	const proxy = "http://127.0.0.1:3128"
	cfg := httpproxy.Config{NoProxy: in["NO_PROXY"], CGI: in["REQUEST_METHOD"] != ""}
	if in["HTTP_PROXY"] != "" {
		cfg.HTTPProxy = proxy
	}
	if in["HTTPS_PROXY"] != "" {
		cfg.HTTPSProxy = proxy
	}
	to, err := cfg.ProxyFunc()(u)
	got := "direct"
	if to != nil {
		got = "proxied"
	}
	verdict, assertion, _ := strings.Cut(l.Expect, ":")
	o := outcome{passed: got == verdict && (err != nil) == (assertion == "error"), err: err}
	o.assert = func(string) error { return nil }
	return o, nil
}

// nodeGoesDirect runs Node's fetch with the variables but without the one that makes
// Node heed them.
func (c *corpusRun) nodeGoesDirect(to string) (outcome, error) {
	node, err := exec.LookPath("node")
	if err != nil {
		return outcome{}, errLater("Node, which is not installed")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return outcome{}, err
	}
	asked := make(chan bool, 16)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			asked <- true
			conn.Close()
		}
	}()
	defer l.Close()
	cmd := exec.Command(node, "-e", "fetch('"+to+"').catch(() => {})")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HTTPS_PROXY=http://" + l.Addr().String(), "https_proxy=http://" + l.Addr().String()}
	if out, err := cmd.CombinedOutput(); err != nil {
		return outcome{}, fmt.Errorf("%w: %s", err, out)
	}
	return outcome{passed: len(asked) == 0}, nil
}

// probePolicyFile puts a policy in general terms into a manifest's and has it
// validated.
func (c *corpusRun) probePolicyFile(l corpusLine) (outcome, error) {
	var in struct{ YAML string }
	if err := json.Unmarshal(l.Input, &in); err != nil {
		return outcome{}, err
	}
	text, _, _ := strings.Cut(in.YAML, "\n#")
	file := map[string]any{}
	if err := yaml.Unmarshal([]byte(text), &file); err != nil {
		return outcome{}, err
	}
	if list, ok := file["roles"].([]any); ok && len(list) == 0 {
		return c.nobodyCalls()
	}
	if hosts, ok := file["emergency_deny"].([]any); ok {
		return c.emergencyCuts(fmt.Sprint(hosts[0]))
	}
	return c.validates(file, strings.HasPrefix(l.Expect, "config_error"))
}

// validates says that it got through when the file was judged as the line says.
func (c *corpusRun) validates(file map[string]any, wrong bool) (outcome, error) {
	app, all := map[string]any{}, map[string]any{}
	manifest := map[string]any{"version": 1, "apps": map[string]any{"shop": map[string]any{"egress": app}}, "egress": all}
	for key, value := range file {
		switch key {
		case "deny_ranges":
			all["deny"] = map[string]any{"ranges": value}
		case "deny_hosts":
			all["deny"] = map[string]any{"hosts": value}
		case "allow_ranges":
			all[key] = value
		case "secrets":
			manifest[key] = value
		default:
			app[key] = value
		}
	}
	text, err := json.Marshal(manifest)
	if err != nil {
		return outcome{}, err
	}
	path := filepath.Join(c.t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return outcome{}, err
	}
	out, err := exec.Command(rig.Binary(c.t, "postern-relay"), "manifest", "validate", path).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return outcome{}, err
	}
	o := outcome{passed: (err != nil) == wrong, err: fmt.Errorf("validate says %v: %s", err, out)}
	o.assert = func(string) error { return errors.New("the file was not warned of") }
	return o, nil
}

// nobodyCalls calls as an app of whose calls the manifest says nothing.
func (c *corpusRun) nobodyCalls() (outcome, error) {
	asked, arrived := c.dns.Mark(), c.world.mark()
	o, err := c.connect("nobody", "api.allowed.test:443", "api.allowed.test")
	if err != nil {
		return o, err
	}
	o.asked, o.arrivals = c.dns.Asked(asked), c.world.since(arrived)
	err = o.is("deny_nodns", "")
	return outcome{passed: err == nil, err: err, assert: func(string) error { return err }}, nil
}

// emergencyCuts denies host while a tunnel to it is open.
func (c *corpusRun) emergencyCuts(host string) (outcome, error) {
	conn, err := tunnelTo(c.agents["enforce"].Proxy, host+":443", probeWithin)
	if err != nil {
		return outcome{}, err
	}
	defer conn.Close()
	if err := conn.helloThrough(hello{SNI: host}); err != nil {
		return outcome{}, err
	}
	out := rig.Postern(c.t, []string{"POSTERN_RELAY=" + c.relay.URL, "POSTERN_TOKEN=" + c.operator},
		"egress", "deny", host, "--for", "1h", "--reason", "the corpus")
	made := time.Now()
	defer c.endOrders()
	if out.Code != 0 {
		return outcome{}, fmt.Errorf("deny: %s%s", out.Stdout, out.Stderr)
	}
	for err == nil {
		_, err = conn.Read(make([]byte, 4096))
	}
	took := time.Since(made)
	_, again := tunnelTo(c.agents["enforce"].Proxy, host+":443", probeWithin)
	var no *refused
	o := outcome{passed: errors.As(again, &no) && no.Status == http.StatusForbidden, err: again}
	o.assert = func(string) error {
		if isTimeout(err) || took > time.Second {
			return fmt.Errorf("the tunnel ended after %v with %v", took, err)
		}
		return nil
	}
	return o, nil
}

// endOrders ends all emergency denies, for the lines that follow.
func (c *corpusRun) endOrders() {
	var list api.OrderList
	if err := c.relay.Get(c.operator, "/api/v1/egress/orders", &list); err != nil {
		c.t.Fatal(err)
	}
	for _, o := range list.Orders {
		if err := c.relay.Post(c.operator, "/api/v1/egress/orders/"+o.ID+"/end", nil, nil); err != nil {
			c.t.Fatal(err)
		}
	}
}
