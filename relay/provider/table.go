package provider

import (
	"net/http"
	"time"

	"github.com/posternhq/postern/relay"
)

// row is one sender of webhooks.
type row struct {
	relay.ProviderFacts

	// marks are headers that only this sender uses, the one with the signature
	// first, for Explain to notice when an endpoint has the wrong provider.
	marks []string

	// How a webhook is checked: by a scheme, by one that depends on the endpoint
	// or on the request, or by a function of the sender's own.
	scheme *scheme
	pick   func(ep relay.Endpoint, h http.Header) (s *scheme, problem string)
	verify func(r request) relay.Verdict

	readsGet bool // events may come with GET

	// greet answers handshakes that nobody signs, welcome those that passed
	// judge. Both give nothing for what is no handshake, and a problem without an
	// answer for one that is refused.
	greet   func(r request) (answer *relay.Answer, problem string)
	welcome func(r request) (answer *relay.Answer, problem string)

	about func(r request) about // of a verified event

	// Resign for senders whose scheme alone does not say how; nil: the scheme.
	resign func(r request, url string, now time.Time) ([]relay.Field, error)
}

func lookup(name string) *row {
	for i := range table {
		if table[i].Name == name {
			return &table[i]
		}
	}
	return nil
}

// judge looks at the method and the signature, and at nothing else.
func (p *row) judge(r request) relay.Verdict {
	switch m := r.in.Method; m {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		if m != http.MethodGet || !p.readsGet {
			return refuse("the request is a %s: that is no webhook, and no handshake of this provider either", m)
		}
	}
	if p.verify != nil {
		return p.verify(r)
	}
	s, problem := p.schemeFor(r)
	if problem != "" {
		return refuse("%s", problem)
	}
	return s.verify(r)
}

// schemeFor is how the sender of r signs with a shared secret, or a sentence
// why it does not.
func (p *row) schemeFor(r request) (s *scheme, problem string) {
	switch {
	case p.pick != nil:
		return p.pick(r.ep, r.in.Header)
	case p.scheme == nil:
		return nil, "this provider does not sign with a shared secret"
	}
	return p.scheme, ""
}

