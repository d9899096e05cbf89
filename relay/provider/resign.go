package provider

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/posternhq/postern/relay"
)

// Resign signs e anew, as if its sender had sent it at now to url, with the
// secret that made the original signature, or with the endpoint's first one when
// that cannot be told. It returns the header lines that replace those of the
// same names; none when the original ones stay good.
//
// The error, one plain sentence, says why it cannot be done.
func (v *Rules) Resign(ep relay.Endpoint, e relay.Event, url string, now time.Time) ([]relay.Field, error) {
	p := lookup(ep.Provider)
	if p == nil {
		return nil, errors.New("the endpoint's provider is not known to this relay")
	}
	if !p.Resigns {
		if p.scheme != nil && p.scheme.fixed != "" {
			return nil, errors.New(p.scheme.fixed)
		}
		return nil, errors.New("webhooks of this provider cannot be signed anew: it uses no secret that the relay has, or signs nothing")
	}
	header := make(http.Header, len(e.Header))
	for _, f := range e.Header {
		header.Add(f.Name, f.Value)
	}
	r := request{ctx: context.Background(), rules: v, ep: ep, trial: true, in: relay.Incoming{
		Method: e.Method, Target: e.Target, PublicURL: e.PublicURL, Header: header, Body: e.Body,
		RemoteIP: e.RemoteIP, ReceivedAt: e.ReceivedAt,
	}}
	if p.resign != nil {
		return p.resign(r, url, now)
	}
	s, problem := p.schemeFor(r)
	if problem != "" {
		return nil, errors.New(problem)
	}
	return s.resign(r, url, now)
}

// resign makes the lines of a new signature. The body may be another than the
// one that was signed first, so everything is computed again.
func (s *scheme) resign(r request, url string, now time.Time) ([]relay.Field, error) {
	c, _ := s.read(r.in)
	if s.idHeader != "" {
		id, problem := single(r.in.Header, s.idHeader)
		if problem != "" {
			return nil, errors.New(problem)
		}
		c.id = id
	}
	keys := s.keysFor(r, c)
	if len(keys) == 0 {
		return nil, errors.New("the endpoint has no secret to sign with")
	}
	c.stamp = s.unit.format(now)
	in := r.in
	in.PublicURL, in.Target = url, ""
	messages, problem := s.messages(in, c)
	if problem != "" {
		return nil, errors.New(problem)
	}
	var signatures []string
	for _, key := range keys {
		signatures = append(signatures, s.encoding.encode(s.sum(key, messages[0])))
	}
	fields := []relay.Field{{Name: s.header, Value: s.write(c.stamp, signatures)}}
	if s.stampHeader != "" {
		fields = append(fields, relay.Field{Name: s.stampHeader, Value: c.stamp})
	}
	if s.beside != nil && len(r.in.Header.Values(s.beside.header)) > 0 {
		more, err := s.beside.resign(r, url, now)
		if err != nil {
			return nil, err
		}
		fields = append(fields, more...)
	}
	return fields, nil
}

// keysFor are the keys to sign with, the one of the original signature first: as
// many as the header takes.
func (s *scheme) keysFor(r request, c claim) [][]byte {
	secrets := slices.Clone(r.ep.Secrets)
	if original, problem := s.match(r, c); problem == "" && original != "" {
		secrets = slices.DeleteFunc(secrets, func(s relay.Secret) bool { return s == original })
		secrets = slices.Insert(secrets, 0, original)
	}
	var keys [][]byte
	for _, secret := range secrets {
		if secret == "" || len(keys) == 1 && !s.many {
			continue
		}
		if key := s.keyOf(secret); len(key) > 0 {
			keys = append(keys, key)
		}
	}
	return keys[:min(len(keys), maxSignatures)]
}

// write is the header's value.
func (s *scheme) write(stamp string, signatures []string) string {
	if s.pairs == nil {
		for i := range signatures {
			signatures[i] = s.prefix + signatures[i]
		}
		return strings.Join(signatures, s.separator)
	}
	value := s.pairs.time + "=" + stamp
	for _, signature := range signatures {
		value += s.pairs.between + s.pairs.signature + "=" + signature
	}
	return value
}
