package sqlitestore

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"github.com/cjmd/cjmd/internal/jobs"
)

func (s *Store) resultPath(id jobs.ID) string {
	return filepath.Join(s.opts.Dir, resultsDir, id.FileName())
}

// writeResultFile makes a result durable before the row that names it is.
// A file without such a row is overwritten by the job's next attempt.
func (s *Store) writeResultFile(id jobs.ID, body []byte) error {
	path := s.resultPath(id)
	if err := renameio.WriteFile(path, body, 0o600, renameio.WithTempDir(filepath.Dir(path))); err != nil {
		return fmt.Errorf("cannot write the result of job %s: %w", id, err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("cannot write the result of job %s: %w", id, err)
	}
	if err := errors.Join(dir.Sync(), dir.Close()); err != nil {
		return fmt.Errorf("cannot write the result of job %s: %w", id, err)
	}
	return nil
}

const resultSQL = `SELECT j.result_size, j.result_file, r.body FROM jobs j LEFT JOIN results r ON r.job_seq = j.seq WHERE j.id = ?`

// Result implements jobs.Store.
func (s *Store) Result(ctx context.Context, id jobs.ID) (io.ReadSeekCloser, error) {
	var size sql.NullInt64
	var file bool
	var body []byte
	err := s.resultStmt.QueryRowContext(ctx, string(id)).Scan(&size, &file, &body)
	switch {
	case errors.Is(err, sql.ErrNoRows) || err == nil && !size.Valid:
		return nil, fmt.Errorf("result of job %s: %w", id, jobs.ErrNotFound)
	case err != nil:
		return nil, fmt.Errorf("cannot read the result of job %s: %w", id, err)
	case file:
		f, err := os.Open(s.resultPath(id))
		if err != nil {
			return nil, fmt.Errorf("cannot read the result of job %s: %w", id, err)
		}
		return f, nil
	default:
		return memoryResult{bytes.NewReader(body)}, nil
	}
}

type memoryResult struct{ *bytes.Reader }

func (memoryResult) Close() error { return nil }
