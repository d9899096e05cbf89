package relay

import (
	"slices"
	"strings"
	"time"
)

// Limits of an endpoint and its destinations.
const (
	maxInFlight    = 1000      // deliveries to one destination at once
	maxMaxBody     = 256 << 20 // bytes; a body is held in memory
	maxSecrets     = 10        // of one endpoint: each is tried on every webhook
	maxRetries     = 50        // steps of a schedule
	maxRetryPause  = 7 * 24 * time.Hour
	minRetryPause  = time.Millisecond
	maxFailures    = 1000        // until a breaker opens
	minTolerance   = time.Second // less is shorter than the way of a webhook
	maxTolerance   = 7 * 24 * time.Hour
	minDeadline    = 100 * time.Millisecond
	maxDeadline    = time.Minute
	maxWebhookID   = 255 // characters
	maxRedactions  = 100 // names or pointers of one list
	minRetention   = time.Second
	maxRetention   = 3650 * 24 * time.Hour
	endpointPrefix = "/webhooks/"
)

// The providers that the reader knows by itself.
const (
	providerNone   = "none"   // takes everything, verifies nothing
	providerHMAC   = "hmac"   // the endpoint's own scheme
	providerPayPal = "paypal" // signs an id that it does not send
)

func (r *manifestReader) readEndpoint(app AppID, p place) Endpoint {
	f := r.fields(p, "provider", "secrets", "hmac", "verify_token", "webhook_id", "tolerance",
		"mode", "deadline", "allow_unsubscribe", "path", "order_by",
		"max_in_flight", "rate", "retry", "breaker", "resign", "max_body",
		"redact", "retention", "fan_out")
	r.require(p, f, "provider")

	provider := r.readProvider(f["provider"])
	e := Endpoint{
		App:              app,
		Name:             p.name,
		Provider:         provider,
		Secrets:          r.readSecrets(f["secrets"]),
		Mode:             r.readMode(f["mode"], provider),
		Path:             endpointPrefix + p.name,
		HMAC:             r.readHMAC(f["hmac"]),
		WebhookID:        r.readWebhookID(f["webhook_id"]),
		Tolerance:        r.duration(f["tolerance"], 0, minTolerance, maxTolerance),
		MaxInFlight:      r.readInFlight(f["max_in_flight"]),
		Rate:             r.readRate(f["rate"]),
		Retry:            r.readRetry(f["retry"]),
		Breaker:          r.readBreaker(f["breaker"]),
		Deadline:         r.duration(f["deadline"], 0, minDeadline, maxDeadline),
		Resign:           r.readResign(f["resign"], provider),
		MaxBody:          r.size(f["max_body"], DefaultMaxBody, maxMaxBody),
		AllowUnsubscribe: r.boolean(f["allow_unsubscribe"]),
		Destinations:     r.readFanOut(f["fan_out"], provider),
		Redact:           r.readRedaction(f["redact"]),
		Retention:        r.readRetention(f["retention"]),
	}
	if f["path"].given() {
		e.Path, _ = parsed(r, f["path"], expectedPath, parsePath)
	}
	if f["order_by"].given() {
		e.OrderBy, _ = parsed(r, f["order_by"], expectedPointer, parsePointer)
	}
	if f["verify_token"].given() {
		e.VerifyToken = r.readSecret(f["verify_token"])
	}
	r.checkSecretCount(p, provider, f["secrets"])
	r.checkProviderKeys(p, e, f)
	return e
}

// checkProviderKeys reports the keys that this provider cannot do without, and
// those that it has no use for.
func (r *manifestReader) checkProviderKeys(p place, e Endpoint, f map[string]place) {
	provider := e.Provider
	scheme := f["hmac"]
	switch {
	case provider == providerHMAC && !scheme.given():
		r.failAt(p.key, p.path, "provider hmac needs to know how the sender signs; expected hmac: {header: NAME}")
	case provider != providerHMAC && provider != "" && scheme.given():
		r.failAt(scheme.key, scheme.path, "expected provider: hmac with this key, found provider %s, which has a scheme of its own", provider)
	}
	if tolerance := f["tolerance"]; tolerance.given() && e.HMAC != nil && !strings.Contains(e.HMAC.Signed, "{timestamp}") {
		r.failAt(tolerance.key, tolerance.path, "expected {timestamp} in hmac.signed with this key: a time that nobody signed proves nothing")
	}
	if provider == providerPayPal && !f["webhook_id"].given() {
		r.failAt(p.key, p.path, "provider paypal signs the webhook's id and does not send it; expected webhook_id: ID")
	}
}

func (r *manifestReader) readProvider(p place) string {
	if !p.given() {
		return ""
	}
	name, ok := r.text(p, "the name of a provider")
	if !ok || name == providerNone {
		return name
	}
	known := r.opts.Providers
	if known == nil {
		if _, expected := parseName(name); expected != "" {
			r.expected(p, "the name of a provider")
			return ""
		}
		return name
	}
	if _, ok := r.facts(name); !ok {
		words := []string{providerNone}
		for _, p := range known {
			words = append(words, p.Name)
		}
		slices.Sort(words)
		words = slices.Compact(words)
		r.fail(p, "unknown provider %s; expected %s%s", quote(name), oneOf(words), didYouMean(name, words))
		return ""
	}
	return name
}

