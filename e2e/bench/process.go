package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// process is one child. It is ended by stop, by the end of the context it was
// started with, or by the kernel when the harness dies.
type process struct {
	name   string
	cmd    *exec.Cmd
	input  io.WriteCloser // a role's standard input; nil for the product
	lines  chan string    // a role's standard output; closed at its end
	log    string         // file with what the child wrote besides
	cancel context.CancelFunc

	done chan struct{}
	err  error // why it ended; valid after done
}

// command says what to start.
type command struct {
	name string
	path string
	args []string
	env  []string // added to a clean environment
	dir  string   // where the log goes
	role bool     // talks over standard input and output
}

// endsWithin bounds how long a child may take between SIGTERM and SIGKILL.
const endsWithin = 5 * time.Second

func startProcess(ctx context.Context, c command) (*process, error) {
	log, err := os.CreateTemp(c.dir, c.name+"-*.log")
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	defer log.Close()
	ctx, cancel := context.WithCancel(ctx)
	p := &process{name: c.name, log: log.Name(), cancel: cancel, done: make(chan struct{})}
	p.cmd = exec.CommandContext(ctx, c.path, c.args...)
	p.cmd.Env = append(cleanEnvironment(), c.env...)
	p.cmd.Dir = c.dir
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = childAttributes()
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = endsWithin
	if c.role {
		p.lines = make(chan string, 16)
		p.cmd.Stdout = &lineWriter{lines: p.lines}
		if p.input, err = p.cmd.StdinPipe(); err != nil {
			cancel()
			return nil, fmt.Errorf("start %s: %w", c.name, err)
		}
	}
	if err := p.cmd.Start(); err != nil {
		cancel()
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	go p.waitForEnd()
	return p, nil
}

func (p *process) waitForEnd() {
	p.err = p.cmd.Wait()
	if p.lines != nil {
		close(p.lines)
	}
	close(p.done)
}

// stop ends the child and returns when it is gone.
func (p *process) stop() {
	p.cancel()
	<-p.done
}

// line returns the next line that a role prints.
func (p *process) line(ctx context.Context, limit time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case line, ok := <-p.lines:
		if !ok {
			return "", p.died()
		}
		return line, nil
	case <-ctx.Done():
		return "", fmt.Errorf("%s: no answer within %v: %w", p.name, limit, ctx.Err())
	}
}

// running returns an error with the end of the child's log if it has ended.
func (p *process) running() error {
	select {
	case <-p.done:
		return p.died()
	default:
		return nil
	}
}

func (p *process) died() error {
	<-p.done
	err := p.err
	if err == nil {
		err = errors.New("exit status 0")
	}
	return fmt.Errorf("%s ended: %w; its last words: %s", p.name, err, p.lastWords())
}

func (p *process) lastWords() string {
	log, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	log = bytes.TrimSpace(log)
	return string(log[max(0, len(log)-1000):])
}

// cleanEnvironment is the harness's own environment without what would change
// how a child behaves.
func cleanEnvironment() []string {
	var kept []string
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		upper := strings.ToUpper(name)
		switch {
		case strings.HasPrefix(upper, "POSTERN"), strings.HasSuffix(upper, "_PROXY"),
			upper == "PORT", upper == "DATABASE_URL", upper == "DYNO",
			strings.HasPrefix(upper, "OTEL_"), upper == "GODEBUG":
		default:
			kept = append(kept, entry)
		}
	}
	return kept
}

// lineWriter passes complete lines on. A child that prints more lines than
// anybody reads loses the excess rather than blocking.
type lineWriter struct {
	lines   chan<- string
	pending []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.pending = append(w.pending, p...)
	for {
		line, rest, ok := bytes.Cut(w.pending, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		select {
		case w.lines <- string(line):
		default:
		}
		w.pending = rest
	}
}

// roleCommand starts this binary again in a role.
func roleCommand(dir, name, role string, args ...string) (command, error) {
	self, err := os.Executable()
	if err != nil {
		return command{}, err
	}
	if self, err = filepath.Abs(self); err != nil {
		return command{}, err
	}
	return command{name: name, path: self, args: args, env: []string{roleVariable + "=" + role}, dir: dir, role: true}, nil
}
