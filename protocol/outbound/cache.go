package outbound

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// CacheConfig is what NewCache needs. The zero value is ready.
type CacheConfig struct {
	MinTTL time.Duration // an answer is kept at least so long; default 5 s
	MaxTTL time.Duration // and at most so long; default 300 s
	// MinNegative and MaxNegative are the same for names that do not exist; default 1 s
	// and 5 s. A resolver that failed is asked again after MinNegative.
	MinNegative time.Duration
	MaxNegative time.Duration
	// Stale is how long an answer that does not hold any more is still given while the
	// resolver fails; default 10 minutes, negative: never.
	Stale time.Duration
	// Patience is how long a caller waits for a new answer while there is a stale one;
	// default 500 ms.
	Patience time.Duration
	Timeout  time.Duration // of one lookup, however many wait for it; default 5 s
	Max      int           // names; default 10000; those unused for the longest time go first
}

func (c CacheConfig) withDefaults() CacheConfig {
	c.MinTTL = cmp.Or(c.MinTTL, 5*time.Second)
	c.MaxTTL = max(cmp.Or(c.MaxTTL, 300*time.Second), c.MinTTL)
	c.MinNegative = cmp.Or(c.MinNegative, time.Second)
	c.MaxNegative = max(cmp.Or(c.MaxNegative, 5*time.Second), c.MinNegative)
	c.Stale = max(cmp.Or(c.Stale, 10*time.Minute), 0)
	c.Patience = cmp.Or(c.Patience, 500*time.Millisecond)
	c.Timeout = cmp.Or(c.Timeout, 5*time.Second)
	c.Max = cmp.Or(c.Max, 10000)
	return c
}

// CacheStats counts since the cache was made. Every lookup is one of Hits, Negative,
// Stale, Misses and GivenUp.
type CacheStats struct {
	Hits     int64 // answered out of the cache
	Negative int64 // a failure out of the cache
	Stale    int64 // answered with what did not hold any more
	Misses   int64 // waited for the resolver, successful or not
	GivenUp  int64 // the caller's context ended while it waited

	Queries  int64 // what the resolver was asked
	Failures int64 // of these: no answer, not even that there is no such name
	Evicted  int64 // names that had to make room
	Entries  int   // names at the moment
}

// Cache is a Resolver that remembers what another one said. It asks about a name once
// at a time, however many callers wait. A lookup goes on when its callers give up: the
// next one finds its answer.
type Cache struct {
	from    Resolver
	cfg     CacheConfig
	flights singleflight.Group // by name

	mu      sync.Mutex
	entries map[string]*list.Element // guarded by mu; values are *entry
	used    list.List                // guarded by mu; the one used last in front
	stats   CacheStats               // guarded by mu, without Entries
}

// entry is what is known of one name. It has addresses, or failed, or both: then the
// addresses are stale.
type entry struct {
	name   string
	addrs  []netip.Addr
	until  time.Time    // addrs hold
	stale  time.Time    // addrs are better than nothing
	failed *LookupError // what the resolver said last; nil: it said addrs
	retry  time.Time    // failed holds
}

// NewCache returns a Cache of what r says.
func NewCache(r Resolver, cfg CacheConfig) *Cache {
	return &Cache{from: r, cfg: cfg.withDefaults(), entries: map[string]*list.Element{}}
}

// Lookup answers out of the cache, or waits for the resolver until ctx ends. The
// answer's TTL is what is left of it.
func (c *Cache) Lookup(ctx context.Context, name string) (Answer, error) {
	known, done, err := c.remembered(name)
	if done {
		return known, err
	}
	var impatient <-chan time.Time
	if known.Addrs != nil {
		timer := time.NewTimer(c.cfg.Patience)
		defer timer.Stop()
		impatient = timer.C
	}
	// The flight has a context of its own: the first caller may be the first to leave.
	flight := c.flights.DoChan(name, func() (any, error) { return c.ask(name) })
	select {
	case r := <-flight:
		got := r.Val.(reply)
		if got.stale {
			c.count(&c.stats.Stale)
		} else {
			c.count(&c.stats.Misses)
		}
		return got.Answer, r.Err
	case <-impatient:
		c.count(&c.stats.Stale)
		return known, nil
	case <-ctx.Done():
		c.count(&c.stats.GivenUp)
		return Answer{}, &LookupError{
			Name:    name,
			Timeout: errors.Is(ctx.Err(), context.DeadlineExceeded),
			Err:     errors.New("the caller did not wait for the answer"),
		}
	}
}

