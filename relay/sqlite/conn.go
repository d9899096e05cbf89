package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"reflect"
	"time"

	sqlite "modernc.org/sqlite"

	"github.com/posternhq/postern/relay"
)

// conn is one connection of the driver with the statements that were run on it,
// prepared once for its life. database/sql is left out: it prepares, checks and
// converts anew for every call, which costs as much as SQLite itself. One
// goroutine at a time uses a conn.
type conn struct {
	dc    driver.Conn
	stmts map[string]*statement
	wrote bool // a statement was run by exec since somebody reset this
}

// statement is a prepared statement with room for its arguments and a row.
type statement struct {
	st interface {
		driver.StmtExecContext
		driver.StmtQueryContext
		io.Closer
	}
	args []driver.NamedValue
	vals []driver.Value
}

// connect opens the file at path with the pragmas, each "name(value)".
func connect(ctx context.Context, path string, params url.Values) (*conn, error) {
	file := url.URL{Path: filepath.ToSlash(path)}
	connector, err := sqlite.NewConnector("file:" + file.EscapedPath() + "?" + params.Encode())
	if err != nil {
		return nil, err
	}
	dc, err := connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &conn{dc: dc, stmts: make(map[string]*statement)}, nil
}

func (c *conn) close() error {
	var errs []error
	for _, s := range c.stmts {
		errs = append(errs, s.st.Close())
	}
	c.stmts = nil
	return errors.Join(append(errs, c.dc.Close())...)
}

// script runs several statements without arguments.
func (c *conn) script(ctx context.Context, text string) error {
	x, ok := c.dc.(driver.ExecerContext)
	if !ok {
		return errors.New("the driver cannot run a script")
	}
	_, err := x.ExecContext(ctx, text, nil)
	return err
}

// prepare finds or makes the statement and puts args into it.
func (c *conn) prepare(query string, args []any) (*statement, error) {
	s := c.stmts[query]
	if s == nil {
		st, err := c.dc.Prepare(query)
		if err != nil {
			return nil, err
		}
		s = new(statement)
		var ok bool
		if s.st, ok = st.(interface {
			driver.StmtExecContext
			driver.StmtQueryContext
			io.Closer
		}); !ok {
			return nil, errors.Join(errors.New("the driver's statements know no context"), st.Close())
		}
		c.stmts[query] = s
	}
	s.args = s.args[:0]
	for i, a := range args {
		v, err := value(a)
		if err != nil {
			return nil, err
		}
		s.args = append(s.args, driver.NamedValue{Ordinal: i + 1, Value: v})
	}
	return s, nil
}

// value is a as the driver takes it.
func value(a any) (driver.Value, error) {
	switch a := a.(type) {
	case nil, int64, float64, bool, string, []byte:
		return a, nil
	case int:
		return int64(a), nil
	}
	switch v := reflect.ValueOf(a); v.Kind() {
	case reflect.String:
		return v.String(), nil
	case reflect.Int, reflect.Int64:
		return v.Int(), nil
	}
	return nil, fmt.Errorf("a %T cannot be stored", a)
}

// result is what a statement that writes did.
type result struct {
	changed int64 // rows
	last    int64 // the row inserted last
}

// exec runs a statement that writes and returns no rows.
func (c *conn) exec(query string, args ...any) (result, error) {
	s, err := c.prepare(query, args)
	if err != nil {
		return result{}, err
	}
	c.wrote = true
	r, err := s.st.ExecContext(context.Background(), s.args)
	if err != nil {
		return result{}, err
	}
	changed, err1 := r.RowsAffected()
	last, err2 := r.LastInsertId()
	return result{changed: changed, last: last}, errors.Join(err1, err2)
}

// each calls do with every row of a query. A statement must not be run again
// while its rows are being read.
func (c *conn) each(ctx context.Context, do func(*row) error, query string, args ...any) (err error) {
	s, err := c.prepare(query, args)
	if err != nil {
		return err
	}
	rows, err := s.st.QueryContext(ctx, s.args)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	if n := len(rows.Columns()); len(s.vals) != n {
		s.vals = make([]driver.Value, n)
	}
	for {
		if err := rows.Next(s.vals); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		r := row{vals: s.vals}
		if err := do(&r); errors.Is(err, errStop) {
			return nil
		} else if err != nil {
			return err
		}
		if r.err != nil {
			return r.err
		}
	}
}

// errStop ends each before its last row.
var errStop = errors.New("stop")

// one reads the first row of a query; found is false when there is none.
func (c *conn) one(do func(*row), query string, args ...any) (found bool, err error) {
	err = c.each(context.Background(), func(r *row) error {
		if !found {
			do(r)
		}
		found = true
		return nil
	}, query, args...)
	return found, err
}

// number reads one number, 0 when there is no row or it is NULL.
func (c *conn) number(query string, args ...any) (n int64, err error) {
	_, err = c.one(func(r *row) { n = r.int() }, query, args...)
	return n, err
}

// list gathers what scan makes of each row.
func list[T any](ctx context.Context, c *conn, scan func(*row) T, query string, args ...any) ([]T, error) {
	var all []T
	err := c.each(ctx, func(r *row) error {
		all = append(all, scan(r))
		return nil
	}, query, args...)
	return all, err
}

// row hands out the columns of one row from left to right, and remembers the
// first that was not what it should be.
type row struct {
	vals []driver.Value
	at   int
	err  error
}

func (r *row) next() driver.Value {
	if r.at == len(r.vals) {
		r.err = errors.New("a row has too few columns")
		return nil
	}
	r.at++
	return r.vals[r.at-1]
}

func (r *row) fail(v driver.Value, as string) {
	if r.err == nil {
		r.err = fmt.Errorf("%s is stored as %T", as, v)
	}
}

// int is an INTEGER; NULL is 0.
func (r *row) int() int64 {
	switch v := r.next().(type) {
	case nil:
		return 0
	case int64:
		return v
	default:
		r.fail(v, "a number")
		return 0
	}
}

// float is a REAL or INTEGER.
func (r *row) float() float64 {
	switch v := r.next().(type) {
	case int64:
		return float64(v)
	case float64:
		return v
	default:
		r.fail(v, "a number")
		return 0
	}
}

// str is a TEXT or BLOB; NULL is the empty string.
func (r *row) str() string {
	switch v := r.next().(type) {
	case nil:
		return ""
	case string:
		return v
	case []byte:
		return string(v)
	default:
		r.fail(v, "a string")
		return ""
	}
}

// bytes is a BLOB; NULL and the empty one are nil.
func (r *row) bytes() []byte {
	switch v := r.next().(type) {
	case nil:
		return nil
	case []byte:
		if len(v) == 0 {
			return nil
		}
		return v
	default:
		r.fail(v, "a blob")
		return nil
	}
}

// time is a time; NULL is the zero time.
func (r *row) time() time.Time {
	switch v := r.next().(type) {
	case nil:
		return time.Time{}
	case int64:
		return time.UnixMicro(v).UTC()
	default:
		r.fail(v, "a time")
		return time.Time{}
	}
}

// header is what encodeHeader made.
func (r *row) header() []relay.Field {
	v := r.next()
	s, ok := v.(string)
	if !ok {
		r.fail(v, "a header")
		return nil
	}
	fields, err := decodeHeader(s)
	if err != nil && r.err == nil {
		r.err = err
	}
	return fields
}
