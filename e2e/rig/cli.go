package rig

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"testing"
	"time"
)

// cliWithin bounds a command that ends by itself.
const cliWithin = time.Minute

// Output is what a command that has ended has said.
type Output struct {
	Code   int
	Stdout string
	Stderr string
}

// Postern runs the CLI to its end. Its standard input is empty.
func Postern(t testing.TB, env []string, args ...string) Output {
	t.Helper()
	out, err := TryPostern(t, env, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TryPostern is Postern for any goroutine.
func TryPostern(t testing.TB, env []string, args ...string) (Output, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), Binary(t, "postern"), args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(cleanEnvironment(), env...), &stdout, &stderr
	cmd.SysProcAttr, cmd.WaitDelay = childAttributes(), time.Second
	if err := cmd.Start(); err != nil {
		return Output{}, err
	}
	limit := time.AfterFunc(cliWithin, func() { cmd.Process.Kill() })
	defer limit.Stop()
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		return Output{}, fmt.Errorf("postern %q: %w: %s", args, err, stderr.Bytes())
	}
	return Output{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}, nil
}

// StartPostern starts the CLI for a test that watches it or ends it. Standard
// output and error are in its log together.
func StartPostern(t testing.TB, env []string, args ...string) *Process {
	t.Helper()
	p, err := start(t, command{name: "postern " + args[0], path: Binary(t, "postern"), args: args, env: env})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// CLI is the environment of a developer's CLI for app.
func (r *Relay) CLI(app string) []string {
	r.t.Helper()
	return []string{"POSTERN_RELAY=" + r.URL, "POSTERN_TOKEN=" + r.Token(app, "--scope", "developer")}
}

// Get asks the API with a token and reads the JSON of the answer into v.
func (r *Relay) Get(token, path string, v any) error {
	req, err := http.NewRequest(http.MethodGet, r.URL+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	if err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s: %.300s", path, resp.Status, body)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("GET %s: %w: %.300s", path, err, body)
	}
	return nil
}
