package doctor

import "github.com/posternhq/postern/protocol"

// Code is one row of the table of mistakes.
type Code struct {
	Code     string
	Severity protocol.Severity // the worst it is given with; some are milder where less is at stake
	Title    string            // the mistake in a few words
}

// Codes lists every code the doctor knows, in order. docs/doctor.md explains them.
func Codes() []Code {
	return []Code{
		{"PORT01", protocol.SeverityError, "PORT is not set"},
		{"PORT02", protocol.SeverityError, "the app listens on another port"},
		{"PORT03", protocol.SeverityError, "the app listens on localhost only"},
		{"PORT04", protocol.SeverityError, "the app listens on IPv6 only"},
		{"PORT05", protocol.SeverityError, "the app listens on one interface address only"},
		{"PORT06", protocol.SeverityError, "nothing listens"},
		{"PORT07", protocol.SeverityError, "the boot is slow"},
		{"PORT08", protocol.SeverityError, "the platform sends to another port"},
		{"PORT09", protocol.SeverityError, "another process has the port"},
		{"PORT10", protocol.SeverityWarning, "the app listens on several ports"},
		{"PORT11", protocol.SeverityWarning, "connections were refused although the app listens"},
		{"PORT12", protocol.SeverityError, "the app was lost after its boot"},
		{"PORT13", protocol.SeverityError, "the app speaks TLS on PORT"},
		{"PORT14", protocol.SeverityWarning, "the app closes idle connections too early"},
		{"PORT15", protocol.SeverityError, "the app refuses the platform's host name"},
		{"PORT16", protocol.SeverityError, "the health path does not answer well"},
		{"PORT17", protocol.SeverityWarning, "PORT was set by hand"},
		{"PORT18", protocol.SeverityWarning, "a shell stands between the platform and the app"},
		{"PORT19", protocol.SeverityWarning, "the time to stop is short"},
		{"PORT20", protocol.SeverityWarning, "the platform puts the app to sleep"},
		{"EGR01", protocol.SeverityWarning, "Node does not use the proxy"},
		{"EGR02", protocol.SeverityWarning, "the JVM does not use the proxy"},
		{"EGR03", protocol.SeverityNote, "another proxy is set already"},
		{"EGR04", protocol.SeverityWarning, "the app connects past the proxy"},
	}
}