// Stats returns the counts.
func (c *Cache) Stats() CacheStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Entries = len(c.entries)
	return s
}

func (c *Cache) count(n *int64) {
	c.mu.Lock()
	*n++
	c.mu.Unlock()
}

// remembered looks name up in the cache. done: this is the answer. Otherwise the
// resolver is to be asked, and an answer with addresses is a stale one.
func (c *Cache) remembered(name string) (a Answer, done bool, err error) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	element := c.entries[name]
	if element == nil {
		return Answer{}, false, nil
	}
	c.used.MoveToFront(element)
	e := element.Value.(*entry)
	switch {
	case now.Before(e.until):
		c.stats.Hits++
		return Answer{Addrs: e.addrs, TTL: e.until.Sub(now)}, true, nil
	case e.failed != nil && now.Before(e.retry) && now.Before(e.stale):
		c.stats.Stale++
		return Answer{Addrs: e.addrs, TTL: e.retry.Sub(now)}, true, nil
	case e.failed != nil && now.Before(e.retry):
		c.stats.Negative++
		return Answer{}, true, e.failed
	case now.Before(e.stale):
		return Answer{Addrs: e.addrs, TTL: c.cfg.MinNegative}, false, nil
	}
	return Answer{}, false, nil
}

// reply is what a flight brings to its callers.
type reply struct {
	Answer
	stale bool
}

// ask is one flight.
func (c *Cache) ask(name string) (reply, error) {
	// A caller may have looked just before the last flight landed, and come here after.
	if a, ok := c.landed(name); ok {
		return reply{Answer: a}, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.cfg.Timeout)
	defer cancel()
	a, err := c.from.Lookup(ctx, name)
	if err == nil && len(a.Addrs) == 0 {
		err = &LookupError{Name: name, NotFound: true, Err: ErrNoAddress}
	}
	if err == nil {
		return c.keep(name, a), nil
	}
	var failed *LookupError
	if !errors.As(err, &failed) {
		failed = &LookupError{Name: name, Timeout: errors.Is(err, context.DeadlineExceeded), Err: err}
	}
	return c.keepFailure(name, failed)
}

func (c *Cache) landed(name string) (Answer, bool) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if element := c.entries[name]; element != nil {
		if e := element.Value.(*entry); now.Before(e.until) {
			return Answer{Addrs: e.addrs, TTL: e.until.Sub(now)}, true
		}
	}
	return Answer{}, false
}

// keep stores an answer.
func (c *Cache) keep(name string, a Answer) reply {
	ttl := min(max(a.TTL, c.cfg.MinTTL), c.cfg.MaxTTL)
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats.Queries++
	e := c.entryLocked(name)
	e.addrs, e.until, e.stale = a.Addrs, now.Add(ttl), now.Add(ttl+c.cfg.Stale)
	e.failed, e.retry = nil, time.Time{}
	return reply{Answer: Answer{Addrs: a.Addrs, TTL: ttl}}
}

// keepFailure stores that there is no answer, and returns the last one while it is
// better than nothing. That a name does not exist is an answer: it ends the last one.
func (c *Cache) keepFailure(name string, failed *LookupError) (reply, error) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stats.Queries++
	e := c.entryLocked(name)
	e.failed = failed
	if failed.NotFound {
		e.addrs, e.until, e.stale = nil, time.Time{}, time.Time{}
		e.retry = now.Add(min(max(failed.TTL, c.cfg.MinNegative), c.cfg.MaxNegative))
		return reply{}, failed
	}
	c.stats.Failures++
	e.retry = now.Add(c.cfg.MinNegative)
	if now.Before(e.stale) {
		e.retry = now.Add(c.cfg.MaxNegative) // nobody is waiting for it
		return reply{Answer: Answer{Addrs: e.addrs, TTL: c.cfg.MaxNegative}, stale: true}, nil
	}
	e.addrs = nil
	return reply{}, failed
}

// entryLocked returns the entry of name, a new one when there is none. The caller
// holds c.mu.
func (c *Cache) entryLocked(name string) *entry {
	if element := c.entries[name]; element != nil {
		return element.Value.(*entry)
	}
	for len(c.entries) >= c.cfg.Max {
		oldest := c.used.Back()
		c.used.Remove(oldest)
		delete(c.entries, oldest.Value.(*entry).name)
		c.stats.Evicted++
	}
	e := &entry{name: name}
	c.entries[name] = c.used.PushFront(e)
	return e
}
