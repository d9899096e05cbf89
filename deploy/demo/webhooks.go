package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// sendStripe sends what Stripe sends: the signature covers a time and the body.
func (d *demo) sendStripe(ctx context.Context) (string, error) {
	d.stripeID = "evt_" + rand.Text()
	body := fmt.Sprintf(`{"id":%q,"object":"event","type":"payment_intent.succeeded","data":{"object":{"id":"pi_1","amount":1999,"currency":"eur"}}}`, d.stripeID)
	sentAt := strconv.FormatInt(time.Now().Unix(), 10)
	return d.send(ctx, "stripe", body, http.Header{
		"Stripe-Signature": {"t=" + sentAt + ",v1=" + sign(stripeSecret, sentAt+"."+body)},
	})
}

// sendGitHub sends what GitHub sends: the signature covers the body.
func (d *demo) sendGitHub(ctx context.Context) (string, error) {
	d.githubID = rand.Text()
	body := `{"ref":"refs/heads/main","repository":{"full_name":"example/shop"},"commits":[]}`
	return d.send(ctx, "github", body, http.Header{
		"X-Github-Event":      {"push"},
		"X-Github-Delivery":   {d.githubID},
		"X-Hub-Signature-256": {"sha256=" + sign(githubSecret, body)},
	})
}

// sendForged is somebody who knows the address and not the secret.
func (d *demo) sendForged(ctx context.Context) (string, error) {
	body := `{"ref":"refs/heads/main"}`
	status, answer, err := d.post(ctx, "github", body, http.Header{
		"X-Github-Event":      {"push"},
		"X-Github-Delivery":   {rand.Text()},
		"X-Hub-Signature-256": {"sha256=" + sign("a guess", body)},
	})
	if err != nil {
		return "", err
	}
	if status != http.StatusUnauthorized {
		return "", fmt.Errorf("it was answered %d, not 401: %s", status, answer)
	}
	var refusal struct{ Error struct{ Message string } }
	json.Unmarshal(answer, &refusal) // without a message the status stands alone
	return fmt.Sprintf("401, %s", refusal.Error.Message), nil
}

// send posts a good webhook, which must be accepted.
func (d *demo) send(ctx context.Context, endpoint, body string, header http.Header) (string, error) {
	status, answer, err := d.post(ctx, endpoint, body, header)
	if err != nil {
		return "", err
	}
	if status != http.StatusAccepted {
		return "", fmt.Errorf("POST %s was answered %d, not 202: %s", d.hook(endpoint), status, answer)
	}
	var event struct{ ID string }
	if err := json.Unmarshal(answer, &event); err != nil {
		return "", fmt.Errorf("the answer is not JSON: %w", err)
	}
	return fmt.Sprintf("POST %s → 202, event %s", d.hook(endpoint), event.ID), nil
}

func (d *demo) post(ctx context.Context, endpoint, body string, header http.Header) (int, []byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, d.hook(endpoint), strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	r.Header = header
	r.Header.Set("Content-Type", "application/json")
	status, answer, err := d.do(r)
	return status, bytes.TrimSpace(answer), err
}

// waitHandled waits for the app's own word: it prints a line for each webhook
// that it has checked and handled.
func (d *demo) waitHandled(ctx context.Context) (string, error) {
	for _, id := range []string{d.stripeID, d.githubID} {
		if !d.app.output.await(ctx.Done(), "webhook handled", "id="+id) {
			return "", errors.New("the app has not reported the webhook " + id)
		}
	}
	return "it checked both signatures itself", nil
}

// listEvents looks at the inbox as a developer does. The refused webhook is kept a
// moment after its sender was told.
func (d *demo) listEvents(ctx context.Context) (string, error) {
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for deadline := time.Now().Add(10 * time.Second); ; {
		cmd := exec.CommandContext(ctx, d.program("postern"), "events", "list", "--json")
		cmd.Env = d.with("POSTERN_RELAY="+d.url(""), "POSTERN_TOKEN="+d.developer)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("postern events list: %w: %s", err, &stderr)
		}
		var events []struct {
			Endpoint string `json:"endpoint"`
			State    string `json:"state"`
		}
		if err := json.Unmarshal(out, &events); err != nil {
			return "", fmt.Errorf("postern events list --json: %w", err)
		}
		seen := map[string]int{}
		for _, e := range events {
			seen[e.State]++
		}
		if seen["done"] == 2 && seen["refused"] == 1 {
			return "postern events list has two delivered and one refused", nil
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("postern events list has %v, want two done and one refused", seen)
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

func sign(secret, message string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(message))
	return hex.EncodeToString(mac.Sum(nil))
}
