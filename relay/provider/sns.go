package provider

import (
	"crypto"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/posternhq/postern/relay"
)

// snsHost is what signs for SNS, and where subscriptions are confirmed. The
// pattern is that of Amazon's own validator.
var snsHost = regexp.MustCompile(`^sns\.[a-zA-Z0-9\-]{3,}\.amazonaws\.com(\.cn)?$`)

// snsSigned are the members that are signed, in order, by the message's type. A
// Subject that is missing is left out.
var snsSigned = map[string][]string{
	"Notification":             {"Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"},
	"SubscriptionConfirmation": {"Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"},
	"UnsubscribeConfirmation":  {"Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"},
}

// verifySNS checks the RSA signature of a message. It proves that SNS sent it,
// for any topic of any account. An endpoint with secrets takes only the topics
// whose ARNs these are.
func verifySNS(r request) relay.Verdict {
	m, ok := readSNS(r.in.Body)
	if !ok {
		return refuse("the body is no message of SNS; raw message delivery is not signed and must be off")
	}
	text, problem := m.signed()
	if problem != "" {
		return refuse("%s", problem)
	}
	if len(r.ep.Secrets) > 0 && !isOneOf(m["TopicArn"], r.ep.Secrets) {
		return refuse("the topic is none of those that the endpoint names")
	}
	var algorithm crypto.Hash
	switch m["SignatureVersion"] {
	case "1":
		algorithm = crypto.SHA1
	case "2":
		algorithm = crypto.SHA256
	default:
		return refuse("the message has no signature of version 1 or 2")
	}
	signature, err := base64.StdEncoding.DecodeString(m["Signature"])
	if err != nil || len(signature) == 0 {
		return refuse("the signature in the message is malformed")
	}
	if !onHost(m["SigningCertURL"], snsHost.MatchString) || !strings.HasSuffix(pathOf(m["SigningCertURL"]), ".pem") {
		return refuse("the certificate of the signature is not one of SNS")
	}
	if v := r.checkRSA(m["SigningCertURL"], algorithm, text, signature); !v.OK {
		return v
	}
	sentAt, ok := rfc3339.parse(m["Timestamp"])
	if !ok {
		return refuse("the timestamp in the message is malformed")
	}
	if problem := judgeAge(sentAt, r.in.ReceivedAt, r.ep.Tolerance, false); problem != "" {
		return refuse("%s", problem)
	}
	return relay.Verdict{OK: true, Verified: true, SentAt: sentAt}
}

// checkRSA checks a signature (PKCS #1 v1.5) under the certificate at url, whose
// host the caller has checked.
func (r request) checkRSA(url string, algorithm crypto.Hash, text string, signature []byte) relay.Verdict {
	key, err := r.rules.certs.key(r.ctx, url, r.in.ReceivedAt, r.trial)
	switch {
	case errors.Is(err, errNoKey):
		return refuse("what the signature names as its certificate is none")
	case err != nil:
		return later("the certificate of the signature could not be fetched")
	}
	sum := algorithm.New()
	sum.Write([]byte(text))
	if rsa.VerifyPKCS1v15(key, algorithm, sum.Sum(nil), signature) != nil {
		return refuse("the signature does not fit the message")
	}
	return relay.Verdict{OK: true, Verified: true}
}

// onHost reports whether u is an https URL on a host that allowed knows, with
// neither user nor port.
func onHost(u string, allowed func(host string) bool) bool {
	parsed, err := url.Parse(u)
	return err == nil && parsed.Scheme == "https" && parsed.User == nil && allowed(parsed.Host)
}

// snsMessage has the strings of a message by their exact names.
type snsMessage map[string]string

func readSNS(body []byte) (snsMessage, bool) {
	if len(body) > maxBodyScan {
		return nil, false
	}
	var raw map[string]json.RawMessage
	if json.Unmarshal(body, &raw) != nil {
		return nil, false
	}
	m := make(snsMessage, len(raw))
	for name, value := range raw {
		var text *string
		if json.Unmarshal(value, &text) == nil && text != nil {
			m[name] = *text
		}
	}
	return m, m["Type"] != ""
}

// signed is the text of which the signature is.
func (m snsMessage) signed() (text, problem string) {
	names, known := snsSigned[m["Type"]]
	if !known {
		return "", "the message is of a type that SNS does not have"
	}
	var out strings.Builder
	for _, name := range names {
		value, there := m[name]
		switch {
		case there:
			out.WriteString(name + "\n" + value + "\n")
		case name != "Subject":
			return "", "the message lacks its " + name
		}
	}
	return out.String(), ""
}

// welcomeSNS confirms a subscription by a GET of the address in the message,
// which is signed and must be SNS's own all the same.
func welcomeSNS(r request) (*relay.Answer, string) {
	m, _ := readSNS(r.in.Body)
	if m["Type"] != "SubscriptionConfirmation" {
		return nil, ""
	}
	if !onHost(m["SubscribeURL"], snsHost.MatchString) {
		return nil, "the address to confirm the subscription at is not one of SNS"
	}
	if _, err := r.rules.certs.download(r.ctx, m["SubscribeURL"]); err != nil {
		v := later("the subscription could not be confirmed")
		return v.Answer, v.Reason
	}
	return answer(http.StatusOK, "", ""), ""
}

func aboutSNS(r request) about {
	m, _ := readSNS(r.in.Body)
	return about{id: m["MessageId"], kind: m["Type"]}
}
