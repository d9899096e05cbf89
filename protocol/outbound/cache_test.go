package outbound

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// asked is a Resolver of the test's own.
type asked struct {
	mu     sync.Mutex
	names  []string // guarded by mu; what was asked
	answer func(ctx context.Context, name string) (Answer, error)
}

func (a *asked) Lookup(ctx context.Context, name string) (Answer, error) {
	a.mu.Lock()
	a.names = append(a.names, name)
	answer := a.answer
	a.mu.Unlock()
	return answer(ctx, name)
}

func (a *asked) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.names)
}

func (a *asked) set(answer func(ctx context.Context, name string) (Answer, error)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer = answer
}

func found(ttl time.Duration, addrs ...string) func(context.Context, string) (Answer, error) {
	a := Answer{TTL: ttl}
	for _, s := range addrs {
		a.Addrs = append(a.Addrs, netip.MustParseAddr(s))
	}
	return func(context.Context, string) (Answer, error) { return a, nil }
}

func fails(e LookupError) func(context.Context, string) (Answer, error) {
	return func(_ context.Context, name string) (Answer, error) {
		failed := e
		failed.Name = name
		return Answer{}, &failed
	}
}

// lookup is what the cache says of name: the first address, or which error.
func lookup(t *testing.T, c *Cache, name string) string {
	t.Helper()
	a, err := c.Lookup(t.Context(), name)
	var failed *LookupError
	switch {
	case err == nil:
		if a.TTL <= 0 {
			t.Errorf("%s holds for %v", name, a.TTL)
		}
		return a.Addrs[0].String()
	case !errors.As(err, &failed):
		t.Fatalf("%s: error %v is no *LookupError", name, err)
	case failed.NotFound:
		return "not found"
	}
	return "failed"
}

func TestAnswersAreKeptForTheirTTLWithinBounds(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		says func(context.Context, string) (Answer, error)
		kept time.Duration
	}{
		{"as long as it says", found(42*time.Second, "192.0.2.1"), 42 * time.Second},
		{"at least five seconds", found(0, "192.0.2.1"), 5 * time.Second},
		{"at most five minutes", found(24*time.Hour, "192.0.2.1"), 300 * time.Second},
		{"no such name", fails(LookupError{NotFound: true, TTL: 3 * time.Second}), 3 * time.Second},
		{"no such name, without a TTL", fails(LookupError{NotFound: true}), time.Second},
		{"no such name, for a day", fails(LookupError{NotFound: true, TTL: 24 * time.Hour}), 5 * time.Second},
		{"an answer without addresses", found(time.Minute), time.Second},
		{"servers that failed", fails(LookupError{}), time.Second},
		{"an error of no type", func(context.Context, string) (Answer, error) { return Answer{}, errors.New("x") }, time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				from := &asked{answer: test.says}
				c := NewCache(from, CacheConfig{})
				first := lookup(t, c, "a.example")
				time.Sleep(test.kept - time.Nanosecond)
				if got := lookup(t, c, "a.example"); got != first || from.count() != 1 {
					t.Errorf("before its end: %s with %d questions, expected %s with 1", got, from.count(), first)
				}
				time.Sleep(time.Nanosecond)
				if lookup(t, c, "a.example"); from.count() != 2 {
					t.Errorf("after its end: %d questions, expected 2", from.count())
				}
			})
		})
	}
}

func TestTheTTLOfAnAnswerIsWhatIsLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := NewCache(&asked{answer: found(time.Minute, "192.0.2.1")}, CacheConfig{})
		lookup(t, c, "a.example")
		time.Sleep(45 * time.Second)
		if a, err := c.Lookup(t.Context(), "a.example"); err != nil || a.TTL != 15*time.Second {
			t.Errorf("got %v and error %v, expected 15s", a.TTL, err)
		}
	})
}