// facts are those of a known provider.
func (r *manifestReader) facts(name string) (ProviderFacts, bool) {
	i := slices.IndexFunc(r.opts.Providers, func(p ProviderFacts) bool { return p.Name == name })
	if i < 0 {
		return ProviderFacts{}, false
	}
	return r.opts.Providers[i], true
}

func (r *manifestReader) readSecrets(p place) []Secret {
	var secrets []Secret
	for _, item := range r.items(place{path: p.path, key: p.key, node: p.node, secret: true}, maxSecrets) {
		secrets = append(secrets, r.readSecret(item))
	}
	if r.opts.SkipSecrets {
		return nil // an empty key must not look like a key
	}
	return secrets
}

// checkSecretCount refuses an endpoint that could verify nothing. It counts
// what is written, so that a secret that cannot be resolved is one error only.
func (r *manifestReader) checkSecretCount(p place, provider string, secrets place) {
	if provider == "" || provider == providerNone {
		return
	}
	if facts, known := r.facts(provider); known && !facts.NeedsSecret {
		return
	}
	if !secrets.empty() {
		return
	}
	r.failAt(p.key, p.path, "provider %s needs a secret; expected secrets: [{env: NAME}], or provider: none to accept everything", provider)
}

// readMode is the provider's own mode where the manifest names none.
func (r *manifestReader) readMode(p place, provider string) Mode {
	if facts, _ := r.facts(provider); !p.given() && facts.Mode != "" {
		return facts.Mode
	}
	return Mode(r.choice(p, string(ModeStore), string(ModeHybrid), string(ModeSync)))
}

// readResign refuses what could not be done: the delivery would go out with the
// old signature, and the app would find it stale.
func (r *manifestReader) readResign(p place, provider string) bool {
	resign := r.boolean(p)
	if !resign || r.opts.Providers == nil || provider == "" {
		return resign
	}
	switch facts, _ := r.facts(provider); {
	case facts.Resigns:
	case provider == providerNone:
		r.fail(p, "expected false; provider none knows no signature that could be made anew")
	default:
		r.fail(p, "expected false; %s cannot be signed anew: only the sender has the key, or the signature or its time is part of the body", provider)
	}
	return resign
}

func (r *manifestReader) readWebhookID(p place) string {
	if !p.given() {
		return ""
	}
	const what = "a webhook id of 1 to 255 characters without blanks"
	id, _ := parsed(r, p, what, func(s string) (string, string) {
		if s == "" || len(s) > maxWebhookID || !visibleASCII(s) {
			return "", what
		}
		return s, ""
	})
	return id
}

func (r *manifestReader) readInFlight(p place) int {
	return int(r.integerIn(p, DefaultMaxInFlight, 1, maxInFlight))
}

func (r *manifestReader) readRate(p place) float64 {
	if !p.given() {
		return 0
	}
	rate, _ := parsed(r, p, expectedRate, parseRate)
	return rate
}

func (r *manifestReader) readRetry(p place) RetryPolicy {
	f := r.fields(p, "schedule")
	schedule := f["schedule"]
	if p.given() {
		r.require(p, f, "schedule")
	}
	if !schedule.given() {
		return RetryPolicy{Schedule: slices.Clone(DefaultRetry.Schedule), Floor: DefaultRetry.Floor}
	}
	if isNull(schedule.node) {
		r.fail(schedule, "expected a list of durations, found nothing; to never retry write []")
	}
	var steps []time.Duration
	for _, item := range r.items(schedule, maxRetries) {
		steps = append(steps, r.duration(item, 0, minRetryPause, maxRetryPause))
	}
	return RetryPolicy{Schedule: steps}
}

func (r *manifestReader) readBreaker(p place) Breaker {
	f := r.fields(p, "failures", "pause")
	return Breaker{
		Failures: int(r.integerIn(f["failures"], int64(DefaultBreaker.Failures), 0, maxFailures)),
		Pause:    r.duration(f["pause"], DefaultBreaker.Pause, minRetryPause, MaxBreakerPause),
	}
}

func (r *manifestReader) readRedaction(p place) Redaction {
	f := r.fields(p, "headers", "body")
	var redact Redaction
	for _, item := range r.items(f["headers"], maxRedactions) {
		if name, ok := parsed(r, item, expectedHeader, parseHeaderName); ok {
			redact.Headers = append(redact.Headers, name)
		}
	}
	for _, item := range r.items(f["body"], maxRedactions) {
		if pointer, ok := parsed(r, item, expectedPointer, parsePointer); ok {
			redact.Body = append(redact.Body, pointer)
		}
	}
	return redact
}

// readRetention lets bodies go no later than their events. Who keeps events for
// less than the default of bodies need not say it twice.
func (r *manifestReader) readRetention(p place) Retention {
	f := r.fields(p, "bodies", "events")
	keep := Retention{Events: r.duration(f["events"], DefaultRetention.Events, minRetention, maxRetention)}
	keep.Bodies = r.duration(f["bodies"], min(DefaultRetention.Bodies, keep.Events), minRetention, maxRetention)
	if keep.Bodies > keep.Events && keep.Events > 0 {
		r.fail(f["bodies"], "expected at most what events is, %s, found %s", shortDuration(keep.Events), shortDuration(keep.Bodies))
	}
	return keep
}
