package provider

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"slices"
	"strings"

	"github.com/posternhq/postern/relay"
)

// twilioScheme signs the URL and, after it, names and values of a form's
// parameters in the order of the names. A body that is no form is covered by a
// hash of it in the URL.
var twilioScheme = scheme{
	header: "X-Twilio-Signature", hash: sha1.New, encoding: inBase64, signed: "{url}{body}",
	urls: twilioURLs, body: twilioBody,
}

// twilioURLs are u, u with the default port, and u without any: Twilio's own
// libraries try them all, because what signs is not consistent in this.
func twilioURLs(u string) []string {
	urls := []string{u}
	scheme, host, rest, ok := cutURL(u)
	if !ok {
		return urls
	}
	name, port := cutPort(host)
	switch {
	case port != "":
		return append(urls, scheme+"://"+name+rest)
	case scheme == "https":
		return append(urls, scheme+"://"+host+":443"+rest)
	}
	return append(urls, scheme+"://"+host+":80"+rest)
}

// twilioBody is what of the body is signed. A name that is there several times
// counts with each of its different values, in order; so no value is left
// uncovered.
func twilioBody(in relay.Incoming) (signed []byte, problem string) {
	if want, ok := one(query(in), "bodySHA256"); ok {
		sum := sha256.Sum256(in.Body)
		if !same(hex.EncodeToString(sum[:]), strings.ToLower(want)) {
			return nil, "the body is not the one whose hash is in the URL"
		}
		return nil, ""
	}
	if len(in.Body) == 0 {
		return nil, ""
	}
	if in.Header.Get("Content-Type") != "" && !isForm(in.Header) {
		return nil, "the body is no form and the URL has no bodySHA256, so no signature covers it"
	}
	form, err := url.ParseQuery(string(in.Body))
	if err != nil {
		return nil, "the body is no well-formed form"
	}
	names := make([]string, 0, len(form))
	for name := range form {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		values := form[name]
		slices.Sort(values)
		for _, value := range slices.Compact(values) {
			signed = append(append(signed, name...), value...)
		}
	}
	return signed, ""
}

// aboutTwilio takes Twilio's own token for the id, or what makes a step of a
// message or of a call's progress unique. The other requests of a call look
// alike, each time the app is asked what to do next, and have no id.
func aboutTwilio(r request) about {
	form := url.Values{}
	if isForm(r.in.Header) {
		form, _ = url.ParseQuery(string(r.in.Body))
	} else if len(r.in.Body) == 0 {
		form = query(r.in)
	}
	get := func(name string) string { v, _ := one(form, name); return v }
	a := about{id: r.in.Header.Get("I-Twilio-Idempotency-Token")}
	for _, name := range []string{"MessageStatus", "SmsStatus", "CallStatus"} {
		if status := get(name); status != "" {
			a.kind = name + "." + status
			break
		}
	}
	if a.id != "" || a.kind == "" {
		return a
	}
	switch sid, call, number := get("MessageSid"), get("CallSid"), get("SequenceNumber"); {
	case sid != "":
		a.id = sid + "." + a.kind
	case call != "" && number != "":
		a.id = call + "." + a.kind + "." + number
	}
	return a
}
