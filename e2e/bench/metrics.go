package main

import (
	"fmt"
	"slices"
)

// metric is one row of the report.
type metric struct {
	id    string
	group string
	title string
	unit  string
	bar   *bar
}

// bar is what the product is required to reach.
type bar struct {
	limit    float64
	atLeast  bool // otherwise at most
	absolute bool // of postern's own value, otherwise of postern/proxy2
	text     string
}

func ratioAtLeast(limit float64) *bar {
	return &bar{limit: limit, atLeast: true, text: fmt.Sprintf(">= %.2fx", limit)}
}

func ratioAtMost(limit float64) *bar {
	return &bar{limit: limit, text: fmt.Sprintf("<= %.2fx", limit)}
}

func atMost(limit float64, unit string) *bar {
	return &bar{limit: limit, absolute: true, text: fmt.Sprintf("<= %g %s", limit, unit)}
}

// against is the target whose values this metric's are compared with.
func (m metric) against() string {
	if slices.Contains([]string{groupInbox, groupConnect, groupTunnel, groupFirstByte}, m.group) {
		return targetBaseline
	}
	return targetProxy2
}

// reached compares a value with the bar.
func (b *bar) reached(value float64) bool {
	if b.atLeast {
		return value >= b.limit
	}
	return value <= b.limit
}

// metrics lists all rows in printed order. MB is 10^6 bytes, kB 10^3. What the
// inbox stores where it holds a lot depends on sizes.
func metrics(sizes inboxSizes) []metric {
	all := smallMetrics()
	all = append(all, metric{"mib.16.rps", groupMiB, "1 MiB responses, 16 conns", "resp/s", nil})
	all = append(all, bulkMetrics()...)
	for _, direction := range directions {
		id, during := "mixed."+direction+".", fmt.Sprintf(" during 16 %ss", direction)
		// The two-hop p99 over ours is to be at least 0.25.
		all = append(all,
			metric{id + "p50", groupMixed, "small p50" + during, "us", nil},
			metric{id + "p99", groupMixed, "small p99" + during, "us", ratioAtMost(4)},
			metric{id + "rps", groupMixed, "small rate" + during, "req/s", nil},
			metric{id + "bulk", groupMixed, "rate of these " + direction + "s", "MB/s", nil},
		)
	}
	all = append(all, memoryMetrics()...)
	return append(append(all, inboxMetrics(sizes)...), egressMetrics()...)
}

// inboxMetrics each have a baseline of their own, which their title names behind
// the slash.
//
// What has to be flat may cost up to 1.3 times as much. Anything that looks at
// every stored row would be far above; what remains below is the deeper index
// and pages that are not in memory, and the spread of rates from run to run.
func inboxMetrics(sizes inboxSizes) []metric {
	stored, waiting := fmt.Sprint(sizes.Stored), fmt.Sprint(sizes.Waiting)
	return []metric{
		{"inbox.accepts.commits", groupInbox, "accepts, 64 senders / single-row commits", "1/s", ratioAtLeast(1.5)},
		{"inbox.accepts.handler", groupInbox, "accepts, 64 senders / empty HTTP handler", "1/s", ratioAtLeast(0.2)},
		{"inbox.accepts.p50", groupInbox, "  p50 / the handler's", "us", nil},
		{"inbox.accepts.p99", groupInbox, "  p99 / the handler's", "us", nil},
		{"inbox.accepts.cpu", groupInbox, "  CPU per 10k / the handler's", "s", nil},
		{"inbox.paced.p50", groupInbox, fmt.Sprintf("answer at %d/s, p50 / one fsync, p50", pacedRate), "us", ratioAtMost(6)},
		{"inbox.paced.p99", groupInbox, fmt.Sprintf("answer at %d/s, p99 / one fsync, p99", pacedRate), "us", nil},
		{"inbox.paced.late", groupInbox, "  of it the load generator's own delay, p50", "us", nil},
		{"inbox.both", groupInbox, "deliveries / accepts, both at once", "1/s", ratioAtLeast(1.0 / 3)},
		{"inbox.flat.accept", groupInbox, "one accept, " + stored + " stored / none", "us", ratioAtMost(flatWithin)},
		{"inbox.flat.accept.cpu", groupInbox, "  CPU per 10k, " + stored + " stored / none", "s", nil},
		{"inbox.flat.due", groupInbox, "one delivery, " + waiting + " due / none besides", "us", ratioAtMost(flatWithin)},
		{"inbox.flat.due.cpu", groupInbox, "  CPU per 10k, " + waiting + " due / none besides", "s", nil},
		{"inbox.flat.later", groupInbox, "one delivery, " + waiting + " due later / none", "us", ratioAtMost(flatWithin)},
		{"inbox.flat.later.cpu", groupInbox, "  CPU per 10k, " + waiting + " due later / none", "s", nil},
	}
}

const flatWithin = 1.3

func smallMetrics() []metric {
	var rates, middles, tails []metric
	for _, conns := range smallConns {
		id, title := fmt.Sprintf("small.%d.", conns), fmt.Sprintf("small, %d conns: ", conns)
		rate := metric{id + "rps", groupSmall, title + "rate", "req/s", nil}
		if conns == 64 {
			rate.bar = ratioAtLeast(1.5)
		}
		rates = append(rates, rate)
		middles = append(middles, metric{id + "p50", groupSmall, title + "p50", "us", nil})
		tails = append(tails, metric{id + "p99", groupSmall, title + "p99", "us", nil})
	}
	all := append(append(rates, middles...), tails...)
	return append(all,
		metric{"small.64.cpu", groupSmall, "CPU per 10k small, 64 conns", "s", ratioAtMost(0.65)},
		metric{"small.64.cpu.hop1", groupSmall, "  relay, first hop", "s", nil},
		metric{"small.64.cpu.hop2", groupSmall, "  agent, second hop", "s", nil},
	)
}

func bulkMetrics() []metric {
	oneStream := map[string]*bar{"download": ratioAtLeast(0.7), "upload": ratioAtLeast(0.6)}
	var all []metric
	for _, direction := range directions {
		for _, streams := range bulkStreams {
			m := metric{fmt.Sprintf("bulk.%s.%d", direction, streams), groupBulk,
				fmt.Sprintf("%s, streams: %d", direction, streams), "MB/s", nil}
			if streams == 1 {
				m.bar = oneStream[direction]
			}
			all = append(all, m)
		}
	}
	return all
}

func memoryMetrics() []metric {
	states := []struct{ id, title string }{
		{"idle", "idle"}, {"loaded", "after load"},
		{"stalled32", "32 stalled downloads"}, {"stalled100", "100 stalled downloads"},
	}
	bars := map[string]*bar{
		"memory.stalled32.hop1": atMost(64, "MB"),
		"memory.idle.hop2":      atMost(20, "MB"),
	}
	var all []metric
	for i, hop := range []string{"relay, first hop", "agent, second hop"} {
		for _, state := range states {
			id := fmt.Sprintf("memory.%s.hop%d", state.id, i+1)
			all = append(all,
				metric{id, groupMemory, hop + ": " + state.title, "MB", bars[id]},
				metric{id + ".anon", groupMemory, "  of it anonymous", "MB", nil})
		}
	}
	return append(all, metric{"agents.each", groupAgents,
		fmt.Sprintf("relay per idle agent, %d agents", idleAgentCount), "kB", atMost(40, "kB")})
}
