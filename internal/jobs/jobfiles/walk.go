package jobfiles

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// dirFlags opens a directory and nothing else; a link is an error.
const dirFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// openDir opens the directory that name is in, from the store's own on, one
// element at a time; with create, missing ones are made. The caller closes it.
func (s *Store) openDir(job, name string, create bool) (dir *os.File, last string, err error) {
	if err := CheckName(name); err != nil {
		return nil, "", err
	}
	elements := append([]string{job}, strings.Split(name, "/")...)
	last = elements[len(elements)-1]
	at := int(s.root.Fd())
	for _, e := range elements[:len(elements)-1] {
		fd, err := unix.Openat(at, e, dirFlags, 0)
		if create && errors.Is(err, unix.ENOENT) {
			if err = unix.Mkdirat(at, e, 0o700); err == nil || errors.Is(err, unix.EEXIST) {
				fd, err = unix.Openat(at, e, dirFlags, 0)
			}
		}
		if at != int(s.root.Fd()) {
			_ = unix.Close(at) // read only: nothing can be lost
		}
		if err != nil {
			return nil, "", pathError(err)
		}
		at = fd
	}
	return os.NewFile(uintptr(at), "job files"), last, nil
}

// pathError says what an error of a walk means.
func pathError(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return ErrNotFound
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP): // also what a link gives
		return fmt.Errorf("%w: a part of its path is no directory (links are not followed)", ErrNotFound)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: the worker left it unreadable", ErrNotFound)
	}
	return fmt.Errorf("cannot open a file of a job: %w", err)
}

// Open opens a file for reading; the caller closes it. ErrNotFound also for what
// is no regular file.
func (s *Store) Open(job, name string) (*os.File, File, error) {
	dir, last, err := s.openDir(job, name, false)
	if err != nil {
		return nil, File{}, err
	}
	defer dir.Close()
	// Not blocking: a worker may have left a FIFO there.
	fd, err := unix.Openat(int(dir.Fd()), last, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ENXIO) { // a socket
			err = errNotRegular
		}
		return nil, File{}, pathError(err)
	}
	f := os.NewFile(uintptr(fd), name)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, File{}, errors.Join(pathError(err), f.Close())
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, File{}, errors.Join(errNotRegular, f.Close())
	}
	return f, s.describe(job, name, &st), nil
}

var errNotRegular = fmt.Errorf("%w: it is no regular file", ErrNotFound)

// Stat describes a file; ErrNotFound as with Open.
func (s *Store) Stat(job, name string) (File, error) {
	f, info, err := s.Open(job, name)
	if err != nil {
		return File{}, err
	}
	return info, f.Close()
}

func (s *Store) describe(job, name string, st *unix.Stat_t) File {
	f := File{Name: name, Size: st.Size, Modified: time.Unix(st.Mtim.Unix()).UTC(), ETag: etag(st)}
	f.SHA256 = s.digestOf(job, f)
	return f
}

// etag changes with every write, also with one that restores size and time of
// modification: the kernel's time of change cannot be set.
func etag(st *unix.Stat_t) string {
	return `"` + strconv.FormatUint(st.Ino, 36) + "-" + strconv.FormatInt(st.Size, 36) + "-" +
		strconv.FormatInt(st.Ctim.Nano(), 36) + `"`
}

// found is one entry of a walk: a regular file that can be named, or (name "")
// something that cannot be fetched.
type found struct {
	name string
	size int64
	stat unix.Stat_t
}

// maxWalk bounds a walk: a worker may have made millions of files.
const maxWalk = 100_000

// walk visits what is in a job's directory, in order of names, until visit says
// no. A job without a directory has nothing in it.
func (s *Store) walk(job string, visit func(found) bool) error {
	fd, err := unix.Openat(int(s.root.Fd()), job, dirFlags, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EACCES): // the worker locked it
		visit(found{})
		return nil
	case err != nil:
		return fmt.Errorf("cannot read the directory of a job: %w", err)
	}
	w := walker{visit: visit, left: maxWalk}
	w.dir(os.NewFile(uintptr(fd), job), "")
	return w.err
}

type walker struct {
	visit func(found) bool
	left  int
	err   error
}

// dir visits one directory and closes it; false ends the walk. What vanishes or
// cannot be read meanwhile is left out: the directory may be a worker's.
func (w *walker) dir(d *os.File, prefix string) bool {
	defer d.Close()
	names, err := d.Readdirnames(w.left)
	if err != nil && len(names) == 0 {
		return true
	}
	w.left -= len(names)
	slices.Sort(names)
	for _, name := range names {
		path := prefix + name
		var st unix.Stat_t
		if unix.Fstatat(int(d.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
			continue
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			if strings.Count(path, "/") >= maxDepth || w.left <= 0 {
				if !w.visit(found{stat: st}) {
					return false
				}
				continue
			}
			fd, err := unix.Openat(int(d.Fd()), name, dirFlags, 0)
			if err != nil {
				if !w.visit(found{stat: st}) {
					return false
				}
				continue
			}
			if !w.dir(os.NewFile(uintptr(fd), path), path+"/") {
				return false
			}
		case unix.S_IFREG:
			f := found{name: path, size: st.Size, stat: st}
			if CheckName(path) != nil {
				f.name = ""
			}
			if !w.visit(f) {
				return false
			}
		default:
			if !w.visit(found{stat: st}) {
				return false
			}
		}
	}
	return true
}
