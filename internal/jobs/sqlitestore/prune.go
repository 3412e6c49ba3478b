package sqlitestore

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
)

// Prune implements jobs.Store.
func (s *Store) Prune(ctx context.Context, keep int, before time.Time, limit int) ([]jobs.ID, error) {
	var ids []jobs.ID
	_, err := s.do(ctx, "prune jobs", func(c *conn) error {
		n, err := c.queryInt(`SELECT count(*) FROM jobs WHERE status >= 2`)
		if err != nil {
			return err
		}
		if n = min(n-int64(keep), int64(limit)); n <= 0 {
			return nil
		}
		ids, err = c.prune(before, n)
		return err
	})
	if err != nil {
		return nil, err
	}
	return ids, nil // their large results go with Forget
}

// pruneSQL leaves those alone that a job which is not final depends on: its
// arguments may refer to their results and files.
const pruneSQL = `SELECT id, instance FROM jobs WHERE status >= 2 AND finished_at < ?
 AND id NOT IN (SELECT d.value FROM jobs w, json_each(w.depends_on) d WHERE w.status < 2 AND w.depends_on IS NOT NULL)
 ORDER BY finished_at, seq LIMIT ?`

func (c *conn) prune(before time.Time, limit int64) ([]jobs.ID, error) {
	var ids []jobs.ID
	var insts []string
	err := c.query(func(v []driver.Value) error {
		id, _ := v[0].(string)
		inst, _ := v[1].(string)
		ids, insts = append(ids, jobs.ID(id)), append(insts, inst)
		return nil
	}, pruneSQL, before.UnixNano(), limit)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	for i, id := range ids {
		// Events that the journal itself has given up went on living for the job's log.
		for _, q := range []string{
			`INSERT OR IGNORE INTO leftovers (id) VALUES (?)`,
			`DELETE FROM events WHERE job = ? AND job <> '' AND seq < (SELECT value FROM meta WHERE key = 'journal_oldest')`,
			`DELETE FROM jobs WHERE id = ?`,
		} {
			if err := c.exec(q, string(id)); err != nil {
				return nil, err
			}
		}
		if err := c.addEvents([]draft{newDraft(now, events.JobPruned, string(id), insts[i], []byte("{}"))}); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// Leftovers implements jobs.Store.
func (s *Store) Leftovers(ctx context.Context) ([]jobs.ID, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT id FROM leftovers LIMIT 1000`)
	if err != nil {
		return nil, fmt.Errorf("cannot list leftovers: %w", err)
	}
	defer rows.Close()
	var ids []jobs.ID
	for rows.Next() {
		var id jobs.ID
		if err := rows.Scan(&id); err != nil {
			return nil, fmt.Errorf("cannot list leftovers: %w", err)
		}
		ids = append(ids, id)
	}
	return ids, rows.Err()
}

// Forget implements jobs.Store. It removes the large results before the names:
// only then may a name be used again.
func (s *Store) Forget(ctx context.Context, ids []jobs.ID) error {
	for _, id := range ids {
		if err := os.Remove(s.resultPath(id)); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("cannot remove the result of job %s: %w", id, err)
		}
	}
	_, err := s.do(ctx, "forget pruned jobs", func(c *conn) error {
		for _, id := range ids {
			if err := c.exec(`DELETE FROM leftovers WHERE id = ?`, string(id)); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

// PruneJournal implements jobs.Store. Rows between journal_swept and
// journal_oldest are the ones still to be looked at.
func (s *Store) PruneJournal(ctx context.Context, rows int64, limit int) (bool, error) {
	var more bool
	_, err := s.do(ctx, "prune the journal", func(c *conn) error {
		newest := int64(c.nextSeq) - 1
		oldest, err := c.queryInt(`SELECT value FROM meta WHERE key = 'journal_oldest'`)
		if err != nil {
			return err
		}
		swept, err := c.queryInt(`SELECT value FROM meta WHERE key = 'journal_swept'`)
		if err != nil {
			return err
		}
		oldest = max(oldest, newest-max(rows, 1)+1)
		next := min(swept+int64(limit), oldest)
		more = next < oldest
		return errors.Join(
			c.exec(`UPDATE meta SET value = ? WHERE key = 'journal_oldest'`, oldest),
			c.exec(`UPDATE meta SET value = ? WHERE key = 'journal_swept'`, next),
			c.exec(`DELETE FROM events WHERE seq >= ? AND seq < ? AND NOT EXISTS (SELECT 1 FROM jobs WHERE jobs.id = events.job)`, swept, next))
	})
	if err != nil { // when ctx ended the write may still be under way, and set more
		return false, err
	}
	return more, nil
}
