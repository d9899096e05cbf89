package storetest

import (
	"fmt"
	"time"

	"github.com/posternhq/postern/relay"
)

func auditTests() []test {
	return []test{
		{"an entry comes back as it was", func(f *fixture) {
			f.wantAudit("", 0)
			full := relay.AuditEntry{ID: "aud_a", At: start(), By: "tok_1 admin", App: app, Action: "egress.deny",
				Subject: "den_a", Detail: "a.example: \u2028 a leak"}
			bare := relay.AuditEntry{ID: "aud_b", At: later(time.Second), By: "relay", Action: "manifest.rollback"}
			f.must(f.store.AddAudit(f.ctx, full))
			f.must(f.store.AddAudit(f.ctx, bare))
			f.wantNoCode(f.store.AddAudit(f.ctx, bare)) // one id is one entry
			got, err := f.store.Audit(f.ctx, "", 0)
			f.must(err)
			wantEqual(f, "entries", got, []relay.AuditEntry{bare, full})
		}},
		{"an app's entries are its own", func(f *fixture) {
			f.audit(app, "a")
			f.audit("other", "b")
			f.audit("", "c")
			f.audit(app, "d")
			f.wantAudit(app, 0, "aud_d", "aud_a")
			f.wantAudit("other", 0, "aud_b")
			f.wantAudit("nobody", 0)
			f.wantAudit("", 0, "aud_d", "aud_c", "aud_b", "aud_a")
		}},
		{"a list has the newest hundred, or as many as are asked for up to a thousand", func(f *fixture) {
			for i := range 1003 {
				f.audit(app, fmt.Sprint(i))
			}
			f.wantAudit("", 2, "aud_1002", "aud_1001")
			f.wantAudit(app, 1, "aud_1002")
			for _, who := range []relay.AppID{"", app} {
				for limit, want := range map[int]int{0: 100, 1000: 1000, 5000: 1000} {
					got, err := f.store.Audit(f.ctx, who, limit)
					f.must(err)
					if len(got) != want || got[want-1].ID != fmt.Sprint("aud_", 1003-want) {
						f.Fatalf("with the limit %d there are %d, the last is %s", limit, len(got), got[len(got)-1].ID)
					}
				}
			}
		}},
	}
}

// audit stores an entry "aud_<name>".
func (f *fixture) audit(of relay.AppID, name string) {
	f.Helper()
	f.must(f.store.AddAudit(f.ctx, relay.AuditEntry{ID: "aud_" + name, At: start(), By: "relay", App: of, Action: "egress.deny"}))
}

func (f *fixture) wantAudit(of relay.AppID, limit int, want ...string) {
	f.Helper()
	all, err := f.store.Audit(f.ctx, of, limit)
	f.must(err)
	var got []string
	for _, e := range all {
		got = append(got, e.ID)
	}
	wantEqual(f, "audit entries", got, want)
}
