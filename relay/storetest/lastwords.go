package storetest

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/posternhq/postern/relay"
)

func lastWordsTests() []test {
	return []test{
		{"an empty store has no last words", func(f *fixture) { f.wantLastWords(relay.LastWordsFilter{}) }},
		{"last words come back as they were", func(f *fixture) {
			want := lastWords(app, "web.1", "boot-0001", later(time.Hour))
			f.must(f.store.SaveLastWords(f.ctx, want))
			bare := relay.LastWords{ID: "lw_bare", App: app, Instance: "web.2", BootID: "boot-0002", EndedAt: start(), Reason: "lost"}
			f.must(f.store.SaveLastWords(f.ctx, bare))
			got, err := f.store.LastWords(f.ctx, relay.LastWordsFilter{})
			f.must(err)
			wantEqual(f, "last words", got, []relay.LastWords{want, bare})
		}},
		{"they are listed by the time of the end, newest first, whenever they were saved", func(f *fixture) {
			for _, n := range []int{2, 3, 1} {
				f.must(f.store.SaveLastWords(f.ctx, lastWords(app, "web.1", fmt.Sprint("boot-", n), later(time.Duration(n)*time.Hour))))
			}
			f.wantLastWords(relay.LastWordsFilter{App: app}, "shop/web.1/boot-3", "shop/web.1/boot-2", "shop/web.1/boot-1")
			f.wantLastWords(relay.LastWordsFilter{App: app, Limit: 2}, "shop/web.1/boot-3", "shop/web.1/boot-2")
		}},
		{"a filter selects the app and the instance", func(f *fixture) {
			f.must(f.store.SaveLastWords(f.ctx, lastWords(app, "web.1", "boot-a", later(1))))
			f.must(f.store.SaveLastWords(f.ctx, lastWords(app, "web.2", "boot-b", later(2*time.Second))))
			f.must(f.store.SaveLastWords(f.ctx, lastWords("other", "web.1", "boot-c", later(3*time.Second))))
			f.wantLastWords(relay.LastWordsFilter{}, "other/web.1/boot-c", "shop/web.2/boot-b", "shop/web.1/boot-a")
			f.wantLastWords(relay.LastWordsFilter{App: app}, "shop/web.2/boot-b", "shop/web.1/boot-a")
			f.wantLastWords(relay.LastWordsFilter{Instance: "web.1"}, "other/web.1/boot-c", "shop/web.1/boot-a")
			f.wantLastWords(relay.LastWordsFilter{App: app, Instance: "web.1"}, "shop/web.1/boot-a")
			f.wantLastWords(relay.LastWordsFilter{App: "nobody"})
		}},
		{"a second one of the same boot replaces the first", func(f *fixture) {
			first := lastWords(app, "web.1", "boot-a", start())
			first.Exit = nil
			f.must(f.store.SaveLastWords(f.ctx, first))
			f.must(f.store.SaveLastWords(f.ctx, lastWords("other", "web.1", "boot-a", start())))
			second := lastWords(app, "web.1", "boot-a", later(time.Hour))
			second.ID = "lw_second"
			f.must(f.store.SaveLastWords(f.ctx, second))
			got, err := f.store.LastWords(f.ctx, relay.LastWordsFilter{App: app})
			f.must(err)
			wantEqual(f, "last words", got, []relay.LastWords{second})
			f.wantLastWords(relay.LastWordsFilter{App: "other"}, "other/web.1/boot-a")
		}},
		{"an app has the newest hundred, and another's stay", func(f *fixture) {
			f.must(f.store.SaveLastWords(f.ctx, lastWords("other", "web.1", "boot-0", start())))
			for n := range relay.MaxLastWords + 3 {
				w := relay.LastWords{ID: relay.LastWordsID(fmt.Sprint("lw_", n)), App: app, Instance: "web.1",
					BootID: fmt.Sprint("boot-", n), EndedAt: later(time.Duration(n) * time.Second), Reason: "r"}
				if n < 5 {
					w.Instance = "web.9"
				}
				f.must(f.store.SaveLastWords(f.ctx, w))
			}
			got, err := f.store.LastWords(f.ctx, relay.LastWordsFilter{App: app, Limit: 1000})
			f.must(err)
			if n := len(got); n != relay.MaxLastWords || got[0].BootID != "boot-102" || got[n-1].BootID != "boot-3" {
				f.Fatalf("%d are kept, from %s to %s", n, got[n-1].BootID, got[0].BootID)
			}
			// A list has a hundred at most, so this tells what is gone.
			f.wantLastWords(relay.LastWordsFilter{App: app, Instance: "web.9"}, "shop/web.9/boot-4", "shop/web.9/boot-3")
			f.wantLastWords(relay.LastWordsFilter{App: "other"}, "other/web.1/boot-0")
			got, err = f.store.LastWords(f.ctx, relay.LastWordsFilter{App: app})
			f.must(err)
			wantEqual(f, "listed unless asked for more", len(got), 20)
		}},
		{"what is too long loses the oldest lines", func(f *fixture) {
			w := lastWords(app, "web.1", "boot-a", start())
			line := w.Lines[0]
			w.Lines = nil
			for n := range 2000 {
				line.Text = fmt.Sprint(n, " ", strings.Repeat("x", 1000))
				w.Lines = append(w.Lines, line)
			}
			w.Reason = strings.Repeat("ä", 100_000)
			f.must(f.store.SaveLastWords(f.ctx, w))
			got, err := f.store.LastWords(f.ctx, relay.LastWordsFilter{App: app})
			f.must(err)
			raw, err := json.Marshal(got)
			f.must(err)
			n := len(got[0].Lines)
			if len(raw) > 256<<10 || n < 100 || !strings.HasPrefix(got[0].Lines[n-1].Text, "1999 ") {
				f.Fatalf("%d bytes with %d lines are left", len(raw), n)
			}
			wantEqual(f, "sockets", got[0].Sockets, w.Sockets)
		}},
	}
}

