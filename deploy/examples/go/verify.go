package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Postern has verified these signatures before it stored the webhook. Checking
// again costs little, and the app stays safe when it is reached another way.

var (
	errNoSecret  = errors.New("the app has no secret to check with")
	errSignature = errors.New("the signature does not match")
	errTooOld    = errors.New("the signature is too old")
)

// tolerance is how old a signature may be; the same as in Stripe's libraries.
const tolerance = 5 * time.Minute

// verifyStripe checks Stripe-Signature: t=<unix seconds>,v1=<hex>, an
// HMAC-SHA256 over t + "." + body.
func (s *shop) verifyStripe(r *http.Request, body []byte) (id, kind string, err error) {
	if s.stripeSecret == "" {
		return "", "", errNoSecret
	}
	var sentAt string
	var signatures []string
	for item := range strings.SplitSeq(r.Header.Get("Stripe-Signature"), ",") {
		switch key, value, _ := strings.Cut(item, "="); key {
		case "t":
			sentAt = value
		case "v1": // several while a secret is rotated
			signatures = append(signatures, value)
		}
	}
	matched := false
	for _, sig := range signatures {
		matched = signs(s.stripeSecret, sentAt+"."+string(body), sig) || matched
	}
	if !matched {
		return "", "", errSignature
	}
	seconds, err := strconv.ParseInt(sentAt, 10, 64)
	if err != nil || time.Since(time.Unix(seconds, 0)) > tolerance {
		return "", "", errTooOld
	}
	var event struct{ ID, Type string }
	if err := json.Unmarshal(body, &event); err != nil || event.ID == "" {
		return "", "", errors.New("the body is not an event")
	}
	return event.ID, event.Type, nil
}

// verifyGitHub checks X-Hub-Signature-256: sha256=<hex>, an HMAC-SHA256 over the
// body.
func (s *shop) verifyGitHub(r *http.Request, body []byte) (id, kind string, err error) {
	if s.githubSecret == "" {
		return "", "", errNoSecret
	}
	sig, _ := strings.CutPrefix(r.Header.Get("X-Hub-Signature-256"), "sha256=")
	if !signs(s.githubSecret, string(body), sig) {
		return "", "", errSignature
	}
	id = r.Header.Get("X-GitHub-Delivery")
	if id == "" {
		return "", "", errors.New("the header X-GitHub-Delivery is missing")
	}
	return id, r.Header.Get("X-GitHub-Event"), nil
}

// signs reports whether signature, in hex, is the HMAC-SHA256 of message.
func signs(secret, message, signature string) bool {
	got, err := hex.DecodeString(signature)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(message))
	return err == nil && hmac.Equal(got, mac.Sum(nil))
}
