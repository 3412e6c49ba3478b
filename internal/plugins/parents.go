package plugins

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// parentWatch tells when a directory of the search path that does not exist
// comes into being: it watches the nearest parents that exist for that name
// alone. Those may be busy with other things (somebody's home, the daemon's own
// state directory, where every write of the database would be an event), so the
// kernel is asked for new names only, which fsnotify cannot do.
type parentWatch struct {
	file     *os.File
	fd       int           // file's: Fd would make it blocking
	appeared chan struct{} // capacity 1
	done     chan struct{} // closed when the reading goroutine has ended

	mu   sync.Mutex
	dirs map[string]*parentDir
	byWD map[int32]*parentDir
}

// parentDir is one watched parent; names are those it is watched for.
type parentDir struct {
	wd    int32
	names map[string]bool
	keep  bool
}

const (
	parentNews = unix.IN_CREATE | unix.IN_MOVED_TO
	parentEnds = unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_IGNORED
)

// newParentWatch starts a goroutine, which close ends and waits for.
func newParentWatch() (*parentWatch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("cannot watch directories: %w", err)
	}
	w := &parentWatch{file: os.NewFile(uintptr(fd), "inotify"), fd: fd, appeared: make(chan struct{}, 1), done: make(chan struct{}),
		dirs: map[string]*parentDir{}, byWD: map[int32]*parentDir{}}
	go w.read()
	return w, nil
}

func (w *parentWatch) close() {
	_ = w.file.Close() // ends the read
	<-w.done
}

// begin starts a new set of parents: what is not added until finish goes.
func (w *parentWatch) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.dirs {
		d.keep, d.names = false, map[string]bool{}
	}
}

// add watches parent for name.
func (w *parentWatch) add(parent, name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.dirs[parent]
	if d == nil {
		wd, err := unix.InotifyAddWatch(w.fd, parent, parentNews|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_ONLYDIR)
		if err != nil {
			return &os.PathError{Op: "watch", Path: parent, Err: err}
		}
		d = &parentDir{wd: int32(wd), names: map[string]bool{}}
		w.dirs[parent], w.byWD[d.wd] = d, d
	}
	d.keep, d.names[name] = true, true
	return nil
}

// finish ends the watches that were not added again.
func (w *parentWatch) finish() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for path, d := range w.dirs {
		if !d.keep {
			_, _ = unix.InotifyRmWatch(w.fd, uint32(d.wd)) // gone already is as good
			delete(w.dirs, path)
			delete(w.byWD, d.wd)
		}
	}
}

func (w *parentWatch) read() {
	defer close(w.done)
	buf := make([]byte, 16<<10)
	for {
		n, err := w.file.Read(buf)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				w.wake() // what is missed is found by searching
			}
			return
		}
		if w.matters(buf[:n]) {
			w.wake()
		}
	}
}

func (w *parentWatch) wake() {
	select {
	case w.appeared <- struct{}{}:
	default:
	}
}

// matters goes through the events of one read.
func (w *parentWatch) matters(events []byte) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	found := false
	for len(events) >= unix.SizeofInotifyEvent {
		wd, mask := int32(binary.NativeEndian.Uint32(events)), binary.NativeEndian.Uint32(events[4:])
		size := int(binary.NativeEndian.Uint32(events[12:])) // behind wd, mask and cookie
		name := strings.TrimRight(string(events[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+size]), "\x00")
		events = events[unix.SizeofInotifyEvent+size:]
		d := w.byWD[wd]
		switch {
		case mask&unix.IN_Q_OVERFLOW != 0:
			found = true
		case d == nil: // an event of a watch that was ended
		case mask&parentEnds != 0:
			found = true
			w.forget(d)
		case d.names[name]:
			found = true
		}
	}
	return found
}

// forget drops a directory that is not where it was; the caller holds mu.
func (w *parentWatch) forget(d *parentDir) {
	delete(w.byWD, d.wd)
	for path, have := range w.dirs {
		if have == d {
			delete(w.dirs, path)
		}
	}
}
