package provider

import (
	"crypto/sha256"
)

// Senders that sign the body, one of them with the URL in front, and need few
// words.

var dropboxScheme = scheme{
	header: "X-Dropbox-Signature", hash: sha256.New, encoding: inHex, signed: "{body}",
}

var shopifyScheme = scheme{
	header: "X-Shopify-Hmac-SHA256", hash: sha256.New, encoding: inBase64, signed: "{body}",
}

var typeformScheme = scheme{
	header: "Typeform-Signature", prefix: "sha256=", hash: sha256.New, encoding: inBase64, signed: "{body}",
}

// squareScheme signs the notification URL as it was entered, to the last slash,
// and the body, also an empty one. The key is not decoded. The old SHA-1 header
// x-square-signature is not looked at.
var squareScheme = scheme{
	header: "X-Square-HmacSha256-Signature", hash: sha256.New, encoding: inBase64, signed: "{url}{body}",
}

// aboutShopify takes the id of the delivery, which its retries keep. The id of
// the event is shared by webhooks of several topics.
func aboutShopify(r request) about {
	h := r.in.Header
	sentAt, _ := rfc3339.parse(h.Get("X-Shopify-Triggered-At"))
	return about{id: h.Get("X-Shopify-Webhook-Id"), kind: h.Get("X-Shopify-Topic"), sentAt: sentAt}
}

func aboutSquare(r request) about {
	f := scan(r.in.Body, "event_id", "type", "created_at")
	sentAt, _ := rfc3339.parse(f.text("created_at"))
	return about{id: f.text("event_id"), kind: f.text("type"), sentAt: sentAt}
}

func aboutIntercom(r request) about {
	f := scan(r.in.Body, "id", "topic", "created_at")
	sentAt, _ := seconds.parse(f.number("created_at"))
	return about{id: f.text("id"), kind: f.text("topic"), sentAt: sentAt}
}
