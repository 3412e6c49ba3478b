package supervisor

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// kernelKilled looks into the kernel's log for a line that says its OOM killer
// ended pid since then. Without the right to read that log there is no evidence,
// and none is invented.
func kernelKilled(pid int, since time.Time) bool {
	// Non-blocking: a read past the newest record fails instead of waiting.
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return false
	}
	from := time.Duration(now.Nano()) - time.Since(since)
	buf := make([]byte, 8192)
	for {
		n, err := unix.Read(fd, buf) // one record
		switch {
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EINTR): // overwritten while reading; the next is fine
			continue
		case err != nil || n <= 0:
			return false
		}
		if oomRecord(string(buf[:n]), pid, from) {
			return true
		}
	}
}

// oomRecord reports whether a record of /dev/kmsg ("6,339,5140900,-;text") at or
// after from (since boot) names pid as a victim.
func oomRecord(rec string, pid int, from time.Duration) bool {
	head, text, ok := strings.Cut(rec, ";")
	f := strings.Split(head, ",")
	if !ok || len(f) < 3 {
		return false
	}
	us, err := strconv.ParseInt(f[2], 10, 64)
	if err != nil || time.Duration(us)*time.Microsecond < from-time.Second {
		return false
	}
	return strings.Contains(text, "Killed process "+strconv.Itoa(pid)+" (")
}
