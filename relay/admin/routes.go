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

// Whoever runs the relay.
var operators = []relay.Scope{relay.ScopeAdmin}

var paramWhose = param{name: paramApp.name, kind: kindText, about: "whose calls; default: the token's own app"}

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

	// Calls to the outside.
	{http.MethodGet, "/egress/explain", people, "Say what would become of a call, and which line of the manifest decides.",
		[]param{paramWhose,
			{name: "url", kind: kindText, required: true, about: "https://host/… for a tunnel, http://host/path for a request, tcp://host:port"},
			{name: "method", kind: kindText, about: "of a request; default GET"},
			{name: paramInstance.name, kind: kindText, about: "as this instance would call: a canary's policy may differ"}},
		nil, api.Explanation{}, (*Server).explainCall},
	{http.MethodGet, "/egress/flows", people, "List the latest calls, newest first.",
		[]param{paramApp,
			{name: "target", kind: kindText, about: "only to this host, or host and port"},
			{name: "verdict", kind: kindChoice, choices: []string{"allow", "report", "deny"}, about: "only with this verdict"},
			{name: "limit", kind: kindNumber, low: 1, high: maxFlows, about: "at most so many; default 100"}},
		nil, api.FlowList{}, (*Server).listFlows},
	{http.MethodGet, "/egress/flows/stream", people, "Follow calls as they are logged, as server-sent events.",
		[]param{paramApp}, nil, nil, (*Server).streamFlows},
	{http.MethodGet, "/egress/targets", people, "List what was ever called and let through, by app and target.",
		[]param{paramApp}, nil, api.TargetList{}, (*Server).listTargets},
	{http.MethodGet, "/egress/usage", people, "Add up calls and bytes by app, target and rule, the largest first.",
		[]param{paramApp, {name: "since", kind: kindTime, about: "calls from the hour of this time on; default: of the last day"}},
		nil, api.UsageList{}, (*Server).listCallUsage},
	{http.MethodGet, "/egress/learn", people, "Propose the smallest allow list for what an app has called.",
		[]param{paramWhose, {name: "since", kind: kindTime, about: "calls from the hour of this time on; default: of the last week"}},
		nil, api.Learned{}, (*Server).learnRules},
	{http.MethodGet, "/egress/status", people, "Show which policy every agent decides by, and for administrators how many calls there are.",
		[]param{paramApp}, nil, api.EgressStatus{}, (*Server).egressStatus},
	{http.MethodGet, "/egress/orders", people, "List emergency denies and exceptions, newest first.",
		[]param{{name: "all", kind: kindFlag, about: "those that are over, too"}},
		nil, api.OrderList{}, (*Server).listOrders},
	{http.MethodPost, "/egress/orders", operators, "Make an emergency deny or an exception, for a time.",
		nil, func() any { return new(api.OrderRequest) }, api.Order{}, (*Server).createOrder},
	{http.MethodPost, "/egress/orders/{id}/end", operators, "End an emergency deny or an exception before its time.",
		nil, nil, api.Order{}, (*Server).endOrder},

	// The manifest: all apps', so none of these takes a token of one app.
	{http.MethodGet, "/manifest", operators, "Show the running version of the manifest with its text.",
		nil, nil, api.ManifestVersion{}, (*Server).showManifest},
	{http.MethodGet, "/manifest/versions", operators, "List the versions of the manifest, newest first.",
		[]param{{name: "limit", kind: kindNumber, low: 1, high: maxVersions, about: "at most so many; default 100"}},
		nil, api.ManifestList{}, (*Server).listManifests},
	{http.MethodGet, "/manifest/versions/{id}", operators, "Show one version of the manifest with its text.",
		nil, nil, api.ManifestVersion{}, (*Server).showVersion},
	{http.MethodPost, "/manifest/apply", operators, "Put a text into force as the next version; its tests must pass.",
		nil, newManifestRequest, api.ManifestVersion{}, (*Server).applyManifest},
	{http.MethodPost, "/manifest/diff", operators, "Say what a text would change, for the calls recorded lately, too.",
		nil, newManifestRequest, api.ManifestDiff{}, (*Server).diffManifest},
	{http.MethodPost, "/manifest/rollback", operators, "Go back to a version, or end a canary.",
		nil, func() any { return new(api.RollbackRequest) }, api.ManifestVersion{}, (*Server).rollbackManifest},
	{http.MethodPost, "/manifest/promote", operators, "Put a canary into force for all.",
		nil, nil, api.ManifestVersion{}, (*Server).promoteManifest},
	{http.MethodGet, "/audit", operators, "List who did what, newest first.",
		[]param{paramApp, {name: "limit", kind: kindNumber, low: 1, high: maxAudit, about: "at most so many; default 100"}},
		nil, api.AuditList{}, (*Server).listAudit},
}

func newManifestRequest() any { return new(api.ManifestRequest) }
