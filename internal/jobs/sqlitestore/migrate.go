package sqlitestore

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// migrations returns the scripts in order; migration i brings schema i to i+1.
func migrations() ([]string, error) {
	names, err := fs.Glob(migrationFiles, "migrations/*.sql") // sorted
	if err != nil {
		return nil, fmt.Errorf("cannot list migrations: %w", err)
	}
	scripts := make([]string, len(names))
	for i, name := range names {
		if want := fmt.Sprintf("migrations/%04d_", i+1); !strings.HasPrefix(name, want) {
			return nil, fmt.Errorf("cannot use migration %s: expected %s…", name, want)
		}
		b, err := fs.ReadFile(migrationFiles, name)
		if err != nil {
			return nil, fmt.Errorf("cannot read migration %s: %w", name, err)
		}
		scripts[i] = string(b)
	}
	return scripts, nil
}

// migrate brings the database to the newest schema. Before it changes one that
// is not new it writes a backup beside it (cjmd.db.schema-N.bak).
func migrate(ctx context.Context, db *sql.DB, path string) (isNew bool, err error) {
	scripts, err := migrations()
	if err != nil {
		return false, err
	}
	return migrateWith(ctx, db, path, scripts)
}

func migrateWith(ctx context.Context, db *sql.DB, path string, scripts []string) (isNew bool, err error) {
	var have int
	if err := db.QueryRowContext(ctx, `PRAGMA user_version`).Scan(&have); err != nil {
		return false, fmt.Errorf("cannot read the schema version of %s: %w", path, err)
	}
	if have > len(scripts) {
		return false, &FutureError{Path: path, Have: have, Known: len(scripts)}
	}
	isNew = have == 0
	if have == len(scripts) {
		return isNew, nil
	}
	if !isNew {
		backup := fmt.Sprintf("%s.schema-%d.bak", path, have)
		if err := os.Remove(backup); err != nil && !os.IsNotExist(err) {
			return false, fmt.Errorf("cannot replace the backup %s: %w", backup, err)
		}
		if err := private(backup); err != nil {
			return false, err
		}
		if _, err := db.ExecContext(ctx, `VACUUM INTO ?`, backup); err != nil {
			return false, fmt.Errorf("cannot back up %s before a migration: %w", path, err)
		}
	}
	for v := have; v < len(scripts); v++ {
		script := fmt.Sprintf("BEGIN IMMEDIATE;\n%s\nPRAGMA user_version = %d;\nCOMMIT;", scripts[v], v+1)
		if _, err := db.ExecContext(ctx, script); err != nil {
			return false, fmt.Errorf("cannot migrate %s to schema %d: %w", path, v+1, err)
		}
	}
	return isNew, nil
}
