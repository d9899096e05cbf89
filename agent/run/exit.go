package run

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Exit is how the child ended.
type Exit struct {
	PID    int
	Code   int           // as Run returns it: the child's own, or 128+n for signal n
	Signal string        // which killed the child, such as SIGKILL; else empty
	Core   bool          // it left a core
	Asked  bool          // a stop was under way, or SIGINT had been passed on
	Killed bool          // SIGKILL came from us
	OOM    bool          // the kernel has killed a process of the container for want of memory meanwhile
	Began  time.Time     // when the child was started
	Ended  time.Time     // when its end was noticed
	CPU    time.Duration // user and system time of the child and of those it has waited for
	MaxRSS int64         // the most that any one of them had in memory, bytes
}

// newExit is what state says; what only the supervisor knows is added by it.
func newExit(state *os.ProcessState) Exit {
	e := Exit{PID: state.Pid(), Code: exitCode(state), Ended: time.Now(), CPU: state.UserTime() + state.SystemTime()}
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		e.Signal, e.Core = signalName(status.Signal()), status.CoreDump()
	}
	if usage, ok := state.SysUsage().(*syscall.Rusage); ok && usage != nil {
		e.MaxRSS = int64(usage.Maxrss) * rssUnit
	}
	return e
}

// signalName is SIGKILL and the like; a real-time signal has only a number.
func signalName(sig syscall.Signal) string {
	if name := unix.SignalName(sig); name != "" {
		return name
	}
	return fmt.Sprintf("signal %d", int(sig))
}

// Reason says in one sentence what the end looks like.
func (e Exit) Reason() string {
	switch {
	case e.Killed && e.Signal == "SIGKILL" && e.Asked:
		return "did not stop when asked and was killed by postern"
	case e.Killed && e.Signal == "SIGKILL":
		return "was killed by postern"
	case e.Signal == "SIGKILL" && e.OOM:
		return "was killed by the kernel for want of memory (SIGKILL)"
	case e.Signal == "SIGKILL":
		return "was killed from outside (SIGKILL), as platforms do with an app above its memory limit"
	case e.Signal != "" && e.Asked:
		return "stopped as asked, of " + e.Signal
	case e.Signal != "" && e.Core:
		return "died of " + e.Signal + " and left a core"
	case e.Signal != "":
		return "died of " + e.Signal
	case e.Asked:
		return fmt.Sprintf("stopped as asked, with code %d", e.Code)
	}
	return fmt.Sprintf("ended by itself with code %d", e.Code) + e.hint()
}

// hint says what a code means that shells and runtimes give to the end of another
// process.
func (e Exit) hint() string {
	switch {
	case e.OOM:
		return ", and the kernel has killed a process of it for want of memory"
	case e.Code == codeNotFound:
		return ", which a shell gives when there is no such program"
	case e.Code == codeNotExecutable:
		return ", which a shell gives when a program cannot be executed"
	case e.Code > codeSignal && e.Code < codeSignal+65:
		return ", which a shell gives when its program was killed by " + signalName(syscall.Signal(e.Code-codeSignal))
	}
	return ""
}
