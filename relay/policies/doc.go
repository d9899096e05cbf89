// Package policies holds the policies in force: which version of the manifest decides
// about an app's calls, which instances have a canary instead, which emergency denies
// and exceptions there are besides. It hands them to the relay's own checks and pushes
// them to every agent.
//
//	Of            (app, instance) → *policy.Compiled, on every call; no lock
//	Serve         one stream of protocol.KindPolicy: the policy now, and every later one
//	SetFile       the watched file has a text
//	Apply, Rollback, Promote            versions of the manifest
//	Order, EndOrder                     emergency denies and exceptions
//	Diff, Learn                         a text, or an allow list, against what was called
//	Run           once a second: what ends, what a canary's refusals say, what to warn of
//
// What is in force is one value, a state, that is never changed. A change makes the
// next state and wakes whoever serves an agent; each of them sends the newest there is,
// so that a slow agent never gets one that is out of date, and holds up nobody.
//
//	change
//	├── table per edition      what a version and the orders make of each app
//	│   └── entry              one app's policy; compiled, and written as JSON, when it
//	│                          is first asked for, once for all who ask. An app that a
//	│                          change does not concern keeps its entry and its serial
//	└── state.over closed      every Serve looks again
//
// Canary. A text with a rollout is in force for a share of the instances first, chosen
// by a hash of app and instance (at least one of those that are connected). Only what
// concerns calls to the outside differs for them: whatever else the text says is applied
// when it is promoted. A text that changes nothing about calls is in force at once, and
// so is the first one. It is promoted when its time is over, and taken back when the
// share of refused calls is a step up; trial.step says what counts as one.
//
// Serials are microseconds since 1970, or one more than the last where that is greater,
// so that they grow across restarts.
//
// It does not decide about calls (protocol/policy does), reads no file, and starts no
// goroutine but one for each stream it serves, for whose end Serve waits.
//
// The one rule to know: the store comes first. A version or an order is durable before
// it is in force, so that a restart never falls back behind what somebody was told; and
// a text with an error changes nothing.
package policies
