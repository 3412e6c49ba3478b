// Package sqlitestore keeps jobs, the journal, instances and settings in
// one SQLite database. All writes go through one goroutine on one connection
// (writer.go), which commits in groups, numbers the journal without gaps, and
// after each commit hands the events on in order. Reads use a separate pool of
// read-only connections with short transactions. Large results are files beside
// the database. Start with Open, then writer.go.
package sqlitestore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mattn/go-sqlite3"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/cjmd/cjmd/internal/jobs"
)

const (
	dbName         = "cjmd.db"
	lockName       = "lock"
	resultsDir     = "results"
	defaultInline  = 1 << 20
	defaultReaders = 4
)

// Options of Open.
type Options struct {
	// Dir is the state directory; made (0700) when it does not exist.
	Dir string
	Log *zap.Logger // nil: no log
	// Readers is the size of the read pool; 0 means 4.
	Readers int
	// InlineResult is the largest result kept in the database; 0 means 1 MiB.
	InlineResult int
	// CheckpointIdle is how long the writer must be idle before the write-ahead
	// log is emptied; 0 means 2 s.
	CheckpointIdle time.Duration
}

// LockedError says that another process holds the state directory.
type LockedError struct {
	Dir string
	PID int // 0 when it could not be read
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("cannot use state directory %s: process %d already uses it", e.Dir, e.PID)
}

// FutureError says that the database was written by a newer version.
type FutureError struct {
	Path        string
	Have, Known int
}

func (e *FutureError) Error() string {
	return fmt.Sprintf("cannot use %s: its schema %d is from a newer version (this one knows up to %d)", e.Path, e.Have, e.Known)
}

// DamagedError says that the database cannot be read.
type DamagedError struct {
	Path string
	Err  error
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("cannot use %s: it is damaged (%v); restore a backup or move it away together with its -wal and -shm files", e.Path, e.Err)
}

func (e *DamagedError) Unwrap() error { return e.Err }

// damage tells a damaged database from other reasons why it cannot be opened.
func (s *Store) damage(err error) error {
	var e sqlite3.Error
	if errors.As(err, &e) && (e.Code == sqlite3.ErrCorrupt || e.Code == sqlite3.ErrNotADB) {
		return &DamagedError{Path: s.path, Err: e}
	}
	return err
}

// Store implements jobs.Store and plugins.InstanceStore. Safe from any goroutine.
type Store struct {
	opts Options
	log  *zap.Logger
	path string
	lock *os.File
	read *sql.DB
	w    *writer

	// Statements of the read pool that every job needs.
	getStmt, resultStmt, jobEventsStmt *sql.Stmt

	closeOnce sync.Once
	closeErr  error
}

var _ jobs.Store = (*Store)(nil)

// Open locks the state directory, migrates the database and starts the writer.
// *LockedError when another daemon runs there, *FutureError when the database
// is newer than this program. Close ends what it started.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.Readers <= 0 {
		o.Readers = defaultReaders
	}
	if o.InlineResult <= 0 {
		o.InlineResult = defaultInline
	}
	if o.CheckpointIdle <= 0 {
		o.CheckpointIdle = 2 * time.Second
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("cannot resolve state directory %q: %w", o.Dir, err)
	}
	o.Dir = dir
	if err := os.MkdirAll(filepath.Join(dir, resultsDir), 0o700); err != nil {
		return nil, fmt.Errorf("cannot make state directory: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	s := &Store{opts: o, log: o.Log, path: filepath.Join(dir, dbName), lock: lock}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, unlock(lock))
	}
	return s, nil
}

// private makes the file, or an existing one, its owner's alone: arguments and
// results are nobody else's business, whatever the mode of the directory. SQLite
// gives the files beside a database the database's mode.
func private(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("cannot open %s: %w", path, err)
	}
	if err := errors.Join(f.Chmod(0o600), f.Close()); err != nil {
		return fmt.Errorf("cannot make %s private: %w", path, err)
	}
	return nil
}

// removeUnfinished removes what a process that died left of results it was writing.
func removeUnfinished(dir string) error {
	names, err := os.ReadDir(dir)
	for _, name := range names {
		if strings.HasPrefix(name.Name(), ".") {
			err = errors.Join(err, os.Remove(filepath.Join(dir, name.Name())))
		}
	}
	if err != nil {
		return fmt.Errorf("cannot remove unfinished results: %w", err)
	}
	return nil
}

