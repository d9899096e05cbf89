package auth

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// The classic forgeries of RFC 8725 section 2: somebody who knows our public
// key and any valid token, but not the private key.
func TestRefusesForgedSignatures(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	kid := d.private(t).ID
	public, err := d.keys.Public(kid)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	pemText := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		method jwt.SigningMethod
		key    any
	}{
		"none":                      {jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType},
		"HS256 by our public key":   {jwt.SigningMethodHS256, []byte(public)},
		"HS256 by its DER":          {jwt.SigningMethodHS256, der},
		"HS256 by its PEM":          {jwt.SigningMethodHS256, pemText},
		"HS512 by its PEM":          {jwt.SigningMethodHS512, pemText},
		"RS256 by a key of its own": {jwt.SigningMethodRS256, rsaKey},
		"PS256 by a key of its own": {jwt.SigningMethodPS256, rsaKey},
		"ES256 by a key of its own": {jwt.SigningMethodES256, ecKey},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			token := jwt.NewWithClaims(row.method, jwt.MapClaims{
				"iss": "postern", "aud": "postern-relay", "sub": "shop", "scope": "admin", "jti": "tok_1",
				"iat": start.Unix(), "exp": start.Add(time.Hour).Unix(),
			})
			token.Header["kid"] = kid
			raw, err := token.SignedString(row.key)
			if err != nil {
				t.Fatal(err)
			}
			_, err = d.verifier.Verify(t.Context(), raw)
			wantReason(t, err, TokenAlgorithm)

			// The same signature under a header that claims EdDSA.
			parts := strings.Split(raw, ".")
			lie := b64(d.header(t, nil)) + "." + parts[1] + "." + parts[2]
			_, err = d.verifier.Verify(t.Context(), lie)
			wantReason(t, err, TokenSignature)
		})
	}

	t.Run("HMAC over a header that says EdDSA", func(t *testing.T) {
		t.Parallel()
		text := b64(d.header(t, nil)) + "." + b64(d.payload(t, nil))
		mac := hmac.New(sha256.New, public)
		mac.Write([]byte(text))
		_, err := d.verifier.Verify(t.Context(), text+"."+b64(string(mac.Sum(nil))))
		wantReason(t, err, TokenSignature)
	})
}

func TestRefusesTamperedTokens(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	raw, _ := d.issue(t)
	parts := strings.Split(raw, ".")
	other := d.ours(t, d.header(t, nil), d.payload(t, object{"scope": "admin"}))
	otherParts := strings.Split(other, ".")
	for name, row := range map[string]struct {
		raw  string
		want Reason
	}{
		"another payload":            {parts[0] + "." + b64(d.payload(t, object{"sub": "bank"})) + "." + parts[2], TokenSignature},
		"another token's signature":  {parts[0] + "." + parts[1] + "." + otherParts[2], TokenSignature},
		"another header":             {b64(d.header(t, object{"x": 1})) + "." + parts[1] + "." + parts[2], TokenSignature},
		"one bit of the signature":   {parts[0] + "." + parts[1] + "." + flip(parts[2]), TokenSignature},
		"a shorter signature":        {parts[0] + "." + parts[1] + "." + parts[2][:len(parts[2])-2], TokenSignature},
		"no signature":               {parts[0] + "." + parts[1] + ".", TokenSignature},
		"a signature of zeros":       {parts[0] + "." + parts[1] + "." + b64(string(make([]byte, 64))), TokenSignature},
		"loose bits at the end":      {loosen(raw), TokenMalformed},
		"padding":                    {raw + "==", TokenMalformed},
		"a line break in between":    {raw[:len(raw)-10] + "\n" + raw[len(raw)-10:], TokenMalformed},
		"a line break at the end":    {raw + "\n", TokenMalformed},
		"a space before":             {" " + raw, TokenMalformed},
		"a letter of another script": {raw[:10] + "é" + raw[10:], TokenMalformed},
		"two parts":                  {parts[0] + "." + parts[1], TokenMalformed},
		"four parts":                 {raw + ".x", TokenMalformed},
		"an encrypted token":         {b64(`{"alg":"dir","enc":"A256GCM"}`) + "..aXY.dGV4dA.dGFn", TokenMalformed},
		"JSON serialization":         {`{"payload":"` + parts[1] + `","signature":"` + parts[2] + `"}`, TokenMalformed},
		"a single word":              {"hello", TokenMalformed},
		"dots alone":                 {"..", TokenMalformed},
		"nothing":                    {"", TokenMissing},
		"a huge one":                 {raw + strings.Repeat("A", MaxTokenBytes), TokenMalformed},
		"a header that is no JSON":   {d.ours(t, `{"alg":"EdDSA"`, d.payload(t, nil)), TokenMalformed},
		"a header that is a list":    {d.ours(t, `["alg"]`, d.payload(t, nil)), TokenMalformed},
		"a payload that is null":     {d.ours(t, d.header(t, nil), `null`), TokenMalformed},
		"a payload that is text":     {d.ours(t, d.header(t, nil), `"x"`), TokenMalformed},
		"an empty payload":           {d.ours(t, d.header(t, nil), ``), TokenMalformed},
		"a payload with a tail":      {d.ours(t, d.header(t, nil), d.payload(t, nil)+`{"sub":"bank"}`), TokenMalformed},
		"a payload nested deeply":    {d.ours(t, d.header(t, nil), `{"a":`+strings.Repeat("[", 2000)), TokenMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := d.verifier.Verify(t.Context(), row.raw)
			wantReason(t, err, row.want)
			wantNoLeak(t, err, row.raw)
		})
	}
}

// flip changes one bit in the middle of a part.
func flip(part string) string {
	b := []byte(part)
	i := len(b) / 2
	if b[i] == 'A' {
		b[i] = 'B'
	} else {
		b[i] = 'A'
	}
	return string(b)
}

// loosen sets the unused low bits of a token's last character: a lenient
// base64 reader sees the very same signature.
func loosen(raw string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, raw[len(raw)-1])
	return raw[:len(raw)-1] + string(alphabet[last|1])
}

// A key that comes with the token, or from where the token says, is never used
// (RFC 8725 section 3.10).
func TestIgnoresKeysThatTheTokenBrings(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	jwk := object{"kty": "OKP", "crv": "Ed25519", "x": b64(string(public)), "kid": "mine"}
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("the verifier fetched a key")
	}))
	t.Cleanup(server.Close)
	for name, row := range map[string]struct {
		header object
		want   Reason
	}{
		"jwk under our kid":   {object{"jwk": jwk}, TokenSignature},
		"jwk under its kid":   {object{"jwk": jwk, "kid": "mine"}, TokenUnknownKey},
		"jku under our kid":   {object{"jku": server.URL}, TokenSignature},
		"jku under its kid":   {object{"jku": server.URL, "kid": "mine"}, TokenUnknownKey},
		"x5u":                 {object{"x5u": server.URL, "kid": "mine"}, TokenUnknownKey},
		"x5c":                 {object{"x5c": []string{b64(string(public))}, "kid": "mine"}, TokenUnknownKey},
		"a kid that is a URL": {object{"kid": server.URL}, TokenMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			raw := signed(t, d.header(t, row.header), d.payload(t, nil), private)
			_, err := d.verifier.Verify(t.Context(), raw)
			wantReason(t, err, row.want)
		})
	}
}