// lastWords is how one boot of an instance ended, with something in every field.
// The types of the wire are reached through the noun's fields.
func lastWords(of relay.AppID, instance, boot string, ended time.Time) relay.LastWords {
	w := relay.LastWords{
		ID: relay.LastWordsID("lw_" + string(of) + instance + boot), App: of, Instance: instance, BootID: boot,
		Platform: "heroku", Process: "web", Release: "v42", Commit: "abc123", Region: "eu",
		StartedAt: start(), EndedAt: ended.Truncate(time.Microsecond), Reason: "killed: <out of memory?>", Limit: 512 << 20,
		Memory: []relay.MemoryPoint{{At: start(), RSS: 1}, {At: later(time.Minute), RSS: 500 << 20}},
	}
	w.Exit = some(w.Exit)
	w.Exit.At, w.Exit.Code, w.Exit.Signal, w.Exit.Reason, w.Exit.Asked = w.EndedAt, 137, "SIGKILL", "killed", true
	w.Lines = two(w.Lines)
	w.Lines[0].At, w.Lines[0].Stream, w.Lines[0].Text = start(), "stdout", "it \u2028 works \x1b[31m\x00"
	w.Lines[1].At, w.Lines[1].Stream, w.Lines[1].Cut, w.Lines[1].Missed = later(1), "stderr", true, 7
	w.Sockets = two(w.Sockets)
	w.Sockets[0].PID, w.Sockets[0].State, w.Sockets[0].Local = 31, "LISTEN", "0.0.0.0:3000"
	w.Sockets[1].State, w.Sockets[1].Local, w.Sockets[1].Remote = "ESTABLISHED", "[::1]:1", "[::1]:2"
	w.Findings = two(w.Findings)
	w.Findings[0].Code, w.Findings[0].Severity, w.Findings[0].Cause = "PORT02", "error", "another port"
	w.Findings[1].Code, w.Findings[1].Fix = "PORT18", "use exec"
	return w
}

// some makes a value of p's type.
func some[T any](*T) *T { return new(T) }

// two makes a list of two of s's elements.
func two[T any]([]T) []T { return make([]T, 2) }

func (f *fixture) wantLastWords(filter relay.LastWordsFilter, want ...string) {
	f.Helper()
	all, err := f.store.LastWords(f.ctx, filter)
	f.must(err)
	var got []string
	for _, w := range all {
		got = append(got, fmt.Sprintf("%s/%s/%s", w.App, w.Instance, w.BootID))
	}
	wantEqual(f, "last words", got, want)
}