func (s *Store) open(ctx context.Context) error {
	if err := private(s.path); err != nil {
		return err
	}
	if err := removeUnfinished(filepath.Join(s.opts.Dir, resultsDir)); err != nil {
		return err
	}
	if err := s.prepare(ctx); err != nil {
		return err
	}
	w, err := newWriter(s)
	if err != nil {
		return err
	}
	read, err := sql.Open("sqlite3", dsn(s.path, "mode=ro", "_query_only=1", "_busy_timeout=5000"))
	if err != nil {
		w.conn.close()
		return fmt.Errorf("cannot open %s for reading: %w", s.path, err)
	}
	read.SetMaxOpenConns(s.opts.Readers)
	read.SetMaxIdleConns(s.opts.Readers)
	if err := s.prepareReads(ctx, read); err != nil {
		return errors.Join(err, read.Close(), w.conn.close())
	}
	s.w, s.read = w, read
	go w.run()
	return nil
}

func (s *Store) prepareReads(ctx context.Context, read *sql.DB) (err error) {
	for stmt, query := range map[**sql.Stmt]string{&s.getStmt: getSQL, &s.resultStmt: resultSQL, &s.jobEventsStmt: jobEventsSQL} {
		if *stmt, err = read.PrepareContext(ctx, query); err != nil {
			return fmt.Errorf("cannot read %s: %w", s.path, err)
		}
	}
	return nil
}

// prepare brings the database to the current schema and checks it when the last
// process did not close it.
func (s *Store) prepare(ctx context.Context) error {
	db, err := sql.Open("sqlite3", dsn(s.path, "_busy_timeout=5000", "_journal_mode=WAL", "_synchronous=FULL", "_foreign_keys=1"))
	if err != nil {
		return fmt.Errorf("cannot open %s: %w", s.path, err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	isNew, err := migrate(ctx, db, s.path)
	if err != nil {
		return s.damage(err)
	}
	var clean int
	if err := db.QueryRowContext(ctx, `SELECT value FROM meta WHERE key = 'clean'`).Scan(&clean); err != nil {
		return s.damage(fmt.Errorf("cannot read %s: %w", s.path, err))
	}
	if clean == 0 && !isNew {
		var verdict string
		if err := db.QueryRowContext(ctx, `PRAGMA quick_check(1)`).Scan(&verdict); err != nil {
			return s.damage(fmt.Errorf("cannot check %s after an unclean stop: %w", s.path, err))
		}
		if verdict != "ok" {
			return &DamagedError{Path: s.path, Err: errors.New(verdict)}
		}
		s.log.Info("database checked after an unclean stop", zap.String("path", s.path))
	}
	if _, err := db.ExecContext(ctx, `UPDATE meta SET value = 0 WHERE key = 'clean'`); err != nil {
		return fmt.Errorf("cannot write %s: %w", s.path, err)
	}
	return nil
}

// Close commits what is queued, empties the write-ahead log and releases the
// state directory. Idempotent.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		s.w.stop()
		s.closeErr = errors.Join(s.read.Close(), s.w.closeConn(), unlock(s.lock))
	})
	return s.closeErr
}

// dsn builds a data source name that also holds for paths with ? and %.
func dsn(path string, params ...string) string {
	u := url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: strings.Join(params, "&")}
	return u.String()
}

// lockDir takes the lock of a state directory; it is released when the file is
// closed, also by the kernel when the process dies.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open lock file: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("cannot lock %s: %w", path, err)
		}
		b, _ := os.ReadFile(path)
		pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
		return nil, &LockedError{Dir: dir, PID: pid}
	}
	if err := errors.Join(f.Truncate(0), writePID(f)); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot write %s: %w", path, err), f.Close())
	}
	return f, nil
}

// unlock gives the lock back at once: closing the file alone would leave it to
// a child that was forked and has not come to its exec yet.
func unlock(f *os.File) error {
	return errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_UN), f.Close())
}

func writePID(f *os.File) error {
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// storageFailed reports whether err says that the disk or the database as a
// whole failed, as opposed to one statement.
func storageFailed(err error) bool {
	var e sqlite3.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code {
	case sqlite3.ErrFull, sqlite3.ErrIoErr, sqlite3.ErrReadonly, sqlite3.ErrCantOpen, sqlite3.ErrCorrupt,
		sqlite3.ErrNotADB, sqlite3.ErrNomem, sqlite3.ErrBusy, sqlite3.ErrLocked, sqlite3.ErrPerm, sqlite3.ErrProtocol:
		return true
	}
	return false
}
