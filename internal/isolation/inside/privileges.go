package inside

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// DropCapabilities takes every capability out of what this thread's programs can
// ever get: an exec keeps only what the bounding and ambient sets allow.
func DropCapabilities() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot clear ambient capabilities: %w", err)
	}
	for c := uintptr(0); ; c++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) && c > 0 { // past the kernel's last
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot drop capability %d: %w", c, err)
		}
	}
}

// Limit sets resource limits that the worker inherits: another process may not
// set them for one of another user.
func Limit(noFile int) error {
	for resource, value := range map[int]int{unix.RLIMIT_CORE: 0, unix.RLIMIT_NOFILE: noFile} {
		if resource == unix.RLIMIT_NOFILE && value == 0 {
			continue
		}
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: uint64(value), Max: uint64(value)}); err != nil {
			return fmt.Errorf("cannot set resource limit %d to %d: %w", resource, value, err)
		}
	}
	return nil
}

// LoopbackUp brings up the only interface of a fresh network namespace.
func LoopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot bring the loopback interface up: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("cannot bring the loopback interface up: %w", err)
	}
	return nil
}
