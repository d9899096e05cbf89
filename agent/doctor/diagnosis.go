package doctor

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/posternhq/postern/protocol"
)

// Diagnosis is what one examination came to.
type Diagnosis struct {
	State    protocol.AppState
	Why      string            // one line: what State rests on
	Findings protocol.Findings // worst first; a correct app has none

	// Reachable is where the app's own listener takes connections although that is
	// not where it should be (PORT02 to PORT05), or nobody knows where it should be
	// (PORT01): what a bridge that rescues the deploy connects to. It was tried. The
	// zero value when the app is where it should be, or nowhere.
	Reachable netip.AddrPort
}

// same reports whether b says what a said. When it was said does not count.
func (d *Diagnosis) same(b *Diagnosis) bool {
	return d.State == b.State && d.Why == b.Why && d.Reachable == b.Reachable &&
		slices.Equal(d.Findings.List, b.Findings.List)
}

// arrange puts the worst findings first, then the lowest codes, and one of each
// code and cause.
func arrange(list []protocol.Finding) []protocol.Finding {
	slices.SortStableFunc(list, func(a, b protocol.Finding) int {
		return cmp.Or(
			cmp.Compare(rank(a.Severity), rank(b.Severity)),
			cmp.Compare(a.Code, b.Code),
		)
	})
	list = slices.CompactFunc(list, func(a, b protocol.Finding) bool { return a.Code == b.Code && a.Cause == b.Cause })
	return list[:min(len(list), protocol.MaxFindings)]
}

func rank(s protocol.Severity) int {
	switch s {
	case protocol.SeverityError:
		return 0
	case protocol.SeverityWarning:
		return 1
	}
	return 2
}
