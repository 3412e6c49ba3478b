package sqlitestore

import (
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/mattn/go-sqlite3"
	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
)

func TestMigrate_BacksUpWhatItChanges(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.db")
	db, err := sql.Open("sqlite3", dsn(path))
	require.NoError(t, err)
	defer db.Close()
	first := `CREATE TABLE a (x INTEGER) STRICT; INSERT INTO a VALUES (1);`
	isNew, err := migrateWith(t.Context(), db, path, []string{first})
	require.NoError(t, err)
	require.True(t, isNew)
	require.NoFileExists(t, path+".schema-1.bak", "nothing to lose yet")
	second := []string{first, `UPDATE a SET x = 2;`}
	_, err = migrateWith(t.Context(), db, path, append(second, `NONSENSE;`))
	require.Error(t, err)
	isNew, err = migrateWith(t.Context(), db, path, second)
	require.NoError(t, err)
	require.False(t, isNew)
	read := func(p string) (x int) {
		old, err := sql.Open("sqlite3", dsn(p))
		require.NoError(t, err)
		defer old.Close()
		require.NoError(t, old.QueryRow(`SELECT x FROM a`).Scan(&x))
		return x
	}
	require.Equal(t, 2, read(path))
	require.Equal(t, 1, read(path+".schema-1.bak"))
	info, err := os.Stat(path + ".schema-1.bak")
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	_, err = migrateWith(t.Context(), db, path, []string{first})
	var future *FutureError
	require.ErrorAs(t, err, &future)
	require.Equal(t, 2, future.Have)
}

func TestOpen_DamagedDatabaseIsRefusedAfterAnUncleanStop(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := Open(t.Context(), Options{Dir: dir})
	require.NoError(t, err)
	many := make([]events.Draft, 5000) // their pages are the middle of the file
	for i := range many {
		many[i] = events.Draft{Kind: events.WorkerState, Data: map[string]string{"x": "some text to fill pages with"}}
	}
	_, err = s.Record(t.Context(), many...)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	path := filepath.Join(dir, dbName)
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	for i := len(b) / 2; i < len(b)/2+8192; i++ {
		b[i] = 0xff
	}
	require.NoError(t, os.WriteFile(path, b, 0o600))
	db, err := sql.Open("sqlite3", dsn(path))
	require.NoError(t, err)
	_, err = db.Exec(`UPDATE meta SET value = 0 WHERE key = 'clean'`)
	require.NoError(t, err)
	require.NoError(t, db.Close())
	_, err = Open(t.Context(), Options{Dir: dir})
	require.ErrorContains(t, err, path)
	_, err = Open(t.Context(), Options{Dir: dir})
	require.ErrorContains(t, err, path, "the refusal released the lock")
}

// Seen in a running daemon: the first write after an idle checkpoint failed
// with "cannot open savepoint - SQL statements in progress".
func TestConn_WritesAfterACheckpoint(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := Open(t.Context(), Options{Dir: dir})
	require.NoError(t, err)
	require.NoError(t, s.Close())
	c, err := openConn(filepath.Join(dir, dbName))
	require.NoError(t, err)
	defer func() { require.NoError(t, c.close()) }()
	for range 2 {
		for _, statement := range []string{`BEGIN IMMEDIATE`, `SAVEPOINT op`, `UPDATE meta SET value = value`, `RELEASE op`, `COMMIT`} {
			require.NoError(t, c.exec(statement), statement)
		}
		require.NoError(t, c.checkpoint())
	}
}

// An operation that fails half-way, though it should not, takes nobody with it.
func TestWriter_UnexpectedFailureStaysAlone(t *testing.T) {
	t.Parallel()
	s, err := Open(t.Context(), Options{Dir: t.TempDir()})
	require.NoError(t, err)
	defer s.Close()
	event := func(c *conn) error {
		return c.addEvents([]draft{newDraft(time.Now(), events.WorkerState, "", "", []byte("{}"))})
	}
	good := func(c *conn) (jobs.Written, error) { return jobs.Written{}, event(c) }
	bad := func(c *conn) (jobs.Written, error) {
		if err := event(c); err != nil {
			return jobs.Written{}, err
		}
		return jobs.Written{}, c.exec(`INSERT INTO settings (key, value) VALUES ('k', NULL)`)
	}
	ops := []*op{{apply: good, clean: true}, {apply: bad, clean: true}, {apply: good, clean: true}}
	c, err := openConn(s.path)
	require.NoError(t, err)
	defer c.close()
	c.nextSeq = 1
	evs, err := c.transact(ops)
	require.NoError(t, err)
	require.Len(t, evs, 2)
	require.Equal(t, []events.Seq{1, 2}, []events.Seq{evs[0].Seq, evs[1].Seq})
	require.Error(t, ops[1].out.Err)
	require.NoError(t, ops[2].out.Err)
	require.Equal(t, evs[1:], ops[2].out.Events)
	stored, err := s.EventsSince(t.Context(), 0, events.Filter{}, 10)
	require.NoError(t, err)
	require.Len(t, stored, 2)
}

