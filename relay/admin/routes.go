package admin

import (
	"net/http"

	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/relay"
)

// route is one row of the API.
type route struct {
	method, path string        // below Prefix; {id} is a record's
	scopes       []relay.Scope // whose tokens may call it
	about        string        // what it is for, in one sentence
	params       []param       // the query parameters; no others are taken
	takes        func() any    // a new value to decode the body into; nil: no body
	gives        any           // a value of the answer's type; nil: it is no JSON
	handle       func(*Server, *call) (any, error)
}

// Whoever works on an app, and whoever runs the relay. How far a token reaches is
// another question, see call.may.
var people = []relay.Scope{relay.ScopeDeveloper, relay.ScopeAdmin}

var paramApp = param{name: "app", kind: kindText, about: "only of this app; default: the token's own, for an administrator all"}

// filterParams select events in a list.
var filterParams = []param{
	paramApp,
	{name: "endpoint", kind: kindText, about: "only of this endpoint"},
	{name: "type", kind: kindText, about: "only of this type, or of the types that begin so with * behind it"},
	{name: "state", kind: kindWords, about: "only with a delivery in one of these states, or refused"},
	{name: "refused", kind: kindFlag, about: "only refused ones, or only accepted ones"},
	{name: "since", kind: kindTime, about: "received at this time or later"},
	{name: "until", kind: kindTime, about: "received before this time"},
	{name: "text", kind: kindText, about: "with this text in the body, a header, the target, the type or the dedupe key"},
	{name: "before", kind: kindText, about: "the next of the page before"},
	{name: "limit", kind: kindNumber, low: 1, high: maxPage, about: "events on a page; default 100"},
}

var paramInstance = param{name: "instance", kind: kindText, about: "only of this instance, by its name"}

// routes is the whole API.
var routes = []route{
	{http.MethodGet, "/events", people, "List received webhooks, newest first.",
		filterParams, nil, api.EventList{}, (*Server).listEvents},
	{http.MethodGet, "/events/stream", people, "Follow what happens as server-sent events; Last-Event-ID resumes.",
		[]param{
			paramApp,
			{name: "endpoint", kind: kindText, about: "only of this endpoint"},
			{name: "filter", kind: kindText, about: "only events that these terms select"},
			{name: "bodies", kind: kindFlag, about: "with headers and bodies"},
			{name: "resign", kind: kindFlag, about: "with header lines that sign the event anew, by the endpoint's secrets"},
			{name: "url", kind: kindURL, about: "where the developer's app is, for signatures that cover the address"},
		}, nil, nil, (*Server).streamEvents},
	{http.MethodGet, "/events/{id}", people, "Show one webhook with its request, its deliveries and all attempts.",
		nil, nil, api.EventDetail{}, (*Server).showEvent},
	{http.MethodGet, "/events/{id}/export", people, "Export one webhook as a curl command, a HAR file or a Go test.",
		[]param{
			{name: "as", kind: kindChoice, choices: []string{"curl", "har", "go"}, required: true, about: "the format"},
			{name: "target", kind: kindURL, about: "the address to send it to; default: the one it came to"},
		}, nil, nil, (*Server).exportEvent},
	{http.MethodPost, "/replays", people, "Plan to deliver stored webhooks once more; nothing is delivered yet.",
		nil, func() any { return new(api.ReplayRequest) }, api.Replay{}, (*Server).planReplay},
	{http.MethodGet, "/replays", people, "List the newest replays.",
		[]param{paramApp}, nil, api.ReplayList{}, (*Server).listReplays},
	{http.MethodGet, "/replays/{id}", people, "Show how far a replay is.",
		nil, nil, api.Replay{}, (*Server).showReplay},
	{http.MethodPost, "/replays/{id}/start", people, "Start a planned replay.",
		nil, nil, api.Replay{}, (*Server).startReplay},
	{http.MethodPost, "/replays/{id}/cancel", people, "End a replay and give up its deliveries that wait.",
		nil, nil, api.Replay{}, (*Server).cancelReplay},
	{http.MethodPost, "/deliveries/{id}/requeue", people, "Give a dead or cancelled delivery a fresh schedule.",
		nil, nil, api.Delivery{}, (*Server).requeueDelivery},
	{http.MethodPost, "/deliveries/{id}/cancel", people, "Give up a delivery that waits.",
		nil, nil, api.Delivery{}, (*Server).cancelDelivery},
	{http.MethodGet, "/instances", people, "List the instances whose agents are connected.",
		[]param{paramApp}, nil, api.InstanceList{}, (*Server).listInstances},
	{http.MethodGet, "/logs", people, "Read what an app's instances write, as server-sent events.",
		[]param{
			{name: paramApp.name, kind: kindText, about: "whose; default: the token's own"},
			paramInstance,
			{name: "lines", kind: kindNumber, low: 0, high: maxLogLines, about: "of each instance, at most so many of the latest lines; default 200"},
			{name: "follow", kind: kindFlag, about: "go on with what they write from now on"},
		}, nil, nil, (*Server).streamLogs},
	{http.MethodGet, "/lastwords", people, "List how instances ended, newest first.",
		[]param{paramApp, paramInstance,
			{name: "limit", kind: kindNumber, low: 1, high: relay.MaxLastWords, about: "at most so many; default 20"}},
		nil, api.LastWordsList{}, (*Server).listLastWords},
}
