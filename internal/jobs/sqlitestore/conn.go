package sqlitestore

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"

	"github.com/mattn/go-sqlite3"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
)

// conn is the writing connection with its prepared statements. It is used
// through the driver itself: database/sql costs as much again per statement.
type conn struct {
	db      *sqlite3.SQLiteConn
	stmts   map[string]driver.Stmt
	nextSeq events.Seq
	evs     []events.Event // of the open transaction
	finals  [3]int64       // jobs that ended in it, by final status
	args    []driver.NamedValue
}

func openConn(path string) (*conn, error) {
	dc, err := (&sqlite3.SQLiteDriver{}).Open(dsn(path, "_busy_timeout=5000", "_journal_mode=WAL",
		"_synchronous=FULL", "_foreign_keys=1", "_cache_size=-16000"))
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", path, err)
	}
	c := &conn{db: dc.(*sqlite3.SQLiteConn), stmts: map[string]driver.Stmt{}}
	for _, pragma := range []string{`PRAGMA journal_size_limit = 67108864`, `PRAGMA wal_autocheckpoint = 4000`, `PRAGMA temp_store = MEMORY`} {
		if err := c.pragma(pragma); err != nil {
			c.close()
			return nil, fmt.Errorf("cannot open %s: %w", path, err)
		}
	}
	return c, nil
}

// checkpoint moves the write-ahead log into the database and empties it.
func (c *conn) checkpoint() error { return c.pragma(`PRAGMA wal_checkpoint(TRUNCATE)`) }

// pragma reads the row that many pragmas answer with: exec would leave the
// statement open, and no savepoint can be opened beside an open statement.
func (c *conn) pragma(text string) error {
	return c.query(func([]driver.Value) error { return nil }, text)
}

func (c *conn) close() error {
	var errs []error
	for _, st := range c.stmts {
		errs = append(errs, st.Close())
	}
	return errors.Join(append(errs, c.db.Close())...)
}

// errDirty says that an op failed in the middle without a savepoint.
var errDirty = errors.New("an operation failed half-way")

// transact applies the ops in order; one that fails by itself is rolled back
// alone and carries its error. Ops that are clean go without a savepoint (it
// costs as much as an insert); should one fail unexpectedly all the same, the
// batch is done again with savepoints throughout.
func (c *conn) transact(batch []*op) ([]events.Event, error) {
	evs, err := c.tryTransact(batch, false)
	if errors.Is(err, errDirty) {
		evs, err = c.tryTransact(batch, true)
	}
	return evs, err
}

func (c *conn) tryTransact(batch []*op, careful bool) ([]events.Event, error) {
	first := c.nextSeq
	c.evs, c.finals = nil, [3]int64{}
	if err := c.exec(`BEGIN IMMEDIATE`); err != nil {
		return nil, fmt.Errorf("cannot begin: %w", err)
	}
	err := c.applyAll(batch, careful)
	if err == nil {
		err = c.addTotals()
	}
	if err == nil {
		if err = c.exec(`COMMIT`); err == nil {
			return c.evs, nil
		}
		err = fmt.Errorf("cannot commit: %w", err)
	}
	c.nextSeq = first
	if !c.db.AutoCommit() {
		err = errors.Join(err, c.exec(`ROLLBACK`))
	}
	return nil, err
}

func (c *conn) applyAll(batch []*op, careful bool) error {
	for _, o := range batch {
		save := careful || !o.clean
		if save {
			if err := c.exec(`SAVEPOINT op`); err != nil {
				return fmt.Errorf("cannot open savepoint: %w", err)
			}
		}
		seq, n, finals := c.nextSeq, len(c.evs), c.finals
		o.out, o.out.Err = o.apply(c)
		switch {
		case o.out.Err == nil:
			o.out.Events = c.evs[n:len(c.evs):len(c.evs)]
		case storageFailed(o.out.Err):
			return o.out.Err
		case !save && !refusal(o.out.Err):
			return errDirty
		case save:
			c.nextSeq, c.evs, c.finals = seq, c.evs[:n], finals
			if err := c.exec(`ROLLBACK TO op`); err != nil {
				return fmt.Errorf("cannot roll back to savepoint: %w", err)
			}
		}
		if save {
			if err := c.exec(`RELEASE op`); err != nil {
				return fmt.Errorf("cannot release savepoint: %w", err)
			}
		}
	}
	return nil
}

// refusal reports whether an op was turned down for what the rows say.
func refusal(err error) bool {
	var conflict *jobs.StateConflictError
	var idem *jobs.IdempotencyError
	var dep *jobs.DependencyError
	return errors.As(err, &conflict) || errors.As(err, &idem) || errors.As(err, &dep) || errors.Is(err, jobs.ErrNotFound) ||
		errors.Is(err, jobs.ErrLeftover)
}

func (c *conn) stmt(query string) (driver.Stmt, error) {
	if st, ok := c.stmts[query]; ok {
		return st, nil
	}
	st, err := c.db.Prepare(query)
	if err != nil {
		return nil, err
	}
	c.stmts[query] = st
	return st, nil
}

// exec runs a statement that returns no rows.
func (c *conn) exec(query string, args ...driver.Value) error {
	_, err := c.execResult(query, args...)
	return err
}

func (c *conn) execResult(query string, args ...driver.Value) (driver.Result, error) {
	st, err := c.stmt(query)
	if err != nil {
		return nil, err
	}
	// With a context that never ends the driver starts no goroutine, and with named
	// values it has nothing to convert.
	return st.(driver.StmtExecContext).ExecContext(context.Background(), c.named(args))
}

// named numbers the values, in a slice that the next statement reuses: the driver
// has bound them when it returns.
func (c *conn) named(args []driver.Value) []driver.NamedValue {
	c.args = c.args[:0]
	for i, v := range args {
		c.args = append(c.args, driver.NamedValue{Ordinal: i + 1, Value: v})
	}
	return c.args
}

// query calls fn with each row; the values are valid during the call only.
func (c *conn) query(fn func([]driver.Value) error, query string, args ...driver.Value) error {
	st, err := c.stmt(query)
	if err != nil {
		return err
	}
	//lint:ignore SA1019 the context variant starts a goroutine per statement
	rows, err := st.Query(args)
	if err != nil {
		return err
	}
	vals := make([]driver.Value, len(rows.Columns()))
	for {
		switch err := rows.Next(vals); {
		case errors.Is(err, io.EOF):
			return rows.Close()
		case err != nil:
			return errors.Join(err, rows.Close())
		}
		if err := fn(vals); err != nil {
			return errors.Join(err, rows.Close())
		}
	}
}

func (c *conn) queryInt(query string, args ...driver.Value) (n int64, err error) {
	err = c.query(func(v []driver.Value) error { n, _ = v[0].(int64); return nil }, query, args...)
	return n, err
}
