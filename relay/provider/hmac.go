package provider

import (
	"crypto/hmac"
	"crypto/sha256"

	"github.com/posternhq/postern/relay"
)

// checkHMAC reports whether one of signatures is the HMAC-SHA256 of the parts,
// one after the other, under one of secrets; "" means yes, anything else says
// why not. Several secrets are valid at once while one is being rotated.
//
// Every secret meets every signature and each comparison is constant-time, so
// that the time taken tells nothing about which one was nearly right. An empty
// secret is never tried: everybody knows it.
func checkHMAC(secrets []relay.Secret, signatures [][]byte, parts ...[]byte) (problem string) {
	tried, matched := 0, false
	for _, secret := range secrets {
		if secret == "" {
			continue
		}
		tried++
		mac := hmac.New(sha256.New, []byte(secret.Reveal()))
		for _, part := range parts {
			mac.Write(part)
		}
		want := mac.Sum(nil)
		for _, got := range signatures {
			if hmac.Equal(got, want) {
				matched = true
			}
		}
	}
	switch {
	case matched:
		return ""
	case tried == 0:
		return "the endpoint has no secret to check with"
	}
	return refuse("no secret matches the signature (%d tried)", tried).Reason
}
