package provider

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"

	"github.com/posternhq/postern/relay"
)

const (
	sendgridSignature = "X-Twilio-Email-Event-Webhook-Signature" // base64 of DER
	sendgridTimestamp = "X-Twilio-Email-Event-Webhook-Timestamp"
)

// verifySendGrid checks ECDSA over timestamp + body. The body ends with CR and
// LF, and they are signed. The endpoint's secret is the public key that SendGrid
// shows, in base64 or PEM.
func verifySendGrid(r request) relay.Verdict {
	value, problem := single(r.in.Header, sendgridSignature)
	if problem != "" {
		return refuse("%s", problem)
	}
	stamp, problem := single(r.in.Header, sendgridTimestamp)
	if problem != "" {
		return refuse("%s", problem)
	}
	signature, err := base64.StdEncoding.DecodeString(value)
	if err != nil {
		return refuse("the header %s is malformed", sendgridSignature)
	}
	sum := sha256.New()
	sum.Write([]byte(stamp))
	sum.Write(r.in.Body)
	hash := sum.Sum(nil)
	tried, matched := 0, false
	for _, secret := range r.ep.Secrets {
		key := ecdsaKey(secret)
		if key == nil {
			continue
		}
		tried++
		if ecdsa.VerifyASN1(key, hash, signature) {
			matched = true
		}
	}
	switch {
	case tried == 0:
		return refuse("the endpoint has no public key to check with: its secret should be SendGrid's verification key")
	case !matched:
		return refuse("no public key matches the signature (%d tried)", tried)
	}
	return dated(r, stamp, sendgridTimestamp)
}

func ecdsaKey(secret relay.Secret) *ecdsa.PublicKey {
	der, err := base64.StdEncoding.DecodeString(secret.Reveal())
	if block, _ := pem.Decode([]byte(secret.Reveal())); block != nil {
		der, err = block.Bytes, nil
	}
	if err != nil {
		return nil
	}
	parsed, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil
	}
	key, _ := parsed.(*ecdsa.PublicKey)
	return key
}

// aboutSendGrid tells batches apart by the ids of their events.
func aboutSendGrid(r request) about {
	list, err := items(r.in.Body)
	if err != nil {
		return about{}
	}
	return about{id: batch(list, "sg_event_id"), kind: common(list, "event")}
}
