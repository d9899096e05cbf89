package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/posternhq/postern/relay"
	"github.com/posternhq/postern/relay/auth"
	"github.com/posternhq/postern/relay/node"
	"github.com/posternhq/postern/relay/provider"
)

// withStore opens the data folder of the verb's flags for one piece of work. A
// relay may be running on it.
func withStore(ctx context.Context, f *flags, data string, do func(relay.Store) error) error {
	log, err := f.logger()
	if err != nil {
		return err
	}
	store, err := node.OpenStore(ctx, data, 0, log)
	if err != nil {
		return err
	}
	return errors.Join(do(store), store.Close())
}

func dataFlag(f *flags) *string {
	return f.text("data", "POSTERN_DATA", "./postern-data", "folder of the database and the keys")
}

// tokenCreate prints the token alone on standard output.
func tokenCreate(ctx context.Context, args []string) error {
	f := newFlags("token create", "make a token and print it")
	data := dataFlag(f)
	app := f.String("app", "", "the app that the token is for")
	scope := f.String("scope", "agent", "agent, developer or admin")
	ttl := f.Duration("ttl", auth.DefaultTTL, "how long it is good")
	if err := f.parse(args, 0); err != nil {
		return ignoreHelp(err)
	}
	req := auth.IssueRequest{App: relay.AppID(*app), Scope: relay.Scope(*scope), TTL: *ttl, Now: time.Now()}
	if !req.Scope.Valid() {
		return usagef("--scope %q: expected agent, developer or admin", *scope)
	}
	if req.App == "" && req.Scope != relay.ScopeAdmin {
		return usagef("--app is missing: which app is the token for?")
	}
	return withStore(ctx, f, *data, func(store relay.Store) error {
		keys, err := node.OpenKeys(*data)
		if err != nil {
			return err
		}
		jwt, _, err := auth.NewIssuer(auth.IssuerConfig{Keys: keys, Tokens: store}).Issue(ctx, req)
		if relay.CodeOf(err) == relay.Invalid {
			return usageError{err}
		}
		if err != nil {
			return err
		}
		if req.App != "" {
			if err := store.EnsureApp(ctx, req.App, req.Now); err != nil {
				return err
			}
		}
		fmt.Println(jwt)
		return nil
	})
}

func tokenList(ctx context.Context, args []string) error {
	f := newFlags("token list", "list the tokens that were made, newest first")
	data := dataFlag(f)
	asJSON := f.Bool("json", false, "print JSON")
	if err := f.parse(args, 0); err != nil {
		return ignoreHelp(err)
	}
	return withStore(ctx, f, *data, func(store relay.Store) error {
		tokens, err := store.Tokens(ctx)
		if err != nil {
			return err
		}
		if *asJSON {
			return json.NewEncoder(os.Stdout).Encode(tokenRows(tokens))
		}
		w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "ID\tAPP\tSCOPE\tISSUED\tEXPIRES\tSTATE")
		for _, t := range tokenRows(tokens) {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", t.ID, t.App, t.Scope, t.IssuedAt, t.ExpiresAt, t.State)
		}
		return w.Flush()
	})
}

// tokenRow is a token as token list shows it.
type tokenRow struct {
	ID        relay.TokenID `json:"id"`
	App       relay.AppID   `json:"app,omitempty"`
	Scope     relay.Scope   `json:"scope"`
	IssuedAt  string        `json:"issued_at"`
	ExpiresAt string        `json:"expires_at"`
	State     string        `json:"state"` // valid, expired or revoked
}

func tokenRows(tokens []relay.Token) []tokenRow {
	rows := make([]tokenRow, 0, len(tokens))
	for _, t := range tokens {
		row := tokenRow{t.ID, t.App, t.Scope, t.IssuedAt.UTC().Format(time.RFC3339), t.ExpiresAt.UTC().Format(time.RFC3339), "valid"}
		switch {
		case !t.RevokedAt.IsZero():
			row.State = "revoked"
		case t.ExpiresAt.Before(time.Now()):
			row.State = "expired"
		}
		rows = append(rows, row)
	}
	return rows
}

func tokenRevoke(ctx context.Context, args []string) error {
	f := newFlags("token revoke", "make a token useless; takes its id, see token list")
	data := dataFlag(f)
	if err := f.parse(args, 1); err != nil {
		return ignoreHelp(err)
	}
	id := relay.TokenID(f.Arg(0))
	return withStore(ctx, f, *data, func(store relay.Store) error {
		err := store.RevokeToken(ctx, id, time.Now())
		if relay.CodeOf(err) == relay.NotFound {
			return fmt.Errorf("there is no token %s; see postern-relay token list", id)
		}
		if err != nil {
			return err
		}
		fmt.Println("revoked", id)
		return nil
	})
}

func keysRotate(_ context.Context, args []string) error {
	f := newFlags("keys rotate", "sign new tokens with a new key; tokens of the old ones stay good")
	data := dataFlag(f)
	if err := f.parse(args, 0); err != nil {
		return ignoreHelp(err)
	}
	if err := os.MkdirAll(*data, 0o700); err != nil {
		return err
	}
	keys, err := node.OpenKeys(*data)
	if err != nil {
		return err
	}
	kid, err := keys.Rotate(time.Now())
	if err != nil {
		return err
	}
	fmt.Println("new tokens are signed with key", kid)
	return nil
}

func migrate(ctx context.Context, args []string) error {
	f := newFlags("migrate", "bring the database to this version")
	data := dataFlag(f)
	if err := f.parse(args, 0); err != nil {
		return ignoreHelp(err)
	}
	return withStore(ctx, f, *data, func(relay.Store) error {
		fmt.Println("the database is up to date")
		return nil
	})
}

func manifestValidate(_ context.Context, args []string) error {
	f := newFlags("manifest validate", "check a manifest; secrets need not be there")
	if err := f.parse(args, 1); err != nil {
		return ignoreHelp(err)
	}
	data, err := os.ReadFile(f.Arg(0))
	if err != nil {
		return err
	}
	m, err := relay.ParseManifest(f.Arg(0), data, relay.ManifestOptions{
		Providers: provider.All(), SkipSecrets: true,
	})
	if err != nil {
		return err
	}
	endpoints := 0
	for _, app := range m.Apps {
		endpoints += len(app.Endpoints)
	}
	fmt.Printf("%s: good, %d apps, %d webhook endpoints\n", f.Arg(0), len(m.Apps), endpoints)
	if n := len(m.Egress.Tests); n > 0 {
		fmt.Printf("  %d egress tests passed\n", n)
	}
	for _, warning := range m.Warnings(time.Now()) {
		fmt.Println("  warning:", warning)
	}
	for _, section := range m.Unused {
		fmt.Println("  checked, not acted on by this version:", section)
	}
	return nil
}
