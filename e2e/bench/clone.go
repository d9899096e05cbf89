package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// cloner fills a relay's database with copies of one event that the relay itself
// has made, while the relay is stopped. It knows of the schema only that the
// table "event" is what others hang on by foreign keys; the columns it reads
// from the database:
//
//	an INTEGER PRIMARY KEY  goes on counting
//	a foreign key           follows the row that it points to
//	a unique text of one    keeps its beginning and gets a number for its end, so
//	column                  that copies sort behind one another as real ids do
//	another unique index    gets random bytes in its last text column
//
// Everything else is copied as it is, and the numbers in counters are counted
// again. What belongs to an event without a foreign key is left out.
type cloner struct {
	db     *sql.DB
	tables []*clonedTable // event first, each behind those it points to
}

// clonedTable is a table with its rows that belong to the template.
type clonedTable struct {
	name    string
	columns []column
	rows    []int64       // value of key in each row of the template, in temp.<copyName>
	key     string        // the INTEGER PRIMARY KEY; "" has none
	first   int64         // of the numbers that copies get, which are their keys
	parents map[string]fk // by column
	changed map[string]bool
}

type column struct{ name, kind string }

// fk is where a foreign key points to.
type fk struct {
	table  *clonedTable
	column string
}

const (
	cloneChunk = 20_000 // events in one transaction
	rootTable  = "event"
	// numberOfCopy stands in an expression for the number of the row that it is for.
	numberOfCopy = "{number}"
)

// cloneEvents adds n copies of the oldest event in the database of folder data.
// Columns named in set get the SQL expression there instead of their old value.
func cloneEvents(ctx context.Context, data string, n int, set map[string]string) error {
	path, err := databaseIn(data)
	if err != nil {
		return err
	}
	if err := cloneInto(ctx, path, n, set); err != nil {
		return fmt.Errorf("clone events: %w", err)
	}
	return syncFile(path) // or its writing back would be measured with what follows
}

func cloneInto(ctx context.Context, path string, n int, set map[string]string) error {
	// Nothing here has to survive a crash. The relay switches back to WAL.
	db, err := openSQLite(path, "journal_mode=OFF", "synchronous=OFF", "cache_size=-400000",
		"temp_store=MEMORY", "locking_mode=EXCLUSIVE", "foreign_keys=OFF")
	if err != nil {
		return err
	}
	c := &cloner{db: db}
	if err = c.template(ctx); err == nil {
		err = c.clone(ctx, n, set)
	}
	if err == nil {
		err = c.recount(ctx)
	}
	return errors.Join(err, db.Close())
}

// template finds the tables and copies their rows aside.
func (c *cloner) template(ctx context.Context) error {
	root := &clonedTable{name: rootTable}
	if err := c.load(ctx, root, "rowid = (SELECT min(rowid) FROM main.event)"); err != nil {
		return err
	}
	if len(root.rows) != 1 {
		return errors.New("there is no event to copy")
	}
	for i := 0; i < len(c.tables); i++ {
		children, err := texts(ctx, c.db, `SELECT s.name || '|' || f."from" || '|' || coalesce(f."to", '')
			FROM sqlite_schema s, pragma_foreign_key_list(s.name) f WHERE s.type = 'table' AND f."table" = ?`, c.tables[i].name)
		if err != nil {
			return err
		}
		for _, child := range children {
			at := strings.Split(child, "|")
			if at[2] == "" {
				at[2] = c.tables[i].key
			}
			if err := c.child(ctx, c.tables[i], at[0], at[1], at[2]); err != nil {
				return err
			}
		}
	}
	return nil
}

// child takes in the rows of a table that point to those of parent.
func (c *cloner) child(ctx context.Context, parent *clonedTable, name, from, to string) error {
	if i := slices.IndexFunc(c.tables, func(t *clonedTable) bool { return t.name == name }); i >= 0 {
		c.tables[i].parents[from] = fk{parent, to}
		c.tables[i].changed[from] = true
		return nil
	}
	t := &clonedTable{name: name, parents: map[string]fk{from: {parent, to}}, changed: map[string]bool{from: true}}
	where := fmt.Sprintf("%s IN (SELECT %s FROM temp.%s)", quoted(from), quoted(to), parent.copyName())
	return c.load(ctx, t, where)
}

func (t *clonedTable) copyName() string { return quoted("template_" + t.name) }