// table has every sender, in alphabetical order. Nobody changes it.
//
// Modes: whoever needs the app's own answer, because the answer is what the
// call is for, is sync. Where some events need it and the others are better
// kept, the mode is hybrid. For all the rest a 2xx as soon as the event is on
// disk is best, because every sender gives up at some time.
//
// Drops are only the statuses that end a subscription at once; that many
// failures in a row end it is true of most, and no single answer's fault.
var table = [...]row{
	{
		ProviderFacts: relay.ProviderFacts{Name: "bitbucket", NeedsSecret: true, Mode: relay.ModeStore, Deadline: 10 * time.Second, Resigns: true},
		marks:         []string{"X-Hub-Signature", "X-Event-Key"},
		scheme:        &bitbucketScheme,
		about:         fromHeaders("X-Request-UUID", "X-Event-Key"),
	},
	{
		// An interaction's answer is what the user sees; an event wants 204.
		ProviderFacts: relay.ProviderFacts{Name: "discord", NeedsSecret: true, Mode: relay.ModeSync, Accepted: http.StatusNoContent, Deadline: 3 * time.Second},
		marks:         []string{discordSignature},
		verify:        verifyDiscord, welcome: welcomeDiscord, about: aboutDiscord,
	},
	{
		ProviderFacts: relay.ProviderFacts{Name: "dropbox", NeedsSecret: true, Mode: relay.ModeStore, Deadline: 10 * time.Second, Resigns: true},
		marks:         []string{"X-Dropbox-Signature"},
		scheme:        &dropboxScheme, greet: greetDropbox,
	},
	{
		ProviderFacts: relay.ProviderFacts{Name: "github", NeedsSecret: true, Mode: relay.ModeStore, Deadline: 10 * time.Second, Resigns: true},
		marks:         []string{"X-Hub-Signature-256", "X-GitHub-Event"},
		scheme:        &githubScheme,
		about:         fromHeaders("X-GitHub-Delivery", "X-GitHub-Event"),
	},
	{
		// GitLab takes a 4xx for a mistake that stays and disables the hook.
		ProviderFacts: relay.ProviderFacts{Name: "gitlab", NeedsSecret: true, Mode: relay.ModeStore, Deadline: 10 * time.Second, Resigns: true, Drops: clientErrors()},
		marks:         []string{gitlabToken, "X-Gitlab-Event"},
		verify:        verifyGitLab, resign: resignGitLab,
		about: fromHeaders("Idempotency-Key", "X-Gitlab-Event"),
	},
	{
		ProviderFacts: relay.ProviderFacts{Name: "graph", NeedsSecret: true, Mode: relay.ModeStore, Deadline: 3 * time.Second},
		verify:        verifyGraph, greet: greetGraph, about: aboutGraph,
	},
	{
		ProviderFacts: relay.ProviderFacts{Name: "hmac", NeedsSecret: true, Mode: relay.ModeStore, Resigns: true},
		pick:          pickDeclared, readsGet: true, about: aboutDeclared,
	},
	{
		ProviderFacts: relay.ProviderFacts{Name: "hubspot", NeedsSecret: true, Mode: relay.ModeStore, Deadline: 5 * time.Second, SignsURL: true, Resigns: true},
		marks:         []string{"X-HubSpot-Signature-v3", "X-HubSpot-Signature"},
		scheme:        &hubspotScheme, about: aboutHubSpot,
	},
	{
		ProviderFacts: relay.ProviderFacts{Name: "intercom", NeedsSecret: true, Mode: relay.ModeStore, Deadline: 5 * time.Second, Resigns: true},
		marks:         []string{"X-Hub-Signature"},
		scheme:        &intercomScheme, greet: greetIntercom, about: aboutIntercom,
	},
	{
		ProviderFacts: relay.ProviderFacts{Name: "linear", NeedsSecret: true, Mode: relay.ModeStore, Deadline: 5 * time.Second},
		marks:         []string{"Linear-Signature", "Linear-Event"},
		scheme:        &linearScheme, about: aboutLinear,
	},
	{
		// Mailgun tries everything again but 200 and 406.
		ProviderFacts: relay.ProviderFacts{Name: "mailgun", NeedsSecret: true, Mode: relay.ModeStore, Accepted: http.StatusOK, Drops: []int{http.StatusNotAcceptable}},
		verify:        verifyMailgun, about: aboutMailgun,
	},
	{
		ProviderFacts: relay.ProviderFacts{Name: "meta", NeedsSecret: true, Mode: relay.ModeStore, Resigns: true},
		marks:         []string{"X-Hub-Signature-256"},
		scheme:        &githubScheme, greet: greetMeta, about: fromBody("", "object"),
	},
	{
		ProviderFacts: relay.ProviderFacts{Name: "none", Mode: relay.ModeStore},
		verify:        acceptAll, readsGet: true,
	},
	{
		ProviderFacts: relay.ProviderFacts{Name: "paddle", NeedsSecret: true, Mode: relay.ModeStore, Deadline: 5 * time.Second, Resigns: true},
		marks:         []string{"Paddle-Signature"},
		scheme:        &paddleScheme, about: fromBody("event_id", "event_type"),
	},
	{
		ProviderFacts: relay.ProviderFacts{Name: "paypal", Mode: relay.ModeStore},
		marks:         []string{paypalSignature, paypalID},
		verify:        verifyPayPal, about: fromBody("id", "event_type"),
	},
	{
		ProviderFacts: relay.ProviderFacts{Name: "sendgrid", NeedsSecret: true, Mode: relay.ModeStore, Deadline: 10 * time.Second},
		marks:         []string{sendgridSignature},
		verify:        verifySendGrid, about: aboutSendGrid,
	},
	{
		ProviderFacts: relay.ProviderFacts{Name: "shopify", NeedsSecret: true, Mode: relay.ModeStore, Deadline: 5 * time.Second, Resigns: true},
		marks:         []string{"X-Shopify-Hmac-SHA256", "X-Shopify-Topic"},
		scheme:        &shopifyScheme, about: aboutShopify,
	},
	{
		// Commands and interactions want the app's words, events only a 2xx.
		ProviderFacts: relay.ProviderFacts{Name: "slack", NeedsSecret: true, Mode: relay.ModeHybrid, Deadline: 3 * time.Second, Resigns: true},
		marks:         []string{"X-Slack-Signature"},
		scheme:        &slackScheme, welcome: welcomeSlack, about: aboutSlack,
	},
	{
		ProviderFacts: relay.ProviderFacts{Name: "sns", Mode: relay.ModeStore, Deadline: 15 * time.Second},
		marks:         []string{"X-Amz-Sns-Message-Type"},
		verify:        verifySNS, welcome: welcomeSNS, about: aboutSNS,
	},
	{
		ProviderFacts: relay.ProviderFacts{Name: "square", NeedsSecret: true, Mode: relay.ModeStore, Deadline: 10 * time.Second, SignsURL: true, Resigns: true},
		marks:         []string{"X-Square-HmacSha256-Signature"},
		scheme:        &squareScheme, about: aboutSquare,
	},
	{
		ProviderFacts: relay.ProviderFacts{Name: "standard", NeedsSecret: true, Mode: relay.ModeStore, Deadline: 15 * time.Second, Resigns: true, Drops: []int{http.StatusGone}},
		marks:         []string{"Webhook-Signature"},
		scheme:        &standardScheme, about: aboutStandard,
	},
	{
		// A few events wait for the answer (authorizations of Issuing, for one):
		// their endpoint says mode: hybrid. The others want a 2xx, soon.
		ProviderFacts: relay.ProviderFacts{Name: "stripe", NeedsSecret: true, Mode: relay.ModeStore, Deadline: 10 * time.Second, Resigns: true},
		marks:         []string{"Stripe-Signature"},
		scheme:        &stripeScheme, about: fromBody("id", "type"),
	},
	{
		ProviderFacts: relay.ProviderFacts{Name: "svix", NeedsSecret: true, Mode: relay.ModeStore, Deadline: 15 * time.Second, Resigns: true, Drops: []int{http.StatusGone}},
		marks:         []string{"Svix-Signature"},
		pick:          pickSvix, about: aboutStandard,
	},
	{
		// The answer is TwiML: what the call or the message does next.
		ProviderFacts: relay.ProviderFacts{Name: "twilio", NeedsSecret: true, Mode: relay.ModeSync, Deadline: 15 * time.Second, SignsURL: true, Resigns: true},
		marks:         []string{"X-Twilio-Signature"},
		scheme:        &twilioScheme, readsGet: true, about: aboutTwilio,
	},
	{
		ProviderFacts: relay.ProviderFacts{Name: "typeform", NeedsSecret: true, Mode: relay.ModeStore, Deadline: 30 * time.Second, Resigns: true, Drops: []int{http.StatusNotFound, http.StatusGone}},
		marks:         []string{"Typeform-Signature"},
		scheme:        &typeformScheme, about: fromBody("event_id", "event_type"),
	},
	{
		// Zoom takes 200 and 204 and nothing else.
		ProviderFacts: relay.ProviderFacts{Name: "zoom", NeedsSecret: true, Mode: relay.ModeStore, Accepted: http.StatusOK, Deadline: 3 * time.Second, Resigns: true},
		marks:         []string{"X-Zm-Signature"},
		scheme:        &zoomScheme, welcome: welcomeZoom, about: aboutZoom,
	},
}

func clientErrors() []int {
	var all []int
	for status := 400; status < 500; status++ {
		all = append(all, status)
	}
	return all
}
