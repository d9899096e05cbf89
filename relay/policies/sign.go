package policies

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/posternhq/postern/relay"
)

// SigningText is what the signature of v is over:
//
//	postern manifest version
//	number: 7
//	sha256: 9f86d0…            of the text, hex
//	origin: api
//	applied_at: 2026-11-21T14:03:02.123Z
//	applied_by: "tok_… admin"
//
// each line ended by a newline; applied_at in UTC with milliseconds, applied_by quoted
// as in Go.
func SigningText(v relay.ManifestVersion) []byte {
	return fmt.Appendf(nil, "postern manifest version\nnumber: %d\nsha256: %s\norigin: %s\napplied_at: %s\napplied_by: %q\n",
		v.Number, v.SHA256, v.Origin, v.AppliedAt.UTC().Format("2006-01-02T15:04:05.000Z07:00"), v.AppliedBy)
}

// sign signs v, unless the node has no key. A version that cannot be signed is in force
// all the same; the log says so.
func (p *Policies) sign(v *relay.ManifestVersion) {
	if p.cfg.Sign == nil {
		return
	}
	signature, key, err := p.cfg.Sign(SigningText(*v))
	if err != nil {
		p.cfg.Logger.Error("manifest version is not signed", "version", v.Number, "error", err)
		return
	}
	v.Signature, v.KeyID = signature, key
}

func digestOf(source []byte) string {
	sum := sha256.Sum256(source)
	return hex.EncodeToString(sum[:])
}
