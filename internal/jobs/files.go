package jobs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cjmd/cjmd/internal/jobs/jobfiles"
)

// What those who see jobs only through Queue need of package jobfiles.
type (
	File               = jobfiles.File
	Upload             = jobfiles.Upload
	FileNameError      = jobfiles.NameError
	FileQuotaError     = jobfiles.QuotaError
	TooManyFilesError  = jobfiles.TooManyError
	FileConditionError = jobfiles.ConditionError
	ChecksumError      = jobfiles.ChecksumError
)

// ErrNoFile says that a job has no such file.
var ErrNoFile = jobfiles.ErrNotFound

// Files is the private directory of one job.
type Files struct {
	Dir string // absolute
	jobfiles.Listing
	Limit int64 // bytes that uploads may have
}

// Files lists the files of a job. Those of a job that does not run come with
// their checksums when sums is set.
func (q *Queue) Files(ctx context.Context, id ID, sums bool) (Files, error) {
	j, err := q.Get(ctx, id)
	if err != nil {
		return Files{}, err
	}
	dir := id.FileName()
	out := Files{Dir: q.files.Path(dir), Limit: q.files.Limits().JobBytes}
	if out.Listing, err = q.files.List(dir); err != nil {
		return Files{}, err
	}
	if !sums || j.Status == Running {
		return out, nil
	}
	for i, f := range out.Files {
		out.Files[i], err = q.files.Sum(ctx, dir, f)
		if err != nil && !errors.Is(err, jobfiles.ErrNotFound) { // gone meanwhile: as it was
			return Files{}, err
		}
	}
	return out, nil
}

// OpenFile opens a file of a job for reading; the caller closes it. Errors are
// those of jobfiles.Store.Open, and ErrNotFound when there is no such job.
func (q *Queue) OpenFile(ctx context.Context, id ID, name string) (*os.File, File, error) {
	if _, err := q.Get(ctx, id); err != nil {
		return nil, File{}, err
	}
	return q.files.Open(id.FileName(), name)
}

// PutFile takes in a file of a pending job, which cannot start in the moment in
// which the file comes into its place. Errors are those of jobfiles.Store.Put,
// *StateConflictError and ErrNotFound.
func (q *Queue) PutFile(ctx context.Context, id ID, name string, u Upload) (File, bool, error) {
	const action = "change the files of"
	j, err := q.Get(ctx, id)
	if err != nil {
		return File{}, false, err
	}
	if j.Status != Pending { // before a body is read for nothing
		return File{}, false, &StateConflictError{ID: id, Status: j.Status, Action: action}
	}
	u.Commit = func(put func() error) error { return q.whilePending(ctx, id, action, put) }
	return q.files.Put(id.FileName(), name, u)
}

// RemoveFile removes a file of a job that does not run. Errors are those of
// jobfiles.Store.Remove, *StateConflictError and ErrNotFound.
func (q *Queue) RemoveFile(ctx context.Context, id ID, name, ifMatch string) error {
	remove := func() error { return q.files.Remove(id.FileName(), name, ifMatch) }
	err := q.whilePending(ctx, id, "remove a file of", remove)
	var conflict *StateConflictError
	if errors.As(err, &conflict) && conflict.Status.Final() {
		return remove()
	}
	return err
}

// whilePending calls fn while the job is pending and cannot start, end or be
// changed.
func (q *Queue) whilePending(ctx context.Context, id ID, action string, fn func() error) error {
	e, j, err := q.settled(ctx, id)
	if err != nil {
		return err
	}
	if e == nil {
		return &StateConflictError{ID: id, Status: j.Status, Action: action}
	}
	if e.status != Pending {
		defer q.mu.Unlock()
		return &StateConflictError{ID: id, Status: e.status, Action: action}
	}
	busy := make(chan struct{})
	e.busy = busy
	q.placeLocked(e)
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		e.busy = nil
		close(busy)
		q.placeLocked(e)
		q.endIfDepFailedLocked(e)
		q.wake()
	}()
	return fn()
}

