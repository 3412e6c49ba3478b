package sqlitestore

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
	"github.com/cjmd/cjmd/internal/sched/learn"
)

// This file keeps what the scheduler knows beyond jobs: profiles, claims and
// leases. The Store… methods queue a write and return at once, for the loop that
// must not wait for the disk; all writes, of whatever method, are applied in the
// order of the calls, each with its events or not at all.

// Profiles returns every profile.
func (s *Store) Profiles(ctx context.Context) ([]learn.Profile, error) {
	return readAll(ctx, s, "profiles", `SELECT plugin, config_hash, device_model, data FROM profiles ORDER BY plugin, config_hash, device_model`,
		func(rows *sql.Rows) (p learn.Profile, err error) {
			var k learn.Key
			var data []byte
			if err = rows.Scan(&k.Plugin, &k.ConfigHash, &k.DeviceModel, &data); err != nil {
				return p, err
			}
			if err = json.Unmarshal(data, &p); err != nil {
				return p, fmt.Errorf("profile of %s: %w", k.Plugin, err)
			}
			p.Key = k
			return p, nil
		})
}

// PutProfile stores p over what its key had. Of each plugin the
// learn.MaxPerPlugin that were stored last are kept.
func (s *Store) PutProfile(ctx context.Context, p learn.Profile, drafts ...events.Draft) error {
	return wait(ctx, "store a profile of "+p.Plugin, s.storeProfile(p, false, drafts))
}

// StoreProfile queues PutProfile. Nobody waits for it as a rule: it is held back
// for a few milliseconds, to share the commit of something that is waited for.
func (s *Store) StoreProfile(p learn.Profile, drafts ...events.Draft) *jobs.Ticket {
	return s.storeProfile(p, true, drafts)
}

func (s *Store) storeProfile(p learn.Profile, lazy bool, drafts []events.Draft) *jobs.Ticket {
	data := jsonText(p)
	return s.queue(lazy, len(data), drafts, func(c *conn) (bool, error) {
		if err := c.exec(`DELETE FROM profiles WHERE plugin = ? AND config_hash = ? AND device_model = ?`, p.Plugin, p.ConfigHash, p.DeviceModel); err != nil {
			return false, err
		}
		if err := c.exec(`INSERT INTO profiles (id, plugin, config_hash, device_model, data)
 VALUES ((SELECT coalesce(max(id), 0) + 1 FROM profiles), ?, ?, ?, ?)`, p.Plugin, p.ConfigHash, p.DeviceModel, data); err != nil {
			return false, err
		}
		return true, c.exec(`DELETE FROM profiles WHERE plugin = ?1 AND id <=
 (SELECT id FROM profiles WHERE plugin = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)`, p.Plugin, int64(learn.MaxPerPlugin))
	})
}

// DeleteProfiles forgets what was learned of a plugin and returns how many
// profiles that were. The drafts are recorded only if there were any.
func (s *Store) DeleteProfiles(ctx context.Context, plugin string, drafts ...events.Draft) (int, error) {
	var n int64 // written by the writer, read once the ticket is done
	err := wait(ctx, "delete the profiles of "+plugin, s.queue(false, 0, drafts, func(c *conn) (bool, error) {
		res, err := c.execResult(`DELETE FROM profiles WHERE plugin = ?`, plugin)
		if err != nil {
			return false, err
		}
		n, err = res.RowsAffected()
		return n > 0, err
	}))
	if err != nil {
		return 0, err
	}
	return int(n), nil
}

// Claims returns every claim in the order in which they were stored.
func (s *Store) Claims(ctx context.Context) ([]resource.ClaimRecord, error) {
	return readAll(ctx, s, "claims", `SELECT owner, kind, instance, device, bytes, phase, since FROM claims ORDER BY id`,
		func(rows *sql.Rows) (r resource.ClaimRecord, err error) {
			var since int64
			err = rows.Scan(&r.Owner, &r.Kind, &r.Instance, &r.Device, &r.Bytes, &r.Phase, &since)
			r.Since = timeOf(since)
			return r, err
		})
}

// PutClaims replaces all claims of owner by these, none of which may name
// another owner. Durable on return.
func (s *Store) PutClaims(ctx context.Context, owner string, claims []resource.ClaimRecord, drafts ...events.Draft) error {
	return wait(ctx, fmt.Sprintf("store the claims of %q", owner), s.StoreClaims(owner, claims, drafts...))
}

