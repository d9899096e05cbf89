package provider

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strings"
	"time"

	"github.com/posternhq/postern/relay"
)

// standardScheme is Standard Webhooks, version 1 of its signatures. The header
// has any number of them, "v1," for HMAC and "v1a," for Ed25519.
var standardScheme = standardNamed("webhook")

var svixScheme = standardNamed("svix")

func standardNamed(name string) scheme {
	return scheme{
		header: name + "-signature", separator: " ", prefix: "v1,", hash: sha256.New, encoding: inBase64,
		key: standardKey, signed: "{id}.{timestamp}.{body}",
		idHeader: name + "-id", stampHeader: name + "-timestamp", unit: seconds, tolerance: 300 * time.Second,
		other: verifyV1a, many: true,
	}
}

// pickSvix reads Svix's own headers and, where they are missing, the standard's.
func pickSvix(_ relay.Endpoint, h http.Header) (*scheme, string) {
	if len(h.Values(svixScheme.header)) == 0 && len(h.Values(standardScheme.header)) > 0 {
		return &standardScheme, ""
	}
	return &svixScheme, ""
}

// Prefixes of Standard Webhooks' keys.
const (
	sharedKey = "whsec_" // base64 of 24 to 64 bytes; the prefix may be missing
	publicKey = "whpk_"  // base64 of an Ed25519 key
)

// standardKey decodes a shared secret; a public key is none.
func standardKey(secret string) []byte {
	if strings.HasPrefix(secret, publicKey) {
		return nil
	}
	key, _ := decodeKey(strings.TrimPrefix(secret, sharedKey))
	return key
}

// decodeKey reads base64 with or without its padding.
func decodeKey(s string) ([]byte, error) {
	return base64.RawStdEncoding.DecodeString(strings.TrimRight(s, "="))
}

func verifyV1a(r request, items []string, parts [][]byte) bool {
	message := bytes.Join(parts, nil)
	matched := false
	for _, secret := range r.ep.Secrets {
		text, ok := strings.CutPrefix(secret.Reveal(), publicKey)
		key, err := decodeKey(text)
		if !ok || err != nil || len(key) != ed25519.PublicKeySize {
			continue
		}
		for _, item := range items {
			text, ok := strings.CutPrefix(item, "v1a,")
			signature, err := base64.StdEncoding.DecodeString(text)
			if ok && err == nil && ed25519.Verify(key, message, signature) {
				matched = true
			}
		}
	}
	return matched
}

func aboutStandard(r request) about {
	id := r.in.Header.Get(svixScheme.idHeader)
	if r.ep.Provider != "svix" || id == "" {
		id = r.in.Header.Get(standardScheme.idHeader)
	}
	return about{id: id, kind: scan(r.in.Body, "type").text("type")}
}
