package sqlite

import (
	"context"
	"errors"
	"net/url"
	"time"
)

// readers is how many reads may be in progress.
const readers = 4

// readerPragmas set a connection that cannot write.
var readerPragmas = url.Values{"_query_only": {"1"}, "_busy_timeout": {"5000"}}

// errClosed is the error of every method after Close.
var errClosed = errors.New("the store is closed")

// pool has the connections that read. They never wait for the writer.
type pool struct {
	free   chan *conn
	closed chan struct{}
}

func newPool(ctx context.Context, path string) (*pool, error) {
	p := &pool{free: make(chan *conn, readers), closed: make(chan struct{})}
	for range readers {
		c, err := connect(ctx, path, readerPragmas)
		if err != nil {
			return nil, errors.Join(err, p.drain(len(p.free)))
		}
		p.free <- c
	}
	return p, nil
}

// read gives do a connection. Reads must be short: what a transaction of theirs
// sees stays in the write-ahead log until it ends.
func (p *pool) read(ctx context.Context, do func(*conn) error) error {
	c, err := p.get(ctx)
	if err != nil {
		return err
	}
	defer func() { p.free <- c }()
	return do(c)
}

// snapshot is read for several queries which must see the same state.
func (p *pool) snapshot(ctx context.Context, do func(*conn) error) error {
	return p.read(ctx, func(c *conn) (err error) {
		if _, err := c.exec("BEGIN"); err != nil {
			return err
		}
		defer func() {
			_, err2 := c.exec("ROLLBACK")
			err = errors.Join(err, err2)
		}()
		return do(c)
	})
}

func (p *pool) get(ctx context.Context) (*conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case <-p.closed:
		return nil, errClosed
	default:
	}
	select {
	case c := <-p.free:
		return c, nil
	case <-p.closed:
		return nil, errClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// quiet runs do while nobody reads. It gives up when the readers do not end
// within patience.
func (p *pool) quiet(patience time.Duration, do func()) bool {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var held []*conn
	defer func() {
		for _, c := range held {
			p.free <- c
		}
	}()
	for range cap(p.free) {
		c, err := p.get(ctx)
		if err != nil {
			return false
		}
		held = append(held, c)
	}
	do()
	return true
}

// close waits for the reads in progress. The caller sees to it that it is called
// once, and not while quiet runs.
func (p *pool) close() error {
	close(p.closed)
	return p.drain(cap(p.free))
}

// drain closes n connections, when they are free.
func (p *pool) drain(n int) error {
	var errs []error
	for range n {
		errs = append(errs, (<-p.free).close())
	}
	return errors.Join(errs...)
}
