package storetest

import (
	"slices"
	"time"

	"github.com/posternhq/postern/relay"
)

func appTests() []test {
	return []test{
		{"a new store knows no app", func(f *fixture) {
			apps, err := f.store.Apps(f.ctx)
			f.must(err)
			if len(apps) != 0 {
				f.Fatalf("got %+v", apps)
			}
		}},
		{"apps are listed by id with the time they were first seen", func(f *fixture) {
			for i, id := range []relay.AppID{"web", "api", "a-1"} {
				f.must(f.store.EnsureApp(f.ctx, id, later(time.Duration(i)*time.Second)))
			}
			got, err := f.store.Apps(f.ctx)
			f.must(err)
			wantEqual(f, "apps", got, []relay.App{
				{ID: "a-1", CreatedAt: later(2 * time.Second)},
				{ID: "api", CreatedAt: later(time.Second)},
				{ID: "web", CreatedAt: start()},
			})
		}},
		{"an app that is known is never changed", func(f *fixture) {
			f.must(f.store.EnsureApp(f.ctx, app, start()))
			f.must(f.store.EnsureApp(f.ctx, app, later(time.Hour)))
			f.must(f.store.EnsureApp(f.ctx, app, later(-time.Hour)))
			got, err := f.store.Apps(f.ctx)
			f.must(err)
			wantEqual(f, "apps", got, []relay.App{{ID: app, CreatedAt: start()}})
		}},
		{"many agents may announce the same new app at once", func(f *fixture) {
			errs := make(chan error)
			for range 8 {
				go func() { errs <- f.store.EnsureApp(f.ctx, app, start()) }()
			}
			for range 8 {
				if err := <-errs; err != nil {
					f.Error(err)
				}
			}
			got, err := f.store.Apps(f.ctx)
			f.must(err)
			wantEqual(f, "apps", got, []relay.App{{ID: app, CreatedAt: start()}})
		}},
	}
}

func tokenTests() []test {
	token := func(id relay.TokenID, issued time.Duration) relay.Token {
		return relay.Token{ID: id, App: app, Scope: relay.ScopeAgent, IssuedAt: later(issued), ExpiresAt: later(time.Hour)}
	}
	return []test{
		{"tokens come back with every field, newest first", func(f *fixture) {
			first := token("tok_1", 0)
			second := relay.Token{ID: "tok_2", Scope: relay.ScopeAdmin, IssuedAt: later(time.Second)} // no app, no end
			third := relay.Token{ID: "tok_3", App: "web", Scope: relay.ScopeDeveloper, IssuedAt: later(time.Minute),
				ExpiresAt: later(time.Hour), RevokedAt: later(2 * time.Minute)}
			for _, t := range []relay.Token{second, third, first} {
				f.must(f.store.CreateToken(f.ctx, t))
			}
			got, err := f.store.Tokens(f.ctx)
			f.must(err)
			wantEqual(f, "tokens", got, []relay.Token{third, second, first})
		}},
		{"a token id that is taken is refused and the first token stays", func(f *fixture) {
			f.must(f.store.CreateToken(f.ctx, token("tok_1", 0)))
			again := token("tok_1", time.Second)
			again.Scope = relay.ScopeAdmin
			f.wantNoCode(f.store.CreateToken(f.ctx, again))
			got, err := f.store.Tokens(f.ctx)
			f.must(err)
			wantEqual(f, "tokens", got, []relay.Token{token("tok_1", 0)})
		}},
		{"revoking marks one token with the time", func(f *fixture) {
			f.must(f.store.CreateToken(f.ctx, token("tok_1", 0)))
			f.must(f.store.CreateToken(f.ctx, token("tok_2", time.Second)))
			f.must(f.store.RevokeToken(f.ctx, "tok_1", later(time.Minute)))
			f.wantRevokedAt("tok_1", later(time.Minute))
			f.wantRevokedAt("tok_2", time.Time{})
		}},
		{"revoking twice keeps the first time", func(f *fixture) {
			f.must(f.store.CreateToken(f.ctx, token("tok_1", 0)))
			f.must(f.store.RevokeToken(f.ctx, "tok_1", later(time.Minute)))
			f.must(f.store.RevokeToken(f.ctx, "tok_1", later(time.Hour)))
			f.wantRevokedAt("tok_1", later(time.Minute))
		}},
		{"revoking an unknown token is NotFound", func(f *fixture) {
			f.must(f.store.CreateToken(f.ctx, token("tok_1", 0)))
			f.wantCode(f.store.RevokeToken(f.ctx, "tok_2", start()), relay.NotFound)
		}},
		{"the revoked set holds what is revoked and not yet expired", func(f *fixture) {
			endless := token("tok_endless", 0)
			endless.ExpiresAt = time.Time{}
			short := token("tok_short", 0)
			short.ExpiresAt = later(time.Minute)
			for _, t := range []relay.Token{token("tok_valid", 0), token("tok_long", 0), endless, short} {
				f.must(f.store.CreateToken(f.ctx, t))
			}
			for _, id := range []relay.TokenID{"tok_long", "tok_endless", "tok_short"} {
				f.must(f.store.RevokeToken(f.ctx, id, later(time.Second)))
			}
			f.wantRevoked(later(30*time.Second), "tok_endless", "tok_long", "tok_short")
			f.wantRevoked(later(2*time.Minute), "tok_endless", "tok_long")
			f.wantRevoked(later(2*time.Hour), "tok_endless")
		}},
	}
}

func (f *fixture) wantRevokedAt(id relay.TokenID, want time.Time) {
	f.Helper()
	tokens, err := f.store.Tokens(f.ctx)
	f.must(err)
	for _, t := range tokens {
		if t.ID == id && t.RevokedAt.Equal(want) {
			return
		}
	}
	f.Fatalf("no %s revoked at %v in %+v", id, want, tokens)
}

func (f *fixture) wantRevoked(now time.Time, want ...relay.TokenID) {
	f.Helper()
	got, err := f.store.RevokedTokens(f.ctx, now)
	f.must(err)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		f.Fatalf("revoked at %v: got %v, want %v", now, got, want)
	}
}
