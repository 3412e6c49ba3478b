package sqlitestore

import (
	"database/sql"
	"os"
	"path/filepath"
	"testing"
	"time"

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
	for range 200 {
		_, err := s.Record(t.Context(), events.Draft{Kind: events.WorkerState, Data: map[string]string{"x": "some text to fill pages with"}})
		require.NoError(t, err)
	}
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
