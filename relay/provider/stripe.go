package provider

import (
	"crypto/sha256"
	"time"
)

// stripeScheme signs t + "." + body, where the key is the whole secret with its
// "whsec_" in front, not decoded. Like Stripe's own libraries it refuses only
// what is too old, not what comes from the future.
//
//	Stripe-Signature: t=<unix seconds>,v1=<hex>[,v1=<hex>][,v0=<hex>]
var stripeScheme = scheme{
	header: "Stripe-Signature", pairs: &pairs{between: ",", time: "t", signature: "v1"},
	hash: sha256.New, encoding: inHex, signed: "{timestamp}.{body}",
	unit: seconds, tolerance: 300 * time.Second, pastOnly: true, many: true,
}

// paddleScheme is Paddle Billing's. Its tolerance is the one Paddle recommends:
// each attempt is signed anew. Resign makes one h1 only, because Paddle's own
// library for Go knows no more than one.
//
//	Paddle-Signature: ts=<unix seconds>;h1=<hex>[;h1=<hex>]
var paddleScheme = scheme{
	header: "Paddle-Signature", pairs: &pairs{between: ";", time: "ts", signature: "h1"},
	hash: sha256.New, encoding: inHex, signed: "{timestamp}:{body}",
	unit: seconds, tolerance: 5 * time.Second,
}