// Dir makes the job's private directory, for the worker to use during the
// attempt. It stays from one attempt to the next.
func (r *Run) Dir() (string, error) {
	dir, err := r.q.files.Make(r.e.id.FileName(), r.job.Spec.Instance)
	if err != nil {
		return "", fmt.Errorf("job %s: %w", r.e.id, err)
	}
	r.q.mu.Lock()
	r.hasDir = true
	r.q.mu.Unlock()
	return dir, nil
}

// settleDir ends the worker's use of the directory.
func (r *Run) settleDir() {
	r.q.mu.Lock()
	had := r.hasDir
	r.hasDir = false
	r.q.mu.Unlock()
	if !had {
		return
	}
	if err := r.q.files.Settle(r.e.id.FileName(), r.job.Spec.Instance); err != nil { // it stays until the job goes
		r.q.log.Sugar().Warnw("cannot look after the directory of a job", "job", r.e.id, "error", err)
	}
}

// Stage holds the files of a job that is not submitted yet. The id of the job is
// chosen with it, so that its files are in their place before the job can start;
// what becomes of them is told by the job alone, also after a crash: there is one
// of this id, or they go.
type Stage struct {
	q    *Queue
	id   ID
	sums map[string]string // by name
	done bool
}

// NewStage begins one. The caller puts it into a Submission and calls Settle in
// every case.
func (q *Queue) NewStage() (*Stage, error) {
	s := &Stage{q: q, id: newID(), sums: map[string]string{}}
	if err := q.files.Mark(string(s.id)); err != nil {
		return nil, err
	}
	return s, nil
}

// Put takes in one file. Errors are those of jobfiles.Store.Put.
func (s *Stage) Put(name string, u Upload) error {
	u.IfAbsent = true
	f, _, err := s.q.files.Put(s.id.FileName(), name, u)
	if err == nil {
		s.sums[name] = f.SHA256
	}
	return err
}

// check refuses arguments that name a file which did not come.
func (s *Stage) check(sp Spec) error {
	return forRefs(sp, func(field string, r ref) error {
		if r.file == "" || r.job != "" {
			return nil
		}
		_, err := s.q.files.Stat(s.id.FileName(), r.file)
		if errors.Is(err, jobfiles.ErrNotFound) {
			return &InvalidError{Field: field, Message: fmt.Sprintf("names the file %q, which did not come with the job", r.file)}
		}
		var name *jobfiles.NameError
		if errors.As(err, &name) { // checkRefs tells
			return nil
		}
		return err
	})
}

// Settle keeps the files if there is a job for them and removes them otherwise.
// It may be called again.
func (s *Stage) Settle(ctx context.Context) error {
	if s.done {
		return nil
	}
	if err := s.q.settleStage(ctx, s.id); err != nil {
		return err // the next start tries again
	}
	s.done = true
	return nil
}

func (q *Queue) settleStage(ctx context.Context, id ID) error {
	switch _, err := q.store.Get(ctx, id); {
	case errors.Is(err, ErrNotFound):
		if err := q.files.RemoveAll(id.FileName()); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	return q.files.Unmark(string(id))
}

// settleStages decides about files whose submit the last process did not see to
// its end.
func (q *Queue) settleStages(ctx context.Context) error {
	ids, err := q.files.Marked()
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := q.settleStage(ctx, ID(id)); err != nil {
			return fmt.Errorf("cannot recover the files of job %s: %w", id, err)
		}
	}
	return nil
}

// stageAgain stages what was uploaded for a job that is submitted again; nil when
// that is nothing.
func (q *Queue) stageAgain(j Job) (*Stage, error) {
	if bytes, _ := q.files.Used(j.ID.FileName()); bytes == 0 {
		return nil, nil
	}
	before := j.StartedAt
	if before.IsZero() {
		before = time.Now()
	}
	s, err := q.NewStage()
	if err != nil {
		return nil, err
	}
	if err := q.files.Copy(j.ID.FileName(), s.id.FileName(), before); err != nil {
		return nil, errors.Join(err, s.Settle(context.Background()))
	}
	return s, nil
}
