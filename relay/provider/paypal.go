package provider

import (
	"crypto"
	"encoding/base64"
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/posternhq/postern/relay"
)

const (
	paypalID        = "Paypal-Transmission-Id"
	paypalTime      = "Paypal-Transmission-Time" // RFC 3339
	paypalSignature = "Paypal-Transmission-Sig"  // base64
	paypalCert      = "Paypal-Cert-Url"
	paypalAlgorithm = "Paypal-Auth-Algo"
)

// verifyPayPal checks RSA over id|time|webhook id|CRC-32 of the body, in decimal.
// The webhook id is not sent: the endpoint has it.
//
// A CRC-32 is easily met by another body, so the signature protects the body
// less than it seems; that is all PayPal offers without a call of its API.
func verifyPayPal(r request) relay.Verdict {
	if r.ep.WebhookID == "" {
		return refuse("the endpoint has no webhook id, which PayPal's signatures cover")
	}
	values := map[string]string{}
	for _, name := range []string{paypalID, paypalTime, paypalSignature, paypalCert, paypalAlgorithm} {
		value, problem := single(r.in.Header, name)
		if problem != "" {
			return refuse("%s", problem)
		}
		values[name] = value
	}
	if !strings.EqualFold(values[paypalAlgorithm], "SHA256withRSA") {
		return refuse("the header %s names another algorithm than SHA256withRSA", paypalAlgorithm)
	}
	signature, err := base64.StdEncoding.DecodeString(values[paypalSignature])
	if err != nil || len(signature) == 0 {
		return refuse("the header %s is malformed", paypalSignature)
	}
	sentAt, ok := rfc3339.parse(values[paypalTime])
	if !ok {
		return refuse("the timestamp in %s is malformed", paypalTime)
	}
	if !onHost(values[paypalCert], isPayPal) {
		return refuse("the certificate of the signature is not one of PayPal")
	}
	text := fmt.Sprintf("%s|%s|%s|%d", values[paypalID], values[paypalTime], r.ep.WebhookID, crc32.ChecksumIEEE(r.in.Body))
	if v := r.checkRSA(values[paypalCert], crypto.SHA256, text, signature); !v.OK {
		return v
	}
	if problem := judgeAge(sentAt, r.in.ReceivedAt, r.ep.Tolerance, false); problem != "" {
		return refuse("%s", problem)
	}
	return relay.Verdict{OK: true, Verified: true, SentAt: sentAt}
}

func isPayPal(host string) bool {
	return host == "paypal.com" || strings.HasSuffix(host, ".paypal.com")
}
