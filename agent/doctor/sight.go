package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/posternhq/postern/agent/proc"
	"github.com/posternhq/postern/protocol"
)

// sight is what one examination saw. Checks read it and nothing else.
type sight struct {
	place *Place
	world *world
	past  *history // what earlier examinations saw, this one counted in

	at   time.Time
	age  time.Duration // since the app started
	pid  int
	exit *protocol.Exit

	// What the kernel says. blind: nothing, and all of it is empty.
	blind     bool
	hidden    bool // what some process of the app holds could not be read
	tree      []proc.Process
	mine      []proc.Socket // the app's listeners on the port
	elsewhere []proc.Socket // the app's listeners on other ports
	alien     []proc.Socket // others' listeners on the port, in the way of the app's
	holder    proc.Process  // of alien[0], where it can be told

	// What connections met.
	loopback outcome // 127.0.0.1 and the port
	six      outcome // ::1 and the port
	outer    outcome // interface addresses and the port: the best of them
	outerAt  netip.Addr
	answer   *answer // the health path's

	works   bool         // some thread works, or waits for a processor; told only while nothing listens
	barrier proc.Process // a shell between us and the server that passes no signal on; PID 0: none
	egress  egress

	lines     []protocol.Line
	framework Framework
	dir       string
}

// outcome is what became of a connection.
type outcome int

const (
	untried outcome = iota
	refused
	silent // no answer in time, or some other failure
	open
)

// fresh says how much an examination may disturb.
type fresh int

const (
	unseen fresh = iota // whatever is still known is not asked again
	brief               // connections, where they are needed
	whole               // and what the app says on them
)

// gather looks. Of what the doctor remembers it writes only what has been asked of
// the app; note does the rest.
func (d *Doctor) gather(ctx context.Context, how fresh) *sight {
	h := &d.past
	s := &sight{place: &d.cfg.Place, world: &d.world, past: h, at: time.Now(), dir: d.cfg.Dir}
	if d.cfg.Child != nil {
		s.pid, s.exit = d.cfg.Child()
	}
	if h.started.IsZero() && (s.pid != 0 || s.exit != nil) {
		h.started = s.at
	}
	if d.cfg.Lines != nil {
		s.lines = d.cfg.Lines(maxLines)
	}
	if s.pid != 0 && s.exit == nil || s.exit != nil && !s.exit.Asked && s.place.Serves {
		s.kernel() // of one that has ended, too: somebody else may have had the port
	}
	s.clock()
	if s.pid != 0 && s.exit == nil {
		if s.place.Serves && s.place.Port != 0 {
			s.connect(ctx, how)
		}
		if s.place.Serves && len(s.mine) == 0 {
			s.detour(ctx)
		}
		if len(s.mine) == 0 && h.booted == 0 {
			s.works = slices.ContainsFunc(s.tree, func(p proc.Process) bool { return s.world.runnable(p.PID) })
		}
		s.barrier = s.shell()
		s.egress = s.calls(ctx)
	}
	return s
}

// startSlack is how much older than our first look an app must be to have been
// there before us: its age is known in seconds only.
const startSlack = 5 * time.Second

// clock tells how old the app is. One that was there before the doctor is as old as
// its first process.
func (s *sight) clock() {
	h := s.past
	if h.looks == 0 && len(s.tree) > 0 && s.tree[0].PID == s.pid {
		if age := proc.Age(s.tree[0]); age > startSlack {
			h.started = s.at.Add(-age)
		}
	}
	if !h.started.IsZero() {
		s.age = s.at.Sub(h.started)
	}
}

// maxLines is how many of the app's last lines are looked at.
const maxLines = 40

// kernel asks who is there and who listens.
func (s *sight) kernel() {
	shot, err := s.world.take(s.pid)
	known := func() bool { return err == nil || errors.Is(err, os.ErrNotExist) } // the first one is gone, others are not
	if known() && s.sort(shot) {
		// A server that was forked between the two reads looks like a stranger.
		if shot, err = s.world.take(s.pid); known() {
			s.sort(shot)
		}
	}
	s.blind = errors.Is(err, proc.ErrUnavailable)
	if len(s.alien) > 0 {
		s.who()
	}
}

