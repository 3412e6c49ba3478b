package jobfiles

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Upload says how a file is to be taken in.
type Upload struct {
	Body   io.Reader
	Size   int64  // as announced; -1 when it was not
	SHA256 string // as announced, in lower-case hexadecimal; "" when it was not
	// IfMatch is the ETag that the file must have, "*" any; IfAbsent: there must be none.
	IfMatch  string
	IfAbsent bool
	// Commit is called when all is on disk, and calls put at a moment when the file
	// may appear; nil means at once.
	Commit func(put func() error) error
}

// Put takes in one file: it is durable, whole and checked when Put returns, and
// created says that there was none of this name. *NameError, *QuotaError,
// *ConditionError, *ChecksumError, the reader's error.
func (s *Store) Put(job, name string, u Upload) (f File, created bool, err error) {
	if err := s.before(job, name, u); err != nil {
		return File{}, false, err
	}
	up, err := s.newUpload(job)
	if err != nil {
		return File{}, false, err
	}
	defer func() { err = errors.Join(err, up.close()) }()
	if err := up.receive(u); err != nil {
		return File{}, false, err
	}
	commit := u.Commit
	if commit == nil {
		commit = func(put func() error) error { return put() }
	}
	err = commit(func() error {
		f, created, err = s.place(job, name, up, u)
		return err
	})
	return f, created, err
}

// before refuses what can be refused without reading the body.
func (s *Store) before(job, name string, u Upload) error {
	if err := CheckName(name); err != nil {
		return err
	}
	old, err := s.Stat(job, name)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if err := u.condition(old, err == nil); err != nil {
		return err
	}
	if u.Size > 0 { // tried, and taken in earnest as the bytes come
		if err := s.take(job, u.Size); err != nil {
			return err
		}
		return s.take(job, -u.Size)
	}
	return nil
}

func (u Upload) condition(old File, exists bool) error {
	switch {
	case u.IfAbsent && exists:
		return &ConditionError{}
	case u.IfMatch != "" && !exists, u.IfMatch != "" && u.IfMatch != "*" && u.IfMatch != old.ETag:
		return &ConditionError{Wanted: true}
	}
	return nil
}

// upload is a file on its way, under a name of its own.
type upload struct {
	s     *Store
	job   string
	name  string
	file  *os.File
	hash  hash.Hash
	taken int64 // bytes set aside for it
	done  bool  // it is in its place
}

func (s *Store) newUpload(job string) (*upload, error) {
	up := &upload{s: s, job: job, name: rand.Text(), hash: sha256.New()}
	fd, err := unix.Openat(int(s.uploads.Fd()), up.name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot begin an upload: %w", err)
	}
	up.file = os.NewFile(uintptr(fd), up.name)
	return up, nil
}

// receive writes the body to disk and checks it.
func (up *upload) receive(u Upload) error {
	if _, err := io.CopyBuffer(up, u.Body, make([]byte, 256<<10)); err != nil {
		return err
	}
	if u.Size >= 0 && up.taken != u.Size {
		return io.ErrUnexpectedEOF
	}
	if sum := up.sum(); u.SHA256 != "" && sum != u.SHA256 {
		return &ChecksumError{Got: sum}
	}
	if err := up.file.Sync(); err != nil {
		return fmt.Errorf("cannot store an upload: %w", err)
	}
	return nil
}

func (up *upload) sum() string { return hex.EncodeToString(up.hash.Sum(nil)) }

// Write takes the space for b before it writes.
func (up *upload) Write(b []byte) (int, error) {
	if err := up.s.take(up.job, int64(len(b))); err != nil {
		return 0, err
	}
	up.taken += int64(len(b))
	n, err := up.file.Write(b)
	if err != nil {
		return n, fmt.Errorf("cannot store an upload: %w", err)
	}
	up.hash.Write(b)
	return n, nil
}

// close removes what did not come into its place.
func (up *upload) close() error {
	err := up.file.Close()
	if !up.done {
		err = errors.Join(err, up.s.take(up.job, -up.taken), unix.Unlinkat(int(up.s.uploads.Fd()), up.name, 0))
	}
	return err
}

