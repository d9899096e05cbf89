package provider

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"sync"
	"time"
)

const (
	maxCertificates    = 64
	maxCertificateSize = 64 << 10
	certificateAge     = 24 * time.Hour // then it is fetched again
	maxFetches         = 4              // at once: whoever sends may name any document of the right host
)

// errNoKey is a document that was fetched and holds no RSA certificate.
var errNoKey = errors.New("no certificate with an RSA key")

var errNotFetched = errors.New("certificate not fetched yet")

// certificates fetches and keeps the keys that SNS and PayPal sign with. That a
// key is theirs follows from where it was fetched, over https, so callers check
// the host first.
type certificates struct {
	fetch func(ctx context.Context, url string) ([]byte, error)
	slots chan struct{} // capacity maxFetches

	mu      sync.Mutex
	entries map[string]*certificate
	order   []string // of the entries, the oldest first
}

// certificate is one entry; ready is closed when key and err are set.
type certificate struct {
	ready chan struct{}
	key   *rsa.PublicKey
	err   error
	at    time.Time
}

func (e *certificate) wait(ctx context.Context, cachedOnly bool) (*rsa.PublicKey, error) {
	select {
	case <-e.ready:
		return e.key, e.err
	default:
	}
	if cachedOnly {
		return nil, errNotFetched
	}
	select {
	case <-e.ready:
		return e.key, e.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func newCertificates(fetch func(context.Context, string) ([]byte, error)) *certificates {
	return &certificates{
		fetch: fetch, slots: make(chan struct{}, maxFetches), entries: make(map[string]*certificate),
	}
}

// key gives the key of the certificate at url. now is the time of the webhook.
// With cachedOnly it opens no connection and waits for none. Several that ask for the same url at
// once share one fetch. The error is errNoKey when asking again would be no use.
func (c *certificates) key(ctx context.Context, url string, now time.Time, cachedOnly bool) (*rsa.PublicKey, error) {
	c.mu.Lock()
	entry, known := c.entries[url]
	switch {
	case known && now.Sub(entry.at) < certificateAge:
		c.mu.Unlock()
		return entry.wait(ctx, cachedOnly)
	case cachedOnly:
		c.mu.Unlock()
		return nil, errNotFetched
	}
	entry = &certificate{ready: make(chan struct{}), at: now}
	c.addLocked(url, entry)
	c.mu.Unlock()

	entry.key, entry.err = c.get(ctx, url)
	if entry.err != nil {
		c.drop(url, entry)
	}
	close(entry.ready)
	return entry.key, entry.err
}

func (c *certificates) get(ctx context.Context, url string) (*rsa.PublicKey, error) {
	document, err := c.download(ctx, url)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(document[:min(len(document), maxCertificateSize)])
	if block == nil {
		return nil, errNoKey
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, errNoKey
	}
	key, ok := certificate.PublicKey.(*rsa.PublicKey)
	if !ok {
		return nil, errNoKey
	}
	return key, nil
}

// download fetches a document when one of the slots is free.
func (c *certificates) download(ctx context.Context, url string) ([]byte, error) {
	if c.fetch == nil {
		return nil, errors.New("nothing to fetch with")
	}
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
		return c.fetch(ctx, url)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *certificates) addLocked(url string, entry *certificate) {
	if _, known := c.entries[url]; !known {
		if len(c.order) == maxCertificates {
			delete(c.entries, c.order[0])
			c.order = c.order[1:]
		}
		c.order = append(c.order, url)
	}
	c.entries[url] = entry
}

// drop forgets an entry that failed, so that the next webhook tries again.
func (c *certificates) drop(url string, entry *certificate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries[url] != entry {
		return
	}
	delete(c.entries, url)
	for i, u := range c.order {
		if u == url {
			c.order = append(c.order[:i:i], c.order[i+1:]...)
			return
		}
	}
}