// load reads what a table is like and copies its rows that where names.
func (c *cloner) load(ctx context.Context, t *clonedTable, where string) error {
	described, err := texts(ctx, c.db, "SELECT name || '|' || upper(type) || '|' || pk FROM pragma_table_info(?)", t.name)
	if err != nil {
		return err
	}
	if len(described) == 0 {
		return fmt.Errorf("there is no table %s", t.name)
	}
	if t.parents == nil {
		t.parents, t.changed = map[string]fk{}, map[string]bool{}
	}
	keys := 0
	for _, text := range described {
		at := strings.Split(text, "|")
		t.columns = append(t.columns, column{at[0], at[1]})
		if at[2] != "0" {
			if keys++; at[1] == "INTEGER" {
				t.key = at[0]
			}
		}
	}
	if keys != 1 {
		t.key = ""
	}
	if _, err := c.db.ExecContext(ctx, fmt.Sprintf("CREATE TEMP TABLE %s AS SELECT * FROM main.%s WHERE %s", t.copyName(), quoted(t.name), where)); err != nil {
		return err
	}
	key, last := "0", "count(*)"
	if t.key != "" {
		key, last = quoted(t.key), "coalesce(max("+quoted(t.key)+"), 0)"
	}
	if err := c.db.QueryRowContext(ctx, fmt.Sprintf("SELECT %s + 1 FROM main.%s", last, quoted(t.name))).Scan(&t.first); err != nil {
		return err
	}
	t.rows, err = values[int64](ctx, c.db, fmt.Sprintf("SELECT %s FROM temp.%s ORDER BY rowid", key, t.copyName()))
	if err == nil && len(t.rows) > 0 {
		c.tables = append(c.tables, t)
	}
	return err
}

// clone adds n copies of the template.
func (c *cloner) clone(ctx context.Context, n int, set map[string]string) error {
	var statements []string
	for _, t := range c.tables {
		expressions, err := c.expressions(ctx, t, set)
		if err != nil {
			return err
		}
		for k := range t.rows {
			statements = append(statements, strings.ReplaceAll(t.insert(k, expressions), numberOfCopy, t.number(k)))
		}
	}
	for done := 0; done < n; done += cloneChunk {
		tx, err := c.db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		for _, statement := range statements {
			if _, err := tx.ExecContext(ctx, statement, done, min(n, done+cloneChunk)); err != nil {
				return errors.Join(fmt.Errorf("%w in %s", err, statement), tx.Rollback())
			}
		}
		if err := tx.Commit(); err != nil {
			return err
		}
	}
	return nil
}

// expressions are what the columns of a copy are made of, besides keys; n.i
// numbers the copies, t is the template's row.
func (c *cloner) expressions(ctx context.Context, t *clonedTable, set map[string]string) (map[string]string, error) {
	made := map[string]string{}
	for _, col := range t.columns {
		if expression, ok := set[col.name]; ok {
			made[col.name] = expression
		}
	}
	indexes, err := texts(ctx, c.db, `SELECT name FROM pragma_index_list(?) WHERE "unique" ORDER BY name`, t.name)
	if err != nil {
		return nil, err
	}
	for _, index := range indexes {
		concerned, err := c.concerns(ctx, t, index)
		if err != nil {
			return nil, err
		}
		if !concerned {
			continue
		}
		names, err := texts(ctx, c.db, "SELECT name FROM pragma_index_info(?) ORDER BY seqno", index)
		if err != nil {
			return nil, err
		}
		t.makeUnique(names, made)
	}
	return made, nil
}

// concerns tells whether the template's rows are in an index, which may be a
// partial one.
func (c *cloner) concerns(ctx context.Context, t *clonedTable, index string) (bool, error) {
	made, err := texts(ctx, c.db, "SELECT coalesce(sql, '') FROM sqlite_schema WHERE type = 'index' AND name = ?", index)
	if err != nil || len(made) == 0 {
		return true, err
	}
	_, where, partial := strings.Cut(made[0], " WHERE ")
	if !partial {
		return true, nil
	}
	rows, err := values[int64](ctx, c.db, fmt.Sprintf("SELECT count(*) FROM temp.%s WHERE %s", t.copyName(), where))
	return err == nil && rows[0] > 0, err
}