// place renames an upload to where it belongs. The conditions are looked at
// again: the body may have been long under way.
func (s *Store) place(job, name string, up *upload, u Upload) (File, bool, error) {
	if _, err := s.Make(job, ""); err != nil {
		return File{}, false, err
	}
	dir, last, err := s.openDir(job, name, true)
	if errors.Is(err, ErrNotFound) {
		err = &NameError{"lies below something that is no directory"}
	}
	if err != nil {
		return File{}, false, err
	}
	defer dir.Close()
	s.commit.Lock()
	defer s.commit.Unlock()
	old, err := s.Stat(job, name)
	exists := err == nil
	if err != nil && !errors.Is(err, ErrNotFound) {
		return File{}, false, err
	}
	if err := u.condition(old, exists); err != nil {
		return File{}, false, err
	}
	if err := s.room(job, exists); err != nil {
		return File{}, false, err
	}
	err = unix.Renameat(int(s.uploads.Fd()), up.name, int(dir.Fd()), last)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTEMPTY) {
		return File{}, false, &NameError{"is a directory's"}
	}
	if err != nil {
		return File{}, false, fmt.Errorf("cannot store an upload: %w", err)
	}
	up.done = true
	if exists {
		err = s.take(job, -old.Size)
	}
	if err := errors.Join(err, s.syncAll(job, name, dir)); err != nil {
		return File{}, false, err
	}
	f, err := s.Stat(job, name)
	f.SHA256 = up.sum()
	s.remember(job, f)
	return f, !exists, err
}

// room refuses one file more than a job may have.
func (s *Store) room(job string, exists bool) error {
	if exists {
		return nil
	}
	n := 0
	err := s.walk(job, func(found) bool { n++; return n < s.limits.JobFiles })
	if err == nil && n >= s.limits.JobFiles {
		return &TooManyError{Limit: s.limits.JobFiles}
	}
	return err
}

// TooManyError says that a job has as many files as it may have.
type TooManyError struct{ Limit int }

func (e *TooManyError) Error() string { return fmt.Sprintf("a job may have %d files", e.Limit) }

// syncAll makes the names on the way to a file durable: those of its directories,
// which may be new, and its own.
func (s *Store) syncAll(job, name string, dir *os.File) error {
	errs := []error{dir.Sync(), s.root.Sync()}
	for i := len(name) - 1; i > 0; i-- {
		if name[i] != '/' {
			continue
		}
		up, _, err := s.openDir(job, name[:i], false)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		errs = append(errs, up.Sync(), up.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cannot store an upload: %w", err)
	}
	return nil
}

// Remove removes one file. ErrNotFound; *ConditionError when it has another ETag
// than ifMatch (unless that is "" or "*").
func (s *Store) Remove(job, name, ifMatch string) error {
	dir, last, err := s.openDir(job, name, false)
	if err != nil {
		return err
	}
	defer dir.Close()
	s.commit.Lock()
	defer s.commit.Unlock()
	old, err := s.Stat(job, name)
	if err != nil {
		return err
	}
	if err := (Upload{IfMatch: ifMatch}).condition(old, true); err != nil {
		return err
	}
	if err := unix.Unlinkat(int(dir.Fd()), last, 0); err != nil {
		return fmt.Errorf("cannot remove a file of a job: %w", err)
	}
	return s.take(job, -old.Size)
}

// Copy copies to job `to` the files of job `from` that were last written before
// the given time. They are durable when it returns.
func (s *Store) Copy(from, to string, before time.Time) error {
	list, err := s.List(from)
	if err != nil {
		return err
	}
	for _, f := range list.Files {
		if !f.Modified.Before(before) {
			continue
		}
		src, info, err := s.Open(from, f.Name)
		if err != nil {
			return err
		}
		_, _, err = s.Put(to, f.Name, Upload{Body: io.LimitReader(src, info.Size), Size: info.Size})
		if err := errors.Join(err, src.Close()); err != nil {
			return fmt.Errorf("cannot copy %s: %w", f.Name, err)
		}
	}
	return nil
}