// StoreClaims queues PutClaims; none deletes what owner had. The claims are
// durable when the ticket is done.
func (s *Store) StoreClaims(owner string, claims []resource.ClaimRecord, drafts ...events.Draft) *jobs.Ticket {
	for _, r := range claims {
		if r.Owner != owner {
			return refused(fmt.Errorf("cannot store a claim of %q among those of %q", r.Owner, owner))
		}
	}
	return s.queue(false, 128*len(claims), drafts, func(c *conn) (bool, error) {
		if err := c.exec(`DELETE FROM claims WHERE owner = ?`, owner); err != nil {
			return false, err
		}
		for _, r := range claims {
			if err := c.exec(`INSERT INTO claims (owner, kind, instance, device, bytes, phase, since) VALUES (?,?,?,?,?,?,?)`,
				r.Owner, r.Kind, r.Instance, string(r.Device), int64(r.Bytes), r.Phase, nanos(r.Since)); err != nil {
				return false, err
			}
		}
		return true, nil
	})
}

// DeleteClaims deletes all claims of owner.
func (s *Store) DeleteClaims(ctx context.Context, owner string, drafts ...events.Draft) error {
	return s.PutClaims(ctx, owner, nil, drafts...)
}

// Leases returns every lease, also those that have expired.
func (s *Store) Leases(ctx context.Context) ([]resource.Lease, error) {
	return readAll(ctx, s, "leases", `SELECT id, device, bytes, holder, note, created_at, expires_at FROM leases ORDER BY created_at, id`,
		func(rows *sql.Rows) (l resource.Lease, err error) {
			var created, expires int64
			err = rows.Scan(&l.ID, &l.Device, &l.Bytes, &l.Holder, &l.Note, &created, &expires)
			l.CreatedAt, l.ExpiresAt = timeOf(created), timeOf(expires)
			return l, err
		})
}

// PutLease stores l over one of the same id.
func (s *Store) PutLease(ctx context.Context, l resource.Lease, drafts ...events.Draft) error {
	return wait(ctx, fmt.Sprintf("store lease %q", l.ID), s.queue(false, 0, drafts, func(c *conn) (bool, error) {
		return true, c.exec(`INSERT OR REPLACE INTO leases (id, device, bytes, holder, note, created_at, expires_at) VALUES (?,?,?,?,?,?,?)`,
			l.ID, string(l.Device), int64(l.Bytes), l.Holder, l.Note, nanos(l.CreatedAt), nanos(l.ExpiresAt))
	}))
}

// DeleteLease deletes a lease. The drafts are recorded only if there was one.
func (s *Store) DeleteLease(ctx context.Context, id string, drafts ...events.Draft) error {
	return wait(ctx, fmt.Sprintf("delete lease %q", id), s.StoreLeaseEnd(id, drafts...))
}

// StoreLeaseEnd queues DeleteLease, for the loop that finds a lease expired.
func (s *Store) StoreLeaseEnd(id string, drafts ...events.Draft) *jobs.Ticket {
	return s.queue(false, 0, drafts, func(c *conn) (bool, error) {
		res, err := c.execResult(`DELETE FROM leases WHERE id = ?`, id)
		if err != nil {
			return false, err
		}
		n, err := res.RowsAffected()
		return n > 0, err
	})
}

// queue queues a change and, where fn says that it changed something, its events.
func (s *Store) queue(lazy bool, size int, drafts []events.Draft, fn func(*conn) (changed bool, err error)) *jobs.Ticket {
	ds, err := newDrafts(drafts)
	if err != nil {
		return refused(err)
	}
	return s.w.enqueue(&op{size: 1024 + size, lazy: lazy, apply: func(c *conn) (jobs.Written, error) {
		changed, err := fn(c)
		if err != nil || !changed {
			return jobs.Written{}, err
		}
		return jobs.Written{}, c.addEvents(ds)
	}})
}

func refused(err error) *jobs.Ticket {
	t := jobs.NewTicket()
	t.Resolve(jobs.Written{Err: err})
	return t
}

func wait(ctx context.Context, what string, t *jobs.Ticket) error {
	if _, err := t.Wait(ctx); err != nil {
		return fmt.Errorf("cannot %s: %w", what, err)
	}
	return nil
}

func readAll[T any](ctx context.Context, s *Store, what, query string, scan func(*sql.Rows) (T, error)) ([]T, error) {
	rows, err := s.read.QueryContext(ctx, query)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", what, err)
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, fmt.Errorf("cannot read %s: %w", what, err)
		}
		out = append(out, v)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", what, err)
	}
	return out, nil
}