// counters are numbers that a relay keeps beside the rows that they count, as
// far as its schema has them.
var counters = []struct{ table, update string }{
	{"lane", "UPDATE lane SET waiting = (SELECT count(*) FROM delivery d WHERE d.lane = lane.seq AND d.state IN (0, 1))"},
	{"usage", "UPDATE usage SET (events, bytes) = (SELECT count(*), sum(body_len) FROM event e WHERE e.app = usage.app)"},
}

// recount sets the counters right.
func (c *cloner) recount(ctx context.Context) error {
	for _, counter := range counters {
		tables, err := texts(ctx, c.db, "SELECT name FROM sqlite_schema WHERE type = 'table' AND name = ?", counter.table)
		if err != nil {
			return err
		}
		if len(tables) == 0 {
			continue
		}
		if _, err := c.db.ExecContext(ctx, counter.update); err != nil {
			return fmt.Errorf("%w in %s", err, counter.update)
		}
	}
	return nil
}

// makeUnique changes one column of a unique index, unless something in it
// changes already.
func (t *clonedTable) makeUnique(names []string, made map[string]string) {
	for i, name := range slices.Backward(names) {
		if name == t.key || t.changed[name] || made[name] != "" {
			return
		}
		at := slices.IndexFunc(t.columns, func(c column) bool { return c.name == name })
		kind := t.columns[at].kind
		if i > 0 && kind != "TEXT" && kind != "BLOB" {
			continue
		}
		value := "t." + quoted(name)
		fresh := fmt.Sprintf("substr(%[1]s, 1, length(%[1]s) - 8) || printf('%%08d', %[2]s)", value, numberOfCopy)
		if len(names) > 1 {
			fresh = "'evt_' || lower(hex(randomblob(12)))"
		}
		made[name] = fmt.Sprintf("CASE WHEN %s IS NOT NULL THEN CAST(%s AS %s) END", value, fresh, kind)
		t.changed[name] = true
		return
	}
}

// insert is the statement that copies row k of the template for the numbers
// from ?1 to before ?2.
func (t *clonedTable) insert(k int, made map[string]string) string {
	var names, from []string
	for _, col := range t.columns {
		names = append(names, quoted(col.name))
		parent, pointing := t.parents[col.name]
		switch expression := made[col.name]; {
		case pointing && parent.column == parent.table.key:
			from = append(from, parent.table.copyOf("t."+quoted(col.name)))
		case col.name == t.key:
			from = append(from, t.number(k))
		case expression != "":
			from = append(from, expression)
		default:
			from = append(from, "t."+quoted(col.name))
		}
	}
	return fmt.Sprintf(`INSERT INTO main.%s (%s) WITH RECURSIVE n(i) AS (SELECT ?1 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?2)
		SELECT %s FROM n, temp.%s t WHERE t.rowid = %d`,
		quoted(t.name), strings.Join(names, ", "), strings.Join(from, ", "), t.copyName(), k+1)
}

// number is the key of copy n.i of row k.
func (t *clonedTable) number(k int) string {
	return fmt.Sprintf("(%d + n.i * %d + %d)", t.first, len(t.rows), k)
}

// copyOf is the key of copy n.i of the row whose key is value.
func (t *clonedTable) copyOf(value string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "CASE %s", value)
	for k, key := range t.rows {
		fmt.Fprintf(&b, " WHEN %d THEN %s", key, t.number(k))
	}
	return b.String() + " END"
}

func quoted(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

func texts(ctx context.Context, db *sql.DB, query string, args ...any) ([]string, error) {
	return values[string](ctx, db, query, args...)
}

// values is the first column of a query.
func values[T any](ctx context.Context, db *sql.DB, query string, args ...any) ([]T, error) {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("%w in %s", err, query)
	}
	defer rows.Close()
	var all []T
	for rows.Next() {
		var v T
		if err := rows.Scan(&v); err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, rows.Err()
}

// databaseIn finds the SQLite file in a relay's folder by its first bytes.
func databaseIn(data string) (string, error) {
	const magic = "SQLite format 3\x00"
	entries, err := os.ReadDir(data)
	if err != nil {
		return "", err
	}
	for _, entry := range entries {
		path := filepath.Join(data, entry.Name())
		file, err := os.Open(path)
		if err != nil {
			return "", err
		}
		head := make([]byte, len(magic))
		n, _ := file.Read(head)
		file.Close()
		if string(head[:n]) == magic {
			return path, nil
		}
	}
	return "", fmt.Errorf("no SQLite database in %s", data)
}

func syncFile(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}