// One who waits for the store before he sends anything is not waiting for himself.
func TestWriter_FindsOutByItselfThatItCanWriteAgain(t *testing.T) {
	t.Parallel()
	s, err := Open(t.Context(), Options{Dir: t.TempDir(), CheckpointIdle: 5 * time.Millisecond})
	require.NoError(t, err)
	defer s.Close()
	w, err := s.w.enqueue(&op{clean: true, apply: func(*conn) (jobs.Written, error) {
		return jobs.Written{}, sqlite3.Error{Code: sqlite3.ErrFull}
	}}).Wait(t.Context())
	require.ErrorIs(t, err, jobs.ErrStoreUnavailable)
	require.ErrorIs(t, w.Err, syscall.ENOSPC)
	require.Eventually(t, func() bool { return s.Writable() == nil }, 10*time.Second, time.Millisecond)
	_, err = s.Record(t.Context(), events.Draft{Kind: events.DaemonStarted})
	require.NoError(t, err)
}

// Whatever version wrote the database, this one makes of it what it makes of a
// new one, and keeps a copy.
func TestOpen_MigratesFromEveryEarlierVersion(t *testing.T) {
	t.Parallel()
	schema := func(path string) (out []string) {
		db, err := sql.Open("sqlite3", dsn(path))
		require.NoError(t, err)
		defer db.Close()
		rows, err := db.Query(`SELECT coalesce(sql, name) FROM sqlite_schema WHERE name NOT LIKE 'sqlite_stat%' ORDER BY name`)
		require.NoError(t, err)
		defer rows.Close()
		for rows.Next() {
			var s string
			require.NoError(t, rows.Scan(&s))
			out = append(out, s)
		}
		return out
	}
	scripts, err := migrations()
	require.NoError(t, err)
	var fresh []string
	for v := range len(scripts) + 1 {
		path := filepath.Join(t.TempDir(), dbName)
		db, err := sql.Open("sqlite3", dsn(path))
		require.NoError(t, err)
		_, err = migrateWith(t.Context(), db, path, scripts[:v])
		require.NoError(t, err)
		require.NoError(t, db.Close())
		s, err := Open(t.Context(), Options{Dir: filepath.Dir(path)})
		require.NoError(t, err)
		require.NoError(t, s.Close())
		if v == 0 {
			fresh = schema(path)
		}
		require.Equal(t, fresh, schema(path))
		backup := fmt.Sprintf("%s.schema-%d.bak", path, v)
		if v == 0 || v == len(scripts) {
			require.NoFileExists(t, backup)
		} else {
			require.FileExists(t, backup)
		}
	}
}

// Lazy writes that did not fit into the batch they waited for wait no longer.
func TestWriter_LazyWritesBeyondOneBatchAreWritten(t *testing.T) {
	t.Parallel()
	s, err := Open(t.Context(), Options{Dir: t.TempDir()})
	require.NoError(t, err)
	defer s.Close()
	begun, goOn := make(chan struct{}), make(chan struct{})
	s.w.enqueue(&op{apply: func(*conn) (jobs.Written, error) { close(begun); <-goOn; return jobs.Written{}, nil }})
	<-begun
	var tickets []*jobs.Ticket
	for range maxBatchOps + 100 {
		tickets = append(tickets, s.w.enqueue(&op{lazy: true, clean: true, apply: func(*conn) (jobs.Written, error) { return jobs.Written{}, nil }}))
	}
	close(goOn)
	for _, ticket := range tickets {
		_, err := ticket.Wait(t.Context())
		require.NoError(t, err)
	}
}

func TestWritingFor_TellsACommitThatHangs(t *testing.T) {
	t.Parallel()
	s, err := Open(t.Context(), Options{Dir: t.TempDir()})
	require.NoError(t, err)
	defer s.Close()
	require.Zero(t, s.WritingFor(), "nothing to write")
	inside, release := make(chan struct{}), make(chan struct{})
	hung := s.w.enqueue(&op{size: 1, apply: func(*conn) (jobs.Written, error) {
		close(inside)
		<-release
		return jobs.Written{}, nil
	}})
	<-inside
	require.Positive(t, s.WritingFor())
	close(release)
	_, err = hung.Wait(t.Context())
	require.NoError(t, err)
	require.Zero(t, s.WritingFor(), "it is over before the one who waits for it hears of it")
}