func TestStaleAnswersAreGivenWhileTheResolverFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		from := &asked{answer: found(10*time.Second, "192.0.2.1")}
		c := NewCache(from, CacheConfig{})
		expect := func(why, answer string, questions int) {
			t.Helper()
			if got := lookup(t, c, "a.example"); got != answer || from.count() != questions {
				t.Errorf("%s: %s with %d questions, expected %s with %d", why, got, from.count(), answer, questions)
			}
		}
		expect("at first", "192.0.2.1", 1)
		from.set(fails(LookupError{Timeout: true}))
		time.Sleep(10 * time.Second)
		expect("when the resolver has failed", "192.0.2.1", 2)
		time.Sleep(5*time.Second - time.Nanosecond)
		expect("right after, without asking", "192.0.2.1", 2)
		time.Sleep(time.Nanosecond)
		expect("asking again", "192.0.2.1", 3)
		time.Sleep(9 * time.Minute)
		expect("nearly ten minutes after the end", "192.0.2.1", 4)
		time.Sleep(time.Minute)
		expect("more than ten minutes after the end", "failed", 5)
		from.set(found(10*time.Second, "192.0.2.2"))
		time.Sleep(time.Second)
		expect("when the resolver is back", "192.0.2.2", 6)
		if s := c.Stats(); s.Stale != 4 || s.Failures != 4 || s.Queries != 6 || s.Misses != 3 {
			t.Errorf("counted %+v", s)
		}
	})
}

// That a name is gone is no failure of the resolver: its owner has said so.
func TestANameThatIsGoneIsNotAnsweredWithWhatItWas(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		from := &asked{answer: found(10*time.Second, "192.0.2.1")}
		c := NewCache(from, CacheConfig{})
		lookup(t, c, "a.example")
		from.set(fails(LookupError{NotFound: true}))
		time.Sleep(10 * time.Second)
		if got := lookup(t, c, "a.example"); got != "not found" {
			t.Errorf("got %s", got)
		}
		from.set(fails(LookupError{}))
		time.Sleep(time.Second)
		if got := lookup(t, c, "a.example"); got != "failed" {
			t.Errorf("once the resolver fails as well: %s", got)
		}
	})
}

func TestNobodyWaitsLongForASlowResolverWhileThereIsAStaleAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		from := &asked{answer: found(10*time.Second, "192.0.2.1")}
		c := NewCache(from, CacheConfig{})
		lookup(t, c, "a.example")
		from.set(func(context.Context, string) (Answer, error) {
			time.Sleep(3 * time.Second)
			return found(time.Minute, "192.0.2.2")(nil, "")
		})
		time.Sleep(10 * time.Second)
		start := time.Now()
		if got := lookup(t, c, "a.example"); got != "192.0.2.1" || time.Since(start) != 500*time.Millisecond {
			t.Errorf("got %s after %v, expected the stale answer after 500ms", got, time.Since(start))
		}
		time.Sleep(3 * time.Second)
		if got := lookup(t, c, "a.example"); got != "192.0.2.2" || from.count() != 2 {
			t.Errorf("got %s with %d questions, expected what came meanwhile", got, from.count())
		}
	})
}

func TestAThousandLookupsOfOneNameAskOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		from := &asked{}
		from.set(func(context.Context, string) (Answer, error) {
			time.Sleep(time.Second)
			return found(time.Minute, "192.0.2.1")(nil, "")
		})
		c := NewCache(from, CacheConfig{})
		var all sync.WaitGroup
		for range 1000 {
			all.Go(func() {
				if got := lookup(t, c, "a.example"); got != "192.0.2.1" {
					t.Errorf("got %s", got)
				}
			})
		}
		all.Wait()
		if n := from.count(); n != 1 {
			t.Errorf("%d questions, expected 1", n)
		}
		if s := c.Stats(); s.Misses != 1000 || s.Queries != 1 || s.Entries != 1 {
			t.Errorf("counted %+v", s)
		}
	})
}