// sort tells the app's listeners from others', and reports whether others have the
// port.
func (s *sight) sort(shot proc.Snapshot) bool {
	s.tree, s.hidden = shot.Tree, shot.Hidden
	s.mine, s.elsewhere, s.alien = nil, nil, nil
	for _, l := range shot.Listeners {
		here := int(l.Local.Port()) == s.place.Port
		switch {
		case here && (l.PID != 0 || s.hidden):
			s.mine = append(s.mine, l)
		case here:
			s.alien = append(s.alien, l)
		case l.PID != 0:
			s.elsewhere = append(s.elsewhere, l)
		}
	}
	return len(s.alien) > 0
}

// who finds out who holds the port, and forgets about ourselves: a bridge of the
// agent on an interface's address is no stranger.
func (s *sight) who() {
	kept := s.alien[:0]
	for _, l := range s.alien {
		holder, err := s.world.holder(l.Inode)
		if err == nil && holder.PID == os.Getpid() {
			continue
		}
		if err == nil && s.holder.PID == 0 {
			s.holder = holder
		}
		kept = append(kept, l)
	}
	s.alien = kept
}

// connect tries the addresses at which somebody is seen to listen, all of them
// where nothing can be seen.
func (s *sight) connect(ctx context.Context, how fresh) {
	port := uint16(s.place.Port)
	if how == unseen && s.stillThere() {
		s.loopback, s.answer = open, s.past.answer
		return
	}
	if !s.blind && len(s.mine) == 0 && len(s.alien) == 0 {
		return // a connection to a port where nobody listens can only do harm
	}
	s.loopback = s.try(ctx, s.target(), how)
	if s.loopback != open && (s.blind || anySix(s.mine)) {
		s.six = s.try(ctx, netip.AddrPortFrom(netip.IPv6Loopback(), port), brief)
	}
	s.connectOuter(ctx, port)
	if s.ours() {
		s.question(ctx, how)
	}
}

// stillThere reports whether the app is known to be ready and nothing has changed.
func (s *sight) stillThere() bool {
	h := s.past
	if h.state != protocol.StateReady || h.here.Inode == 0 {
		return false
	}
	for _, l := range s.mine {
		if l.Inode == h.here.Inode {
			return true
		}
	}
	return false
}

// connectOuter tries the interfaces: where the app listens on one of them alone,
// and, without /proc, to tell all addresses from the loopback.
func (s *sight) connectOuter(ctx context.Context, port uint16) {
	var list []netip.Addr
	if s.blind {
		list = s.world.addresses()
	} else if s.loopback != open {
		for _, l := range s.mine {
			if ip := l.Local.Addr(); !ip.IsUnspecified() && !ip.IsLoopback() {
				list = append(list, ip)
			}
		}
	}
	for _, ip := range list {
		if got := s.try(ctx, netip.AddrPortFrom(ip, port), brief); got > s.outer {
			s.outer, s.outerAt = got, ip
		}
	}
}

// detour finds out, once for each listener, how the app can be reached on another
// port. A listener on :: takes both families, or IPv6 alone; and a container may have
// no ::1.
func (s *sight) detour(ctx context.Context) {
	l := s.main()
	if !l.Local.IsValid() || s.past.detourOf == keyOf(l) || slices.Contains(neverApps, l.Local.Port()) {
		return
	}
	s.past.detourOf, s.past.detour = keyOf(l), netip.AddrPort{}
	list := []netip.Addr{l.Local.Addr()}
	if l.Local.Addr().IsUnspecified() {
		list = []netip.Addr{loopback4, netip.IPv6Loopback()}
	}
	for _, ip := range list {
		if addr := netip.AddrPortFrom(ip, l.Local.Port()); s.try(ctx, addr, brief) == open {
			s.past.detour = addr
			return
		}
	}
}

var loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// try connects and hangs up; the first connection to a listener of the app that has
// no health path also carries five bytes, see probe.go.
func (s *sight) try(ctx context.Context, addr netip.AddrPort, how fresh) outcome {
	conn, err := s.world.dial(ctx, addr)
	var netErr net.Error
	switch {
	case err == nil:
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, errSelf), errors.Is(err, syscall.EADDRNOTAVAIL):
		return refused
	case errors.As(err, &netErr) && netErr.Timeout():
		return silent
	default:
		return silent
	}
	if how != whole || !s.mayWhisper() {
		conn.Close()
		return open
	}
	s.past.whispered = keyOf(s.listener())
	s.past.reacted = whisper(ctx, conn)
	return open
}

func (s *sight) mayWhisper() bool {
	return s.place.ReadyPath == "" && len(s.alien) == 0 && (s.blind || len(s.mine) > 0) &&
		s.past.whispered != keyOf(s.listener())
}

