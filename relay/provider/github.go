package provider

import (
	"crypto/sha1"
	"crypto/sha256"
)

// githubScheme is GitHub's and Meta's: HMAC-SHA256 over the body, whatever its
// content type; a form is signed as a form. It has no timestamp. The old
// X-Hub-Signature (SHA-1) is not looked at: GitHub sends both, and the weaker
// one adds only risk.
var githubScheme = scheme{
	header: "X-Hub-Signature-256", prefix: "sha256=", hash: sha256.New, encoding: inHex, signed: "{body}",
	beside: &intercomScheme,
}

// bitbucketScheme has the header of GitHub's old signature with the new hash.
var bitbucketScheme = scheme{
	header: "X-Hub-Signature", prefix: "sha256=", hash: sha256.New, encoding: inHex, signed: "{body}",
}

// intercomScheme is the old signature itself, HMAC-SHA1.
var intercomScheme = scheme{
	header: "X-Hub-Signature", prefix: "sha1=", hash: sha1.New, encoding: inHex, signed: "{body}",
}
