package run

import (
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// strangerDelay is how long a dead process stays unreaped that may have been started
// by another part of this program, where that cannot be told.
const strangerDelay = 5 * time.Second

// adopter is the foster parent of the app's orphans: of every process below us whose
// own parent has died. The first process of a container is given them whether it likes
// it or not, and each one it does not reap stays in the process table for ever.
//
// It must not reap what another part of this program has started and waits for
// (os/exec), so it looks before it reaps. Since Linux 5.4 os.StartProcess holds a
// pidfd until Wait or Release, and the kernel hands that out in the same step as it
// makes the process. So whoever is our child and has no pidfd here was adopted; no
// register is needed, and there is no moment at which it could be wrong.
//
// On older kernels and without /proc it keeps to what is certain: the app's own group
// at once, other groups when nobody has reaped the dead for strangerDelay, our own
// group (where os/exec puts its processes) never.
//
// A nil adopter adopts nobody. All of it belongs to the goroutine of Run.
type adopter struct {
	changed chan os.Signal // SIGCHLD; one is enough, for one look finds all of the dead
	child   int
	log     *slog.Logger

	handles bool              // processes that this program has started have pidfds
	dead    map[int]time.Time // without handles: since when the doubtful ones are known to be dead
	again   <-chan time.Time  // when to look at them again
	reaped  int

	order syscall.Signal // what every orphan is told, once; 0 nothing
	told  map[int]bool
}

// newAdopter takes on the duty where it exists or is asked for, else returns nil. It
// is called before the child starts, so that no orphan is missed.
func newAdopter(asked bool, log *slog.Logger) *adopter {
	if os.Getpid() != 1 && !asked {
		return nil
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		log.Warn("orphans of the app cannot be adopted", "error", err)
		if os.Getpid() != 1 {
			return nil
		}
	}
	a := &adopter{changed: make(chan os.Signal, 1), log: log, dead: map[int]time.Time{}, told: map[int]bool{}}
	signal.Notify(a.changed, syscall.SIGCHLD)
	return a
}

// started tells which child is not an orphan, and finds out how to tell others.
func (a *adopter) started(child int) {
	if a == nil {
		return
	}
	a.child = child
	a.handles = startedHere(-1)[child]
}

func (a *adopter) stop() {
	if a != nil {
		signal.Stop(a.changed)
	}
}

// events is what Run waits for besides; a nil adopter never has any.
func (a *adopter) events() (changed <-chan os.Signal, again <-chan time.Time) {
	if a == nil {
		return nil, nil
	}
	return a.changed, a.again
}

// reap buries all orphans that are dead. The kernel always shows the same one first,
// until it is reaped; when that is not ours to reap, those behind it are looked up.
func (a *adopter) reap() {
	if a == nil {
		return
	}
	a.again = nil
	if a.buryAll(unix.P_ALL, 0) {
		clear(a.dead)
		return
	}
	a.buryAll(unix.P_PGID, a.child) // without /proc this is all that can be done
	for _, m := range members() {
		if m.parent == os.Getpid() && m.dead() {
			a.bury(m.pid)
		}
	}
}

// buryAll buries one after the other until nobody is dead, or one is not ours to reap.
func (a *adopter) buryAll(kind, id int) bool {
	for {
		pid := peek(kind, id)
		if pid == 0 {
			return true
		}
		if !a.bury(pid) {
			return false
		}
	}
}

// peek returns a child of this kind that has died, without reaping it; 0 when there is
// none.
func peek(kind, id int) int {
	var info unix.Siginfo
	for {
		err := unix.Waitid(kind, id, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		switch {
		case err == nil:
			return pidOf(&info)
		case !errors.Is(err, unix.EINTR):
			return 0 // ECHILD: no children at all
		}
	}
}

// pidOf is the si_pid of sigaction(2), which the unix package keeps to itself.
func pidOf(info *unix.Siginfo) int {
	layout := (*struct {
		_      [3]int32
		fields struct {
			_   [0]uintptr // a union with pointers in it, so it is aligned like one
			pid int32
		}
	})(unsafe.Pointer(info))
	return int(layout.fields.pid)
}

// bury reaps the dead child pid, unless somebody else in this program is to do that. It
// reports whether it has, so that nobody waits in a circle for one who stays.
func (a *adopter) bury(pid int) bool {
	if pid == a.child {
		return false
	}
	if !a.handles {
		return a.buryStranger(pid)
	}
	// By a handle of our own the kernel reaps this very process, and not one that has
	// come by its number meanwhile.
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false // reaped by its owner, just now
	}
	defer unix.Close(fd)
	if startedHere(fd)[pid] {
		return false
	}
	if err := unix.Waitid(unix.P_PIDFD, fd, nil, unix.WEXITED|unix.WNOHANG, nil); err != nil {
		return false
	}
	a.reaped++
	return true
}

// buryStranger is bury where it cannot be told who has started pid.
func (a *adopter) buryStranger(pid int) bool {
	group, err := unix.Getpgid(pid)
	if err != nil {
		return false // reaped by its owner, just now
	}
	switch group {
	case a.child:
	case unix.Getpgrp():
		return false
	default:
		since, known := a.dead[pid]
		if !known {
			since = time.Now()
			a.dead[pid] = since
		}
		if time.Since(since) < strangerDelay {
			a.again = time.After(strangerDelay)
			return false
		}
	}
	delete(a.dead, pid)
	if reaped, _ := syscall.Wait4(pid, nil, syscall.WNOHANG, nil); reaped != pid {
		return false
	}
	a.reaped++
	return true
}

// startedHere returns the processes of which this program holds a pidfd other than except.
func startedHere(except int) map[int]bool {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	pids := map[int]bool{}
	for _, name := range names {
		link, err := os.Readlink("/proc/self/fd/" + name)
		if err != nil || !strings.Contains(link, "pidfd") || name == strconv.Itoa(except) {
			continue
		}
		info, err := os.ReadFile("/proc/self/fdinfo/" + name)
		if err != nil {
			continue
		}
		if _, rest, ok := strings.Cut(string(info), "\nPid:"); ok {
			line, _, _ := strings.Cut(rest, "\n")
			if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid > 0 {
				pids[pid] = true
			}
		}
	}
	return pids
}

// living are the orphans outside the app's group, which is looked after by its number.
func (a *adopter) living() []member {
	if a == nil {
		return nil
	}
	var orphans []member
	for _, m := range members() {
		if m.parent == os.Getpid() && !m.dead() && m.pid != a.child && m.group != a.child &&
			(a.handles || m.group != unix.Getpgrp()) {
			orphans = append(orphans, m)
		}
	}
	if len(orphans) == 0 || !a.handles {
		return orphans
	}
	ours := startedHere(-1) // asked for last: whoever is listed above and is ours is in it
	kept := orphans[:0]
	for _, m := range orphans {
		if !ours[m.pid] {
			kept = append(kept, m)
		}
	}
	return kept
}

// none reports whether no orphan lives.
func (a *adopter) none() bool { return len(a.living()) == 0 }

// tell makes sig what all orphans are told from now on, by gone.
func (a *adopter) tell(sig syscall.Signal) {
	if a != nil {
		a.order = sig
		clear(a.told)
	}
}

// gone tells those who have not been told, and reports whether no orphan lives. When
// one dies, its children are orphans too. One that leads a group is told together with
// it, as the app is. Their numbers cannot pass to strangers, because only we reap them.
func (a *adopter) gone() bool {
	a.reap()
	living := a.living()
	for _, m := range living {
		if a.order == 0 || a.told[m.pid] {
			continue
		}
		a.told[m.pid] = true
		target := m.pid
		if m.group == m.pid {
			target = -m.pid
		}
		if err := syscall.Kill(target, a.order); err != nil && !errors.Is(err, syscall.ESRCH) {
			a.log.Warn("signal not delivered to an orphan of the app", "pid", m.pid, "signal", a.order.String(), "error", err)
		}
	}
	return len(living) == 0
}
