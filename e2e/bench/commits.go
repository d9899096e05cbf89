package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	_ "modernc.org/sqlite" // the driver that the relay uses
)

// commitLoad is the plainest durable store: one row in each transaction, one
// after the other, into one table of a new SQLite database. It travels as JSON
// to the process that runs it.
type commitLoad struct {
	Path   string // of the database, which is made
	Size   int    // bytes of each row's value
	Warmup time.Duration
	Window time.Duration
}

// runCommits runs c in a process of its own.
func runCommits(ctx context.Context, dir string, c commitLoad) (loadResult, error) {
	var result loadResult
	command, err := roleCommand(dir, "commits", roleCommits)
	if err != nil {
		return result, err
	}
	p, err := startProcess(ctx, command)
	if err != nil {
		return result, err
	}
	defer p.stop()
	if err := json.NewEncoder(p.input).Encode(c); err != nil {
		return result, fmt.Errorf("send load: %w", err)
	}
	line, err := p.line(ctx, c.Warmup+c.Window+startsWithin)
	if err != nil {
		return result, err
	}
	if err := json.Unmarshal([]byte(line), &result); err != nil {
		return result, fmt.Errorf("read result of commits: %w", err)
	}
	return result, nil
}

// playCommits is the other side of runCommits.
func playCommits(ctx context.Context) error {
	var c commitLoad
	if err := json.NewDecoder(os.Stdin).Decode(&c); err != nil {
		return fmt.Errorf("read load: %w", err)
	}
	result, err := c.run(ctx)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// run commits rows until the window is over.
func (c commitLoad) run(ctx context.Context) (loadResult, error) {
	db, err := openSQLite(c.Path, "journal_mode=WAL", "synchronous=FULL")
	if err != nil {
		return loadResult{}, err
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, "CREATE TABLE one (seq INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT"); err != nil {
		return loadResult{}, err
	}
	insert, err := db.PrepareContext(ctx, "INSERT INTO one (body) VALUES (?)")
	if err != nil {
		return loadResult{}, err
	}
	defer insert.Close()
	body, times := hookBody(c.Size), &histogram{}
	begin := time.Now()
	measured := begin.Add(c.Warmup)
	for now := begin; now.Before(measured.Add(c.Window)); {
		if _, err := insert.ExecContext(ctx, body); err != nil {
			return loadResult{}, err
		}
		done := time.Now()
		if now.After(measured) {
			times.record(done.Sub(now))
		}
		now = done
	}
	return loadResult{
		Ops: int64(times.total), Seconds: time.Since(measured).Seconds(),
		P50: times.quantile(0.50), P99: times.quantile(0.99), Max: times.max,
	}, nil
}

// openSQLite opens a database over one connection with the given pragmas.
func openSQLite(path string, pragmas ...string) (*sql.DB, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	file := url.URL{Path: filepath.ToSlash(path)}
	db, err := sql.Open("sqlite", "file:"+file.EscapedPath()+"?"+url.Values{"_pragma": pragmas}.Encode())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	return db, nil
}
