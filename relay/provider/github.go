package provider

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"github.com/posternhq/postern/relay"
)

const (
	githubHeader   = "X-Hub-Signature-256" // sha256=<hex>
	githubDelivery = "X-GitHub-Delivery"   // a GUID; the same one when redelivered by hand
	githubEvent    = "X-GitHub-Event"      // push, ping, ...
)

// verifyGitHub checks GitHub's scheme: HMAC-SHA256 over the body, whatever its
// content type. It has no timestamp. The old X-Hub-Signature (SHA-1) is not
// looked at: GitHub sends both, and the weaker one adds only risk.
//
// The delivery id and the event type are headers that the signature does not
// cover. Whoever holds a signed body could send it again under a new id; the
// scheme gives no way to notice.
func verifyGitHub(r Request) relay.Verdict {
	value, problem := single(r.Header, githubHeader)
	if problem != "" {
		return refuse("%s", problem)
	}
	digits, ok := strings.CutPrefix(value, "sha256=")
	signature, err := hex.DecodeString(digits)
	if !ok || err != nil || len(signature) != sha256.Size {
		return refuse("the header %s is malformed", githubHeader)
	}
	if problem = checkHMAC(r.Secrets, [][]byte{signature}, r.Body); problem != "" {
		return refuse("%s", problem)
	}
	return relay.Verdict{
		OK: true, Verified: true,
		DedupeKey: label(r.Header.Get(githubDelivery)), Type: label(r.Header.Get(githubEvent)),
	}
}
