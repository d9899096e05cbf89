package provider

import (
	"encoding/json"
	"net/http"

	"github.com/posternhq/postern/relay"
)

// greetGraph answers the check of a new subscription: a POST with a token in
// the query that is to come back decoded.
func greetGraph(r request) (*relay.Answer, string) {
	token, ok := one(query(r.in), "validationToken")
	if r.in.Method == http.MethodGet || r.in.Method == http.MethodHead || !ok {
		return nil, ""
	}
	return echo(token)
}

// verifyGraph checks Microsoft Graph's clientState, a secret that stands in
// each item of the body. Nothing covers the rest of the body; that is all this
// sender has.
func verifyGraph(r request) relay.Verdict {
	list, ok := graphItems(r.in.Body)
	if !ok {
		return refuse("the body is no list of notifications")
	}
	if len(r.ep.Secrets) == 0 {
		return refuse("the endpoint has no secret to check with")
	}
	for _, item := range list {
		var state string
		if json.Unmarshal(item["clientState"], &state) != nil || state == "" {
			return refuse("a notification has no clientState")
		}
		if !isOneOf(state, r.ep.Secrets) {
			return refuse("the clientState of a notification is none of the endpoint's secrets")
		}
	}
	return relay.Verdict{OK: true, Verified: true}
}

func graphItems(body []byte) ([]map[string]json.RawMessage, bool) {
	var whole map[string]json.RawMessage
	if json.Unmarshal(body, &whole) != nil {
		return nil, false
	}
	list, err := items(whole["value"])
	return list, err == nil
}

// aboutGraph has an id only when the notifications have one. What besides they
// have, subscription and resource, is the same each time one thing changes.
func aboutGraph(r request) about {
	list, ok := graphItems(r.in.Body)
	if !ok {
		return about{}
	}
	return about{id: batch(list, "id"), kind: common(list, "changeType")}
}
