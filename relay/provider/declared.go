package provider

import (
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"hash"
	"net/http"
	"strings"
	"time"

	"github.com/posternhq/postern/relay"
)

// hashes are the algorithms that a manifest may name.
var hashes = map[string]func() hash.Hash{
	"sha1": sha1.New, "sha256": sha256.New, "sha384": sha512.New384, "sha512": sha512.New,
}

// keyFormats are how a secret of the manifest becomes a key.
var keyFormats = map[string]func(string) []byte{
	"raw": nil, "": nil,
	"hex": func(s string) []byte { key, _ := hex.DecodeString(s); return key },
	"base64": func(s string) []byte {
		key, _ := decodeKey(strings.NewReplacer("-", "+", "_", "/").Replace(s))
		return key
	},
}

// declaredTolerance is the rule of the provider "hmac" for times that are signed.
const declaredTolerance = 300 * time.Second

// pickDeclared makes a scheme of what the manifest says. The manifest's reader
// knows the same words; what it let through all the same refuses everything.
// {url} is the public URL as the sender used it, {path} its path without the
// query.
func pickDeclared(ep relay.Endpoint, _ http.Header) (*scheme, string) {
	d := ep.HMAC
	if d == nil {
		return nil, "the endpoint does not say how its sender signs"
	}
	s := scheme{
		header: d.Header, prefix: d.Prefix, separator: d.Separator,
		hash: hashes[d.Algorithm], encoding: encoding(d.Encoding), signed: d.Signed,
		stampHeader: d.TimestampHeader, unit: unit(d.TimestampUnit), many: d.Separator != "",
	}
	key, known := keyFormats[d.KeyFormat]
	s.key = key
	setDefault(&s.signed, "{body}")
	setDefault(&s.encoding, inHex)
	setDefault(&s.unit, seconds)
	if d.Algorithm == "" {
		s.hash = sha256.New
	}
	if strings.Contains(s.signed, "{id}") {
		s.idHeader = d.IDHeader
	}
	if d.TimestampHeader != "" && strings.Contains(s.signed, "{timestamp}") {
		s.tolerance = declaredTolerance
	}
	switch {
	case !known || s.hash == nil || s.header == "",
		s.encoding != inHex && s.encoding != inBase64 && s.encoding != inBase64URL,
		s.unit != seconds && s.unit != milliseconds && s.unit != rfc3339,
		strings.Contains(s.signed, "{id}") && s.idHeader == "",
		strings.Contains(s.signed, "{timestamp}") && s.stampHeader == "":
		return nil, "what the endpoint says about how its sender signs cannot be understood"
	}
	return &s, ""
}

func setDefault[T ~string](v *T, value T) {
	if *v == "" {
		*v = value
	}
}

func aboutDeclared(r request) about {
	a := about{}
	if name := r.ep.HMAC.IDHeader; name != "" {
		a.id = r.in.Header.Get(name)
	}
	if name := r.ep.HMAC.TypeHeader; name != "" {
		a.kind = r.in.Header.Get(name)
	}
	return a
}
