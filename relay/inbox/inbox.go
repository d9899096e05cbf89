// Package inbox keeps webhooks until their app has taken them: it checks and
// commits what comes in, and hands it to the app and to the endpoint's other
// destinations, again and again on a schedule, until they say 2xx or the schedule
// is used up. In hybrid mode the first attempt is made while the sender waits.
//
// It listens nowhere and knows neither tunnels nor providers nor databases:
// relay/node gives it a store, functions that verify, explain and sign, and
// http.RoundTrippers that reach apps and URLs. It does not proxy requests in sync
// mode; it only names and records them.
//
// The one rule to know: what Receive accepted is in the store, and it leaves
// the unfinished there only when an attempt's outcome was written under the
// lease it was claimed with. Everything in memory is a hint that may be lost.
// So an event is delivered at least once, and the app tells repeats apart by
// Postern-Event-Id.
package inbox

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/posternhq/postern/relay"
)

// Config is what an Inbox is made of.
type Config struct {
	Store relay.EventStore // required
	Node  string           // owner of this process's leases; required, the same after a restart

	// Verify judges a webhook by the rules of the endpoint's provider; required.
	Verify func(ctx context.Context, ep relay.Endpoint, in relay.Incoming) relay.Verdict
	// Explain looks for the likely cause of a refusal; default says nothing.
	Explain func(ep relay.Endpoint, in relay.Incoming) string
	// Resign signs an event anew, as if it were sent at now to url; the lines
	// replace those of the same names. Default changes nothing.
	Resign func(ep relay.Endpoint, e relay.Event, url string, now time.Time) ([]relay.Field, error)
	// Facts are those of a provider; default knows none.
	Facts func(provider string) relay.ProviderFacts

	// Endpoint finds an endpoint in the manifest as it is now; required.
	Endpoint func(app relay.AppID, name string) (relay.Endpoint, bool)

	// App reaches apps; required. Requests have the scheme "http" and the app's
	// id as their URL's host. It must give up when the request's context ends,
	// and say with a *relay.Error when no byte reached an app.
	App http.RoundTripper

	// Connected reports whether an agent of the app is here; required.
	Connected func(app relay.AppID) bool
	// Absent is called, every few seconds, while a delivery for the app is due and no
	// agent of it is here. It must not wait. Default does nothing.
	Absent func(app relay.AppID)

	// URLs reaches the destinations that are URLs. It follows no redirect, and
	// gives up when the request's context ends. Without it, their deliveries wait.
	URLs http.RoundTripper

	// Quota is what an app may keep in the store; default no limit.
	Quota func(app relay.AppID) relay.Quota

	AttemptTimeout time.Duration // how long an app may be silent; default 60 s
	DrainTimeout   time.Duration // how long running attempts may go on after Run is told to stop; default 10 s
	Poll           time.Duration // how often the store is asked what the hints may have missed; default 5 s

	Now    func() time.Time // default time.Now
	Random func() float64   // uniform in [0, 1); default math/rand/v2
	Logger *slog.Logger     // default discards
}

func (c Config) withDefaults() Config {
	if c.Store == nil || c.Node == "" || c.Verify == nil || c.Endpoint == nil || c.App == nil || c.Connected == nil {
		panic("inbox: Config lacks a required field")
	}
	setDefault(&c.AttemptTimeout, 60*time.Second)
	setDefault(&c.DrainTimeout, 10*time.Second)
	setDefault(&c.Poll, 5*time.Second)
	if c.Explain == nil {
		c.Explain = func(relay.Endpoint, relay.Incoming) string { return "" }
	}
	if c.Facts == nil {
		c.Facts = func(string) relay.ProviderFacts { return relay.ProviderFacts{} }
	}
	if c.Resign == nil {
		c.Resign = func(relay.Endpoint, relay.Event, string, time.Time) ([]relay.Field, error) { return nil, nil }
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Random == nil {
		c.Random = rand.Float64
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func setDefault(d *time.Duration, value time.Duration) {
	if *d <= 0 {
		*d = value
	}
}

// Inbox accepts webhooks and delivers them. All methods may be called at any
// time from any goroutine; Run delivers, and is called once.
type Inbox struct {
	cfg Config

	wake        chan struct{} // capacity 1: "look at the touched lanes"
	pollNow     chan struct{} // capacity 1: "ask the store what the hints may have missed"
	findReplays chan struct{} // capacity 1: "there is a new replay, or one less"
	stepReplays chan struct{} // capacity 1: "a replay's delivery has ended"

	workers  sync.WaitGroup // attempts, claims and what is given back
	refusals refusals
	watchers watchers
	usage    usage

	mu        sync.Mutex
	work      context.Context // of attempts; nil while Run does not deliver
	lanes     map[laneID]*lane
	touched   map[*lane]bool // to be looked at
	waiting   map[*lane]bool // for room on the node
	alarm     time.Time      // when to look at all lanes; some time may have come
	flights   map[relay.DeliveryID]*flight
	claims    int   // being made
	inHand    int64 // bytes of the bodies of all flights and of all that is held
	connected map[relay.AppID]time.Time
	ended     map[relay.ReplayID]int // deliveries that ended since the replay's last step
	unsigned  map[laneID]bool        // it is in the log that they cannot be signed anew
}

// New makes an Inbox and starts nothing. It panics when a required field of
// cfg is missing.
func New(cfg Config) *Inbox {
	return &Inbox{
		cfg:         cfg.withDefaults(),
		wake:        make(chan struct{}, 1),
		pollNow:     make(chan struct{}, 1),
		findReplays: make(chan struct{}, 1),
		stepReplays: make(chan struct{}, 1),
		refusals:    newRefusals(),
		lanes:       make(map[laneID]*lane),
		touched:     make(map[*lane]bool),
		waiting:     make(map[*lane]bool),
		flights:     make(map[relay.DeliveryID]*flight),
		connected:   make(map[relay.AppID]time.Time),
		ended:       make(map[relay.ReplayID]int),
		unsigned:    make(map[laneID]bool),
	}
}

// poke puts a word into a channel of capacity 1. When one is on its way already,
// it will find this change too.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
