// Package jobfiles keeps the private directories of jobs: files uploaded before
// a job runs, and those that it leaves behind. A job is named by what
// jobs.ID.FileName gives. The directories belong to workers while jobs run, so
// nothing in them is believed: every path is walked one name at a time, a link
// is never followed, and what is no regular file is not opened. An upload is
// written beside the directories and renamed into place when all of it is on
// disk, so that a file is there whole or not at all, also after a power cut.
// Safe from any goroutine. Start with Store, then Put.
package jobfiles

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Options of a Store.
type Options struct {
	Path   string // holds one directory per job; made when it is missing
	Limits Limits
}

// Limits bound what is kept; a zero field means the default. What workers write
// counts, but only uploads are refused: a process is not held by these.
type Limits struct {
	JobBytes   int64 // of one job; default 10 GiB
	TotalBytes int64 // of all jobs; default 100 GiB
	JobFiles   int   // of one job; default 10,000
}

// File describes one file of a job.
type File struct {
	Name     string // relative, with slashes
	Size     int64
	Modified time.Time
	SHA256   string // "" where it is not known
	ETag     string // quoted; changes with every change of the file
}

// Directories beside those of jobs, whose names are hexadecimal.
const (
	uploadsDir = ".uploads" // files on their way; what is there at the start is debris
	marksDir   = ".marks"   // one empty file per job whose files came before the job
)

// Store is the directory of directories.
type Store struct {
	path    string
	limits  Limits
	root    *os.File
	uploads *os.File

	// commit makes "is it there, then put this in its place" one step.
	commit sync.Mutex

	mu      sync.Mutex // guards the fields below; held across no file operation
	used    map[string]int64
	total   int64
	spares  map[string][]string
	digests map[digestKey]digest
}

// Open makes the store usable and measures what is there.
func Open(o Options) (*Store, error) {
	o.Limits = o.Limits.withDefaults()
	if err := os.RemoveAll(filepath.Join(o.Path, spareDir)); err != nil { // who used them is gone
		return nil, fmt.Errorf("cannot remove empty directories of jobs: %w", err)
	}
	for _, dir := range []string{"", uploadsDir, marksDir, spareDir} {
		dir = filepath.Join(o.Path, dir)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("cannot make the directory of job files: %w", err)
		}
	}
	s := &Store{path: o.Path, limits: o.Limits, used: map[string]int64{}, spares: map[string][]string{}, digests: map[digestKey]digest{}}
	var err error
	if s.root, err = os.Open(o.Path); err != nil {
		return nil, fmt.Errorf("cannot open the directory of job files: %w", err)
	}
	if s.uploads, err = os.Open(filepath.Join(o.Path, uploadsDir)); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot open the directory of uploads: %w", err), s.root.Close())
	}
	if err := s.start(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (l Limits) withDefaults() Limits {
	if l.JobBytes <= 0 {
		l.JobBytes = 10 << 30
	}
	if l.TotalBytes <= 0 {
		l.TotalBytes = 100 << 30
	}
	if l.JobFiles <= 0 {
		l.JobFiles = 10_000
	}
	return l
}

// start clears uploads that an earlier process did not finish and measures the
// directories.
func (s *Store) start() error {
	debris, err := s.uploads.ReadDir(-1)
	if err != nil {
		return fmt.Errorf("cannot read the directory of uploads: %w", err)
	}
	for _, e := range debris {
		if err := unix.Unlinkat(int(s.uploads.Fd()), e.Name(), 0); err != nil {
			return fmt.Errorf("cannot remove an unfinished upload: %w", err)
		}
	}
	dirs, err := s.root.ReadDir(-1)
	if err != nil {
		return fmt.Errorf("cannot read the directory of job files: %w", err)
	}
	for _, e := range dirs {
		if e.IsDir() && e.Name()[0] != '.' {
			// One that cannot be looked at counts nothing: what a worker did to its
			// directory must not keep the daemon from starting.
			_ = s.Settle(e.Name(), "")
		}
	}
	return nil
}

// Close ends the store; files that are open stay so.
func (s *Store) Close() error { return errors.Join(s.uploads.Close(), s.root.Close()) }

// Limits returns the limits in force.
func (s *Store) Limits() Limits { return s.limits }

// Path is where the directory of a job is, or would be.
func (s *Store) Path(job string) string { return filepath.Join(s.path, job) }

func (s *Store) setUsed(job string, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total += bytes - s.used[job]
	if bytes == 0 {
		delete(s.used, job)
	} else {
		s.used[job] = bytes
	}
}

// take sets n more bytes aside for job; n < 0 gives them back.
func (s *Store) take(job string, n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n > 0 && s.used[job]+n > s.limits.JobBytes {
		return &QuotaError{What: "the files of one job", Limit: s.limits.JobBytes}
	}
	if n > 0 && s.total+n > s.limits.TotalBytes {
		return &QuotaError{What: "the files of all jobs", Limit: s.limits.TotalBytes, Full: true}
	}
	n = max(n, -s.used[job]) // a worker may have made a file larger since it was counted
	s.total += n
	if s.used[job] += n; s.used[job] == 0 {
		delete(s.used, job)
	}
	return nil
}

// Used returns the bytes of one job and of all, as far as they are known:
// uploads at once, what workers write when their job has ended.
func (s *Store) Used(job string) (bytes, total int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used[job], s.total
}

// Mark notes, durably, that files of a job are about to come before the job
// itself; Unmark that the job is there, or that its files are gone. Marks that an
// earlier process left are in Marked.
func (s *Store) Mark(id string) error {
	dir := filepath.Join(s.path, marksDir)
	f, err := os.OpenFile(filepath.Join(dir, id), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("cannot mark the files of a job: %w", err)
	}
	if err := errors.Join(f.Close(), syncDir(dir)); err != nil {
		return fmt.Errorf("cannot mark the files of a job: %w", err)
	}
	return nil
}

// Unmark implements the other half of Mark. A mark that comes back after a power
// cut does no harm.
func (s *Store) Unmark(id string) error {
	if err := os.Remove(filepath.Join(s.path, marksDir, id)); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("cannot unmark the files of a job: %w", err)
	}
	return nil
}

// Marked lists the marks.
func (s *Store) Marked() ([]string, error) {
	list, err := os.ReadDir(filepath.Join(s.path, marksDir))
	if err != nil {
		return nil, fmt.Errorf("cannot read the marks of job files: %w", err)
	}
	ids := make([]string, len(list))
	for i, e := range list {
		ids[i] = e.Name()
	}
	return ids, nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
