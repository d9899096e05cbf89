package auth

import (
	"crypto/ed25519"
	"encoding/base64"
)

// Sign signs message with the newest key (Ed25519, RFC 8032). The signature is
// base64url without padding.
func (k *Keyring) Sign(message []byte) (signature, keyID string, err error) {
	key, err := k.signing()
	if err != nil {
		return "", "", err
	}
	return base64.RawURLEncoding.EncodeToString(ed25519.Sign(key.private, message)), key.ID, nil
}

// Verify reports whether signature is Sign's of message by the key with keyID.
func (k *Keyring) Verify(message []byte, signature, keyID string) bool {
	public, err := k.Public(keyID)
	if err != nil {
		return false
	}
	raw, err := base64.RawURLEncoding.DecodeString(signature)
	return err == nil && ed25519.Verify(public, message, raw)
}

// SigningKey is the id of the key that signs now.
func (k *Keyring) SigningKey() (string, error) {
	key, err := k.signing()
	return key.ID, err
}
