package sqlite

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/posternhq/postern/relay"
)

const (
	deleteLastWords = `DELETE FROM last_words WHERE app = ? AND instance = ? AND boot_id = ?`
	insertLastWords = `INSERT INTO last_words (id, app, instance, boot_id, platform, process, release, commit_id, region,
			started_at, ended_at, exit, reason, mem_limit, lines, memory, sockets, findings)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`
	// The rows behind the newest ones of the app, along last_words_by_app.
	forgetLastWords = `DELETE FROM last_words WHERE seq IN (
			SELECT seq FROM last_words WHERE app = ? ORDER BY ended_at DESC, seq DESC LIMIT -1 OFFSET ?)`

	lastWordsColumns = `SELECT id, app, instance, boot_id, platform, process, release, commit_id, region,
			started_at, ended_at, exit, reason, mem_limit, lines, memory, sockets, findings
		FROM last_words`
	lastWordsOrder = ` ORDER BY ended_at DESC, seq DESC LIMIT ?`
)

// The most that one row keeps of each part, in bytes of JSON: with what is around
// them, less than 256 KiB.
const (
	maxWordsLines    = 160 << 10 // the newest
	maxWordsMemory   = 16 << 10  // the newest
	maxWordsSockets  = 24 << 10
	maxWordsFindings = 32 << 10
	maxWordsText     = 2 << 10 // of one string
)

// How many LastWords lists.
const (
	defaultLastWords = 20
	mostLastWords    = 100
)

// SaveLastWords implements relay.LastWordsStore. Of what is longer than a row may
// be, it keeps the newest lines.
func (s *Store) SaveLastWords(ctx context.Context, w relay.LastWords) error {
	args, err := lastWordsArgs(w)
	if err != nil {
		return fmt.Errorf("save last words: %w", err)
	}
	return s.write(ctx, "save last words", func(t *tx) error {
		if _, err := t.exec(deleteLastWords, w.App, w.Instance, w.BootID); err != nil {
			return err
		}
		if _, err := t.exec(insertLastWords, args...); err != nil {
			return err
		}
		_, err := t.exec(forgetLastWords, w.App, relay.MaxLastWords)
		return err
	})
}

// LastWords implements relay.LastWordsStore.
func (s *Store) LastWords(ctx context.Context, f relay.LastWordsFilter) (all []relay.LastWords, err error) {
	query, args := lastWordsQuery(f)
	err = s.read(ctx, "list last words", func(c *conn) error {
		all, err = list(ctx, c, scanLastWords, query, args...)
		return err
	})
	return all, err
}

// lastWordsQuery is the query that f is, and its arguments.
func lastWordsQuery(f relay.LastWordsFilter) (string, []any) {
	var conditions []string
	var args []any
	if f.App != "" {
		conditions, args = append(conditions, "app = ?"), append(args, f.App)
	}
	if f.Instance != "" {
		conditions, args = append(conditions, "+instance = ?"), append(args, f.Instance) // + : in the order of time
	}
	query := lastWordsColumns
	if len(conditions) > 0 {
		query += " WHERE " + strings.Join(conditions, " AND ")
	}
	limit := defaultLastWords
	if f.Limit > 0 {
		limit = min(f.Limit, mostLastWords)
	}
	return query + lastWordsOrder, append(args, limit)
}

// lastWordsArgs is w as insertLastWords takes it.
func lastWordsArgs(w relay.LastWords) ([]any, error) {
	var exit any
	if w.Exit != nil {
		e := *w.Exit
		e.At, e.Signal, e.Reason = e.At.UTC(), clipText(e.Signal), clipText(e.Reason)
		raw, err := json.Marshal(e)
		if err != nil {
			return nil, err
		}
		exit = string(raw)
	}
	lines, err1 := encodeList(w.Lines, maxWordsLines, true)
	memory, err2 := encodeList(w.Memory, maxWordsMemory, true)
	sockets, err3 := encodeList(w.Sockets, maxWordsSockets, false)
	findings, err4 := encodeList(w.Findings, maxWordsFindings, false)
	for _, err := range []error{err1, err2, err3, err4} {
		if err != nil {
			return nil, err
		}
	}
	return []any{w.ID, w.App, w.Instance, w.BootID,
		clipText(w.Platform), clipText(w.Process), clipText(w.Release), clipText(w.Commit), clipText(w.Region),
		timeArg(w.StartedAt), w.EndedAt.UnixMicro(), exit, clipText(w.Reason), w.Limit,
		lines, memory, sockets, findings}, nil
}

// encodeList is list as JSON of at most limit bytes; what does not fit is left out
// from the beginning when the newest, at the end, are to stay, else from the end.
func encodeList[T any](list []T, limit int, newest bool) (string, error) {
	parts := make([]string, 0, len(list))
	size := 2
	for i := range list {
		at := i
		if newest {
			at = len(list) - 1 - i
		}
		raw, err := json.Marshal(list[at])
		if err != nil {
			return "", err
		}
		if size += len(raw) + 1; size > limit {
			break
		}
		parts = append(parts, string(raw))
	}
	if newest {
		for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
			parts[i], parts[j] = parts[j], parts[i]
		}
	}
	return "[" + strings.Join(parts, ",") + "]", nil
}

// clipText is s without what is beyond maxWordsText bytes.
func clipText(s string) string {
	if len(s) <= maxWordsText {
		return s
	}
	n := maxWordsText
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

func scanLastWords(r *row) relay.LastWords {
	w := relay.LastWords{ID: relay.LastWordsID(r.str()), App: relay.AppID(r.str()), Instance: r.str(), BootID: r.str(),
		Platform: r.str(), Process: r.str(), Release: r.str(), Commit: r.str(), Region: r.str(),
		StartedAt: r.time(), EndedAt: r.time()}
	r.json(&w.Exit)
	w.Reason, w.Limit = r.str(), r.int()
	r.json(&w.Lines)
	r.json(&w.Memory)
	r.json(&w.Sockets)
	r.json(&w.Findings)
	return w
}

// json reads a TEXT of JSON into v; NULL and the empty list leave it as it is.
func (r *row) json(v any) {
	s := r.str()
	if s == "" || s == "[]" || r.err != nil {
		return
	}
	if err := json.Unmarshal([]byte(s), v); err != nil {
		r.err = fmt.Errorf("read last words: %w", err)
	}
}