// question has the health path answered, and TLS proven where it shows.
func (s *sight) question(ctx context.Context, how fresh) {
	addr := s.target()
	if path := usablePath(s.place.ReadyPath); path != "" {
		s.answer = ask(ctx, s.world.dial, addr, s.hostname(), path)
		if !s.answer.tls && (s.answer.status == 400 || s.answer.status == 403 || s.answer.status == 421) {
			s.past.local = ask(ctx, s.world.dial, addr, "localhost:"+strconv.Itoa(s.place.Port), path)
		}
		if s.past.greeted != keyOf(s.listener()) {
			s.past.reacted = s.past.reacted || s.answer.tls || s.answer.status == 0
		}
	}
	if how == whole && (s.past.reacted || hintsTLS(s.lines)) && s.past.greeted != keyOf(s.listener()) {
		s.past.greeted = keyOf(s.listener())
		s.past.tls = speaksTLS(ctx, s.world.dial, addr)
		s.past.reacted = false
	}
}

// ours reports whether 127.0.0.1 and the port lead to the app, as far as can be seen.
func (s *sight) ours() bool {
	if s.loopback != open {
		return false
	}
	if s.blind {
		return true
	}
	mine, alien := false, false
	best := -1
	for _, l := range s.mine {
		if n := takes(l, loopback4); n >= 0 && n >= best {
			best, mine = n, true
		}
	}
	for _, l := range s.alien {
		if n := takes(l, loopback4); n > best {
			best, alien = n, true
		}
	}
	return mine && !alien
}

// takes says how exactly a listener is meant for an address: -1 not at all. The
// kernel gives a connection to the most exact one.
func takes(l proc.Socket, ip netip.Addr) int {
	switch local := l.Local.Addr(); {
	case local == ip:
		return 2
	case local.IsUnspecified() && local.Is4() == ip.Is4() && !l.IPv6:
		return 1
	case local.IsUnspecified() && l.IPv6: // dual, or V6ONLY, which a connection tells
		return 0
	}
	return -1
}

// ready reports whether the app is where it should be and answers.
func (s *sight) ready() bool {
	if !s.ours() {
		return false
	}
	return usablePath(s.place.ReadyPath) == "" || s.answer.good() || s.past.local.good() && s.answer != nil
}

// listener is the app's socket that takes what is sent to the port.
func (s *sight) listener() proc.Socket {
	best, rank := proc.Socket{}, -2
	for _, l := range s.mine {
		if n := takes(l, loopback4); n > rank {
			best, rank = l, n
		}
	}
	return best
}

func anySix(list []proc.Socket) bool {
	for _, l := range list {
		if l.IPv6 {
			return true
		}
	}
	return false
}

// process returns the process with that number, as far as the tree goes.
func (s *sight) process(pid int) (proc.Process, bool) {
	for _, p := range s.tree {
		if p.PID == pid {
			return p, true
		}
	}
	return proc.Process{}, false
}

// cpu is what the app's processes have used so far.
func (s *sight) cpu() time.Duration {
	var sum time.Duration
	for _, p := range s.tree {
		sum += p.CPU
	}
	return sum
}

// server is the process that listens, or the likeliest to be the app itself: the
// last one down from the first through shells and runners.
func (s *sight) server() proc.Process {
	for _, list := range [][]proc.Socket{s.mine, s.elsewhere} {
		for _, l := range list {
			if p, ok := s.process(l.PID); ok {
				return p
			}
		}
	}
	if len(s.tree) == 0 {
		return proc.Process{}
	}
	p := s.tree[0]
	for _, q := range s.tree[1:] {
		if q.PPID == p.PID && (isShell(p) || isRunner(p)) && q.State != 'Z' {
			p = q
		}
	}
	return p
}

// named is "node (pid 31)".
func named(name string, pid int) string {
	if pid == 0 {
		return "a process that cannot be told"
	}
	return fmt.Sprintf("%s (pid %d)", name, pid)
}

func (s *sight) file(name string) []byte {
	return s.world.file(filepath.Join(s.dir, name))
}

// hostname is the Host that the platform's health check, or its router, sends.
func (s *sight) hostname() string {
	if host := platformHost(s.place); host != "" {
		return host
	}
	return "localhost:" + strconv.Itoa(s.place.Port)
}

// target is where the agent sends what is for the app.
func (s *sight) target() netip.AddrPort {
	return netip.AddrPortFrom(loopback4, uint16(s.place.Port))
}