// One that looked into the cache just before the answer came must not ask for it
// again just after.
func TestAFlightBeginsWithALookAtTheCache(t *testing.T) {
	t.Parallel()
	from := &asked{answer: found(time.Minute, "192.0.2.1")}
	c := NewCache(from, CacheConfig{})
	for range 2 {
		if r, err := c.ask("a.example"); err != nil || len(r.Addrs) != 1 {
			t.Fatalf("got %v and error %v", r, err)
		}
	}
	if n := from.count(); n != 1 {
		t.Errorf("%d questions, expected 1", n)
	}
}

// The first caller leaves. The lookup goes on for the others, and for the next.
func TestAFlightOutlivesItsFirstCaller(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		from := &asked{}
		from.set(func(ctx context.Context, _ string) (Answer, error) {
			select {
			case <-release:
			case <-ctx.Done():
				return Answer{}, ctx.Err()
			}
			return found(time.Minute, "192.0.2.1")(nil, "")
		})
		c := NewCache(from, CacheConfig{})
		ctx, cancel := context.WithCancel(t.Context())
		left, stayed := make(chan error, 1), make(chan error, 1)
		go func() {
			_, err := c.Lookup(ctx, "a.example")
			left <- err
		}()
		synctest.Wait()
		go func() {
			_, err := c.Lookup(t.Context(), "a.example")
			stayed <- err
		}()
		synctest.Wait()
		cancel()
		var failed *LookupError
		if err := <-left; !errors.As(err, &failed) || failed.Timeout || failed.NotFound {
			t.Errorf("the caller that left: %v", err)
		}
		close(release)
		if err := <-stayed; err != nil {
			t.Errorf("the caller that stayed: %v", err)
		}
		if got := lookup(t, c, "a.example"); got != "192.0.2.1" || from.count() != 1 {
			t.Errorf("the next one: %s with %d questions", got, from.count())
		}
		if s := c.Stats(); s.GivenUp != 1 || s.Misses != 1 || s.Hits != 1 {
			t.Errorf("counted %+v", s)
		}
	})
}

func TestAFlightEndsByItself(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		from := &asked{answer: func(ctx context.Context, _ string) (Answer, error) {
			<-ctx.Done()
			return Answer{}, ctx.Err()
		}}
		c := NewCache(from, CacheConfig{Timeout: 2 * time.Second})
		start := time.Now()
		_, err := c.Lookup(t.Context(), "a.example")
		var failed *LookupError
		if !errors.As(err, &failed) || !failed.Timeout || time.Since(start) != 2*time.Second {
			t.Errorf("error %v after %v, expected a timeout after 2s", err, time.Since(start))
		}
	})
}

func TestTheNamesUnusedForTheLongestTimeMakeRoom(t *testing.T) {
	t.Parallel()
	from := &asked{answer: found(time.Minute, "192.0.2.1")}
	c := NewCache(from, CacheConfig{Max: 3})
	for _, name := range []string{"a", "b", "c", "a", "d", "a"} {
		lookup(t, c, name)
	}
	from.set(fails(LookupError{NotFound: true})) // failures take room as well
	for i := range 2 {
		lookup(t, c, fmt.Sprint("nowhere", i))
	}
	from.set(found(time.Minute, "192.0.2.1"))
	lookup(t, c, "a")
	lookup(t, c, "c")
	if expected := []string{"a", "b", "c", "d", "nowhere0", "nowhere1", "c"}; !slices.Equal(from.names, expected) {
		t.Errorf("asked %v, expected %v", from.names, expected)
	}
	if s := c.Stats(); s.Entries != 3 || s.Evicted != 4 || s.Hits != 3 || c.used.Len() != 3 {
		t.Errorf("counted %+v, %d in the list", s, c.used.Len())
	}
}

func BenchmarkCachedLookup(b *testing.B) {
	c := NewCache(&asked{answer: found(time.Hour, "192.0.2.1", "2001:db8::1")}, CacheConfig{})
	for i := range 1000 {
		c.Lookup(b.Context(), fmt.Sprintf("n%d.example", i))
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Lookup(b.Context(), "n500.example"); err != nil {
			b.Fatal(err)
		}
	}
}
