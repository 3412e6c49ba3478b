package jobfiles

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Most jobs leave their directory empty, and on a journalling file system making
// and removing one costs a hundred microseconds of a core, two renames a tenth of
// that. So empty directories are kept for the next job of the same user: nobody
// else's, since a worker that kept one open can still see into it.

const (
	spareDir  = ".spare"
	maxSpares = 16 // per user
)

// Make makes the directory of a job, if it is not there, and returns its path.
// user is who works in it: an instance of a plugin, "" where nobody does.
func (s *Store) Make(job, user string) (string, error) {
	root := int(s.root.Fd())
	if spare, ok := s.takeSpare(user); ok {
		if unix.Renameat(root, spare, root, job) == nil {
			return s.Path(job), nil
		}
		// There is one with files in it, or something wrong that mkdir tells.
		if err := s.giveSpare(user, spare); err != nil {
			return "", err
		}
	}
	err := unix.Mkdirat(root, job, 0o700)
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		err = unix.Fstatat(root, job, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			err = unix.ENOTDIR
		}
	}
	if err != nil {
		return "", fmt.Errorf("cannot make the directory of a job: %w", err)
	}
	return s.Path(job), nil
}

// Settle is called when the user is done with the directory: an empty one goes,
// another is measured. A job without a directory is settled.
func (s *Store) Settle(job, user string) error {
	root := int(s.root.Fd())
	if user != "" && s.pristine(job) {
		spare := filepath.Join(spareDir, rand.Text())
		if unix.Renameat(root, job, root, spare) == nil {
			s.setUsed(job, 0)
			return s.giveSpare(user, spare)
		}
	}
	if err := unix.Unlinkat(root, job, unix.AT_REMOVEDIR); err == nil || errors.Is(err, unix.ENOENT) {
		s.setUsed(job, 0)
		return nil
	}
	var bytes int64
	if err := s.walk(job, func(f found) bool { bytes += f.size; return true }); err != nil {
		return err
	}
	s.setUsed(job, bytes)
	return nil
}

// pristine reports whether a directory is as it was made: empty, and nobody's but
// the owner's.
func (s *Store) pristine(job string) bool {
	fd, err := unix.Openat(int(s.root.Fd()), job, dirFlags, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&0o7777 != 0o700 || int(st.Uid) != os.Geteuid() {
		return false
	}
	var buf [1024]byte
	n, err := unix.ReadDirent(fd, buf[:])
	if err != nil {
		return false
	}
	_, entries, _ := unix.ParseDirent(buf[:n], 1, nil)
	return entries == 0
}

func (s *Store) takeSpare(user string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.spares[user]
	if len(list) == 0 {
		return "", false
	}
	s.spares[user] = list[:len(list)-1]
	return list[len(list)-1], true
}

// giveSpare keeps an empty directory, or removes it when there are enough.
func (s *Store) giveSpare(user, spare string) error {
	s.mu.Lock()
	keep := len(s.spares[user]) < maxSpares
	if keep {
		s.spares[user] = append(s.spares[user], spare)
	}
	s.mu.Unlock()
	if keep {
		return nil
	}
	if err := unix.Unlinkat(int(s.root.Fd()), spare, unix.AT_REMOVEDIR); err != nil {
		return fmt.Errorf("cannot remove the empty directory of a job: %w", err)
	}
	return nil
}
