package provider

import (
	"crypto/sha256"
	"strconv"
	"strings"
	"time"
)

// hubspotScheme is version 3. Requests carry the older X-HubSpot-Signature
// besides. It is not looked at: its versions 1 and 2 are a plain SHA-256 over the
// secret and what follows, and whoever has seen one such signature can append to
// the body and sign the result.
var hubspotScheme = scheme{
	header: "X-HubSpot-Signature-v3", hash: sha256.New, encoding: inBase64,
	signed: "{method}{url}{body}{timestamp}", stampHeader: "X-HubSpot-Request-Timestamp",
	unit: milliseconds, tolerance: 300 * time.Second, pastOnly: true,
	urls: func(url string) []string { return []string{decodeHubSpot(url)} },
}

// hubspotDecoded are the characters that HubSpot signs decoded; it leaves all
// others as they are written in the URL.
const hubspotDecoded = ":/?@!$'()*,;"

func decodeHubSpot(url string) string {
	var out strings.Builder
	for i := 0; i < len(url); i++ {
		if url[i] == '%' && i+2 < len(url) {
			if c, err := strconv.ParseUint(url[i+1:i+3], 16, 8); err == nil && strings.IndexByte(hubspotDecoded, byte(c)) >= 0 {
				out.WriteByte(byte(c))
				i += 2
				continue
			}
		}
		out.WriteByte(url[i])
	}
	return out.String()
}

// aboutHubSpot tells batches apart by their events. HubSpot does not promise
// that an eventId is unique, so what else identifies an event is in the id too.
// The attemptNumber is not: it is what differs between an event and its retry.
func aboutHubSpot(r request) about {
	list, err := items(r.in.Body)
	if err != nil {
		return about{}
	}
	return about{
		id:   batch(list, "eventId", "portalId", "subscriptionId", "subscriptionType", "objectId", "occurredAt", "propertyName"),
		kind: common(list, "subscriptionType"),
	}
}
