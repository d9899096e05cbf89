package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a child that runs beside the demo.
type process struct {
	name   string
	cmd    *exec.Cmd
	output *output
	done   chan struct{} // closed when it has ended
	err    error         // how; set before done is closed
}

// start runs a program in a process group of its own, so that Ctrl-C reaches
// only the demo, which ends its children in order.
func start(name string, env []string, args ...string) (*process, error) {
	p := &process{name: name, cmd: exec.Command(args[0], args[1:]...), output: &output{}, done: make(chan struct{})}
	p.output.changed = sync.NewCond(&p.output.mu)
	p.cmd.Env = env
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		if p.err == nil {
			p.err = fmt.Errorf("exit code 0")
		}
		close(p.done)
	}()
	return p, nil
}

// patience is longer than a grace period that the demo sets.
const patience = 12 * time.Second

// stop ends the process and waits for it.
func (p *process) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(patience):
		fmt.Fprintf(os.Stderr, "%s did not end in %v and is killed\n", p.name, patience)
		syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		p.cmd.Process.Kill()
		<-p.done
	}
}

// output is what a process has printed. Safe for concurrent use.
type output struct {
	mu       sync.Mutex
	changed  *sync.Cond
	text     []byte    // guarded by mu
	followed io.Writer // guarded by mu; gets what comes from now on, nil for nobody
}

// maxOutput bounds what is kept of a demo that stays up for days.
const maxOutput = 1 << 20

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, b...)
	if over := len(o.text) - maxOutput; over > 0 {
		o.text = slices.Delete(o.text, 0, over)
	}
	if o.followed != nil {
		o.followed.Write(b)
	}
	o.changed.Broadcast()
	return len(b), nil
}

func (o *output) follow(w io.Writer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.followed = w
}

// tail is the last n lines, indented.
func (o *output) tail(n int) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	text := strings.TrimSpace(string(o.text))
	if text == "" {
		return "  (nothing)\n"
	}
	lines := strings.Split(text, "\n")
	lines = lines[max(0, len(lines)-n):]
	return "  " + strings.Join(lines, "\n  ") + "\n"
}

// await waits for a whole line that contains every mark; false when giveUp was
// closed first.
func (o *output) await(giveUp <-chan struct{}, marks ...string) bool {
	gone := make(chan struct{})
	defer close(gone)
	stopped := false // guarded by mu
	go func() {
		select {
		case <-giveUp:
			o.mu.Lock()
			stopped = true
			o.mu.Unlock()
			o.changed.Broadcast()
		case <-gone:
		}
	}()
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		for line := range bytes.Lines(o.text) {
			if containsAll(string(line), append(marks, "\n")) {
				return true
			}
		}
		if stopped {
			return false
		}
		o.changed.Wait()
	}
}

func containsAll(line string, marks []string) bool {
	for _, mark := range marks {
		if !strings.Contains(line, mark) {
			return false
		}
	}
	return true
}
