package provider

import (
	"crypto/sha256"
	"strings"
	"time"
)

// linearScheme has its time, in milliseconds, inside the body, so that it can be
// neither changed nor signed anew.
var linearScheme = scheme{
	header: "Linear-Signature", hash: sha256.New, encoding: inHex, signed: "{body}",
	stampBody: "webhookTimestamp", unit: milliseconds, tolerance: time.Minute,
	fixed: "Linear has the time inside the body that it signs, so it cannot be signed with a new one",
}

// aboutLinear makes types like "Issue.create".
func aboutLinear(r request) about {
	f := scan(r.in.Body, "type", "action")
	kind := strings.Trim(f.text("type")+"."+f.text("action"), ".")
	return about{id: r.in.Header.Get("Linear-Delivery"), kind: kind}
}
