package sqlitestore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cjmd/cjmd/internal/events"
	"github.com/cjmd/cjmd/internal/plugins"
)

var _ plugins.InstanceStore = (*Store)(nil)

// Setting implements jobs.Store.
func (s *Store) Setting(ctx context.Context, key string) (string, error) {
	var v string
	err := s.read.QueryRowContext(ctx, `SELECT value FROM settings WHERE key = ?`, key).Scan(&v)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("cannot read setting %q: %w", key, err)
	}
	return v, nil
}

// PutSetting implements jobs.Store.
func (s *Store) PutSetting(ctx context.Context, key, value string, drafts ...events.Draft) error {
	ds, err := newDrafts(drafts)
	if err != nil {
		return err
	}
	_, err = s.do(ctx, fmt.Sprintf("store setting %q", key), func(c *conn) error {
		if err := c.exec(`INSERT INTO settings (key, value) VALUES (?, ?)
 ON CONFLICT (key) DO UPDATE SET value = excluded.value`, key, value); err != nil {
			return err
		}
		return c.addEvents(ds)
	})
	return err
}

// Instances implements plugins.InstanceStore.
func (s *Store) Instances(ctx context.Context) ([]plugins.Instance, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT id, plugin, config, enabled, pinned, limits, isolation, concurrency,
 autoload, revision, updated_at, placement FROM instances ORDER BY id`)
	if err != nil {
		return nil, fmt.Errorf("cannot read instances: %w", err)
	}
	defer rows.Close()
	var out []plugins.Instance
	for rows.Next() {
		var i plugins.Instance
		var config []byte
		var limits, isolation, placement sql.NullString
		var updated int64
		if err := rows.Scan(&i.ID, &i.Plugin, &config, &i.Enabled, &i.Pinned, &limits, &isolation, &i.Concurrency,
			&i.Autoload, &i.Revision, &updated, &placement); err != nil {
			return nil, fmt.Errorf("cannot read instances: %w", err)
		}
		i.Config, i.UpdatedAt = config, timeOf(updated)
		if limits.Valid {
			err = errors.Join(err, json.Unmarshal([]byte(limits.String), &i.Limits))
		}
		if isolation.Valid {
			err = errors.Join(err, json.Unmarshal([]byte(isolation.String), &i.Isolation))
		}
		if placement.Valid {
			err = errors.Join(err, json.Unmarshal([]byte(placement.String), &i.Placement))
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read instance %q: %w", i.ID, err)
		}
		out = append(out, i)
	}
	return out, rows.Err()
}

// PutInstance implements plugins.InstanceStore; event is instance.created or
// instance.updated ("created" and "updated" for short). A zero UpdatedAt means now.
func (s *Store) PutInstance(ctx context.Context, inst plugins.Instance, event string) error {
	kind := events.Kind(event)
	switch event {
	case "created":
		kind = events.InstanceCreated
	case "updated":
		kind = events.InstanceUpdated
	}
	var config, limits, isolation, placement driver.Value
	if inst.Config != nil {
		config = []byte(inst.Config)
	}
	if inst.Limits != nil {
		limits = jsonText(inst.Limits)
	}
	if inst.Isolation != nil {
		isolation = jsonText(inst.Isolation)
	}
	if inst.Placement != nil {
		placement = jsonText(inst.Placement)
	}
	if inst.UpdatedAt.IsZero() {
		inst.UpdatedAt = time.Now()
	}
	ds, err := newDrafts([]events.Draft{{At: inst.UpdatedAt, Kind: kind, Instance: inst.ID, Data: map[string]any{
		"plugin": inst.Plugin, "enabled": inst.Enabled, "revision": inst.Revision}}})
	if err != nil {
		return err
	}
	_, err = s.do(ctx, fmt.Sprintf("store instance %q", inst.ID), func(c *conn) error {
		if err := c.exec(`INSERT OR REPLACE INTO instances (id, plugin, config, enabled, pinned, limits, isolation, concurrency,
 autoload, revision, updated_at, placement) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)`, inst.ID, inst.Plugin, config, flag(inst.Enabled), flag(inst.Pinned),
			limits, isolation, int64(inst.Concurrency), flag(inst.Autoload), inst.Revision, nanos(inst.UpdatedAt), placement); err != nil {
			return err
		}
		return c.addEvents(ds)
	})
	return err
}

// DeleteInstance implements plugins.InstanceStore. Deleting what does not exist
// changes nothing.
func (s *Store) DeleteInstance(ctx context.Context, id string) error {
	ds, err := newDrafts([]events.Draft{{Kind: events.InstanceDeleted, Instance: id}})
	if err != nil {
		return err
	}
	_, err = s.do(ctx, fmt.Sprintf("delete instance %q", id), func(c *conn) error {
		res, err := c.execResult(`DELETE FROM instances WHERE id = ?`, id)
		if err != nil {
			return err
		}
		if n, _ := res.RowsAffected(); n == 0 {
			return nil
		}
		return c.addEvents(ds)
	})
	return err
}
