package protocol

import (
	"slices"
	"time"
)

// Version is the protocol version this package speaks. Versions change only
// when an old peer could no longer understand the bytes; everything else is a
// feature.
const Version = 1

// Subprotocol is the WebSocket subprotocol of the tunnel.
const Subprotocol = "postern.v1"

// Feature is an optional part of the protocol. Only features in both Hello and
// Welcome are used.
type Feature string

// The features this package knows.
const (
	FeatureDrain  Feature = "drain"  // drain and drained messages
	FeatureTCP    Feature = "tcp"    // streams of KindTCP
	FeatureState  Feature = "state"  // state messages
	FeatureReport Feature = "report" // streams of KindReport
	FeatureLogs   Feature = "logs"   // streams of KindLogs
	FeatureEgress Feature = "egress" // streams of KindEgress, KindEgressHTTP, KindPolicy and KindFlows
)

// Features lists what this package offers.
func Features() []Feature {
	return []Feature{FeatureDrain, FeatureTCP, FeatureState, FeatureReport, FeatureLogs, FeatureEgress}
}

// AppState is whether the app beside an agent takes connections. While no agent
// of an app says ready, the relay holds what it has for the app.
type AppState string

// The states.
const (
	StateReady    AppState = "ready"    // it listens where it should
	StateStarting AppState = "starting" // not yet, but it may still: requests wait for it
	StateFailed   AppState = "failed"   // no longer, or too late: requests are refused
	StateNone     AppState = "none"     // it never will: a worker, which is here to be looked at
)

// Known is s as this version knows it: whatever a later version says is a state
// in which the app is not to be sent anything.
func (s AppState) Known() AppState {
	switch s {
	case "", StateReady:
		return StateReady
	case StateStarting, StateNone:
		return s
	}
	return StateFailed
}

// Hello is the agent's first message.
type Hello struct {
	Versions []int     `json:"versions"`
	Features []Feature `json:"features,omitempty"`
	Agent    string    `json:"agent,omitempty"` // name and version of the agent's program

	// Instance is which copy of the app this is: "web.1", a host name. BootID is
	// random for each start of the agent: the same Instance with a new BootID is
	// its successor, and both may be connected for a while.
	Instance string `json:"instance"`
	BootID   string `json:"boot_id"`
	// Tunnel counts 0 … Tunnels-1: an agent holds several sessions.
	Tunnel  int `json:"tunnel"`
	Tunnels int `json:"tunnels"`

	// State is the app's at this moment; "" is ready. See Session.SetState.
	State AppState `json:"state,omitempty"`

	Platform string `json:"platform,omitempty"` // heroku, render, …
	Process  string `json:"process,omitempty"`  // web, worker
	Release  string `json:"release,omitempty"`
	Commit   string `json:"commit,omitempty"`
	Region   string `json:"region,omitempty"`
}

// Limits of a Hello.
const (
	MaxTunnels  = 16
	maxNameLen  = 128 // bytes of every name in a Hello
	maxListLen  = 32
	maxURL      = 512
	minBootID   = 8
	minInterval = 50 * time.Millisecond
	maxInterval = 10 * time.Minute
)

func (h *Hello) validate() error {
	switch {
	case len(h.Versions) == 0 || len(h.Versions) > maxListLen:
		return Errorf(CodeBadMessage, "hello lists %d versions, expected 1 to %d", len(h.Versions), maxListLen)
	case len(h.Features) > maxListLen:
		return Errorf(CodeBadMessage, "hello lists %d features, at most %d are allowed", len(h.Features), maxListLen)
	case h.Instance == "":
		return Errorf(CodeBadMessage, "hello names no instance")
	case len(h.BootID) < minBootID:
		return Errorf(CodeBadMessage, "hello has a boot id of %d characters, expected at least %d", len(h.BootID), minBootID)
	case h.Tunnels < 1 || h.Tunnels > MaxTunnels || h.Tunnel < 0 || h.Tunnel >= h.Tunnels:
		return Errorf(CodeBadMessage, "hello is for tunnel %d of %d, expected 0 to %d of at most %d",
			h.Tunnel, h.Tunnels, h.Tunnels-1, MaxTunnels)
	}
	for _, s := range []string{h.Agent, h.Instance, h.BootID, string(h.State), h.Platform, h.Process, h.Release, h.Commit, h.Region} {
		if err := checkName(s); err != nil {
			return err
		}
	}
	return nil
}

// checkName refuses what would damage a log line or a metric label.
func checkName(s string) error {
	if len(s) > maxNameLen {
		return Errorf(CodeBadMessage, "name of %d bytes, at most %d are allowed", len(s), maxNameLen)
	}
	if !printable(s) {
		return Errorf(CodeBadMessage, "name %q, expected printable ASCII", s)
	}
	return nil
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

// Welcome is the relay's answer to a Hello.
type Welcome struct {
	Version  int       `json:"version"`
	Features []Feature `json:"features,omitempty"` // the ones both ends have
	Session  string    `json:"session"`            // names this session in the relay's log
	Node     string    `json:"node"`               // which relay process this is

	// URL is where the app is reached from outside, for the agent to show. At
	// most 512 bytes.
	URL string `json:"url,omitempty"`

	// HeartbeatMS is how often each side pings, give or take a fifth.
	HeartbeatMS int64 `json:"heartbeat_ms"`
	// SlotMS is this agent's turn after the connection is lost without a drain:
	// it waits that long before its first new attempt, so that a relay that
	// restarts is not met by all agents in the same instant.
	SlotMS int64 `json:"slot_ms,omitempty"`
}

func (w *Welcome) validate() error {
	if len(w.Features) > maxListLen {
		return Errorf(CodeBadMessage, "welcome lists %d features, at most %d are allowed", len(w.Features), maxListLen)
	}
	if w.HeartbeatMS < minInterval.Milliseconds() || w.HeartbeatMS > maxInterval.Milliseconds() {
		return Errorf(CodeBadMessage, "welcome has a heartbeat of %d ms, expected %d to %d",
			w.HeartbeatMS, minInterval.Milliseconds(), maxInterval.Milliseconds())
	}
	if len(w.URL) > maxURL {
		return Errorf(CodeBadMessage, "welcome has a URL of %d bytes, at most %d are allowed", len(w.URL), maxURL)
	}
	if !printable(w.URL) { // it is shown in a terminal
		return Errorf(CodeBadMessage, "welcome has a URL that is not printable ASCII")
	}
	if w.SlotMS < 0 {
		return Errorf(CodeBadMessage, "welcome has a negative slot")
	}
	for _, s := range []string{w.Session, w.Node} {
		if err := checkName(s); err != nil {
			return err
		}
	}
	return nil
}

// negotiate picks the version and features both ends have. ok is false when
// there is no version in common.
func negotiate(h *Hello) (version int, features []Feature, ok bool) {
	if !slices.Contains(h.Versions, Version) {
		return 0, nil, false
	}
	for _, f := range Features() {
		if slices.Contains(h.Features, f) {
			features = append(features, f)
		}
	}
	return Version, features, true
}
