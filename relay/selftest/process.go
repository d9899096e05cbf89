package selftest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// stopsWithin bounds how long a process may take to stop in order.
const stopsWithin = 40 * time.Second

// Process is a child process, over all its lives. It is not safe for concurrent
// use.
type Process struct {
	Command []string  // program and arguments; required
	Env     []string  // besides Environment
	Log     io.Writer // what it says; nil: nobody listens

	cmd   *exec.Cmd
	input io.Closer     // the write end of its standard input; ends with it, or with us
	done  chan struct{} // closed when the process has ended
	err   error         // of Wait, valid after done
}

// Start starts the process.
func (p *Process) Start() error {
	p.cmd = exec.Command(p.Command[0], p.Command[1:]...)
	p.cmd.Env = append(Environment(), p.Env...)
	p.cmd.Stdout, p.cmd.Stderr = p.Log, p.Log
	p.cmd.SysProcAttr = childAttributes()
	p.cmd.WaitDelay = time.Second
	p.done = make(chan struct{})
	in, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer in.Close()
	p.cmd.Stdin = in
	if err := p.cmd.Start(); err != nil {
		w.Close()
		p.cmd = nil
		return fmt.Errorf("start %s: %w", p.Command[0], err)
	}
	p.input = w
	go p.await()
	return nil
}

func (p *Process) await() {
	p.err = p.cmd.Wait()
	p.input.Close()
	close(p.done)
}

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Ended is why the process is gone; call it after Done.
func (p *Process) Ended() error {
	if p.err == nil {
		return errors.New("it said that it was done")
	}
	return p.err
}

// Kill ends the process at once, with SIGKILL, and waits until it is gone. One
// that never started, or has ended, is left alone.
func (p *Process) Kill() {
	if p.cmd != nil {
		p.cmd.Process.Kill()
		<-p.done
	}
}

// Stop asks the process to end, and waits until it has, or kills it.
func (p *Process) Stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.Kill() // it is gone already, or this system has no signals
		return p.err
	}
	timer := time.NewTimer(stopsWithin)
	defer timer.Stop()
	select {
	case <-p.done:
		return p.err
	case <-timer.C:
		p.Kill()
		return fmt.Errorf("%s has not stopped within %v", p.Command[0], stopsWithin)
	}
}

// Environment is ours without what would change how a relay or an agent behaves.
func Environment() []string {
	var kept []string
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		upper := strings.ToUpper(name)
		switch {
		case strings.HasPrefix(upper, "POSTERN"), strings.HasSuffix(upper, "_PROXY"),
			upper == "PORT", upper == "DATABASE_URL", upper == "DYNO":
		default:
			kept = append(kept, entry)
		}
	}
	return kept
}
