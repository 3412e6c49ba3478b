package jobfiles

import (
	"fmt"
	"maps"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// RemoveAll removes the directory of a job with all that is in it, also where a
// worker took away the right to.
func (s *Store) RemoveAll(job string) error {
	err := os.RemoveAll(s.Path(job)) // follows no links
	if os.IsPermission(err) {
		if fd, openErr := openPath(int(s.root.Fd()), job); openErr == nil {
			loosen(fd, maxDepth*4)
		}
		err = os.RemoveAll(s.Path(job))
	}
	if err != nil {
		return fmt.Errorf("cannot remove the directory of a job: %w", err)
	}
	s.setUsed(job, 0)
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.digests, func(k digestKey, _ digest) bool { return k.job == job })
	return nil
}

// openPath opens a directory that may not even be read.
func openPath(at int, name string) (int, error) {
	return unix.Openat(at, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// loosen gives the owner all rights to a directory and those below it, and
// closes fd. By descriptor: whatever a name is exchanged for meanwhile, nothing
// outside is touched.
func loosen(fd, depth int) {
	defer unix.Close(fd)
	self := "/proc/self/fd/" + strconv.Itoa(fd)
	if unix.Chmod(self, 0o700) != nil || depth == 0 {
		return // the removal that follows tells
	}
	entries, err := os.ReadDir(self)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if sub, err := openPath(fd, e.Name()); err == nil {
			loosen(sub, depth-1)
		}
	}
}
