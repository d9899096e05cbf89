package rig

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/api"
)

// Operator is a token that may do everything.
func (r *Relay) Operator() string {
	r.t.Helper()
	return r.Verb("token", "create", "--scope", "admin")
}

// AdminCLI is the environment of an operator's CLI.
func (r *Relay) AdminCLI() []string {
	r.t.Helper()
	return []string{"POSTERN_RELAY=" + r.URL, "POSTERN_TOKEN=" + r.Operator()}
}

// Rewrite replaces the manifest's file at once, as deployments do: whoever watches it
// never sees half of it.
func (r *Relay) Rewrite(manifest string) {
	r.t.Helper()
	next := r.Manifest + ".next"
	if err := os.WriteFile(next, []byte(manifest), 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(next, r.Manifest); err != nil {
		r.t.Fatal(err)
	}
}

// EgressStatus asks the API how calls are doing.
func (r *Relay) EgressStatus(token string) (api.EgressStatus, error) {
	var s api.EgressStatus
	err := r.Get(token, "/api/v1/egress/status", &s)
	return s, err
}

// AwaitPolicy waits until n agents are connected and all of them decide by the
// newest policy, of a manifest whose number is at least version.
func (r *Relay) AwaitPolicy(t testing.TB, token string, n int, version int64) api.EgressStatus {
	t.Helper()
	var s api.EgressStatus
	Eventually(t, StartsWithin, "the policy in force at every agent", func() (err error) {
		if s, err = r.EgressStatus(token); err != nil {
			return err
		}
		if len(s.Agents) != n || s.Version < version {
			return fmt.Errorf("%d agents of %d, version %d of %d", len(s.Agents), n, s.Version, version)
		}
		for _, a := range s.Agents {
			if a.Serial == 0 || a.Error != "" {
				return fmt.Errorf("%s is at %d of %d: %s", a.Instance, a.Serial, s.Serial, a.Error)
			}
		}
		if s.AppliedMS < 0 {
			return fmt.Errorf("an agent is behind: %+v", s.Agents)
		}
		return nil
	})
	return s
}

// Flows asks the API for the latest calls of app to target, newest first.
func (r *Relay) Flows(token, app, target string) ([]protocol.Flow, error) {
	var list api.FlowList
	err := r.Get(token, "/api/v1/egress/flows?limit=50&app="+app+"&target="+target, &list)
	return list.Flows, err
}

// Post asks the API with a body, unless that is nil, and reads the JSON of the answer
// into v, unless that is.
func (r *Relay) Post(token, path string, body, v any) error {
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequest(http.MethodPost, r.URL+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	if err != nil {
		return fmt.Errorf("POST %s: %w", path, err)
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("POST %s: %s: %.300s", path, resp.Status, answer)
	}
	if v == nil {
		return nil
	}
	if err := json.Unmarshal(answer, v); err != nil {
		return fmt.Errorf("POST %s: %w: %.300s", path, err, answer)
	}
	return nil
}
