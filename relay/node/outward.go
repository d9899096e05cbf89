package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	neturl "net/url"
	"strings"
	"time"
)

// Calls that the relay makes to the outside for itself: certificates and
// confirmations of webhook senders, and the URLs that get a copy of events.

const (
	fetchTime  = 5 * time.Second
	maxFetched = 64 << 10 // bytes; a certificate has 2 KiB
)

// fetcher gets documents for the rules of webhook senders.
type fetcher struct{ client *http.Client }

func newFetcher() *fetcher {
	return &fetcher{&http.Client{
		Transport: newOutward(),
		Timeout:   fetchTime,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("it points somewhere else, which is not followed")
		},
	}}
}

// fetch gets the document at url: https only, within fetchTime, whole or not at
// all. Whoever calls it has checked the host.
func (f *fetcher) fetch(ctx context.Context, url string) ([]byte, error) {
	if !strings.HasPrefix(url, "https://") {
		return nil, errors.New("fetch: only https is fetched")
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("fetch: %w", err)
	}
	resp, err := f.client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("fetch: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetch %s: answered %s", r.URL.Host, resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxFetched+1))
	if err == nil && len(body) > maxFetched {
		err = fmt.Errorf("longer than %d bytes", maxFetched)
	}
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", r.URL.Host, err)
	}
	return body, nil
}

// visitor makes requests of which only the making counts.
type visitor struct{ client *http.Client }

// newVisitor follows a few redirects: platforms send http to https.
func newVisitor() *visitor {
	return &visitor{&http.Client{
		Transport: newOutward(),
		CheckRedirect: func(_ *http.Request, via []*http.Request) error {
			if len(via) > 3 {
				return errors.New("more than three redirects")
			}
			return nil
		},
	}}
}

// visit requests url once. Any answer will do; its body is not read. The error
// does not repeat the URL, whose query may be a secret.
func (v *visitor) visit(ctx context.Context, url string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return errors.New("the public URL is malformed")
	}
	r.Header.Set("User-Agent", "Postern (waking a sleeping app)")
	resp, err := v.client.Do(r)
	if err != nil {
		if inner := (*neturl.Error)(nil); errors.As(err, &inner) {
			err = inner.Err
		}
		return fmt.Errorf("visit %s: %w", r.URL.Host, err)
	}
	resp.Body.Close()
	return nil
}

// newOutward is a transport that takes bodies as they are and ignores the
// proxies of the environment: the relay is the proxy.
func newOutward() *http.Transport {
	return &http.Transport{
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: time.Second,
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConnsPerHost:   8,
		DisableCompression:    true,
		ForceAttemptHTTP2:     true,
	}
}
