package inside

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// denied are the system calls that no plugin needs and that reach beyond a
// sandbox or offer much of the kernel to an attacker. They answer EPERM, as they
// would without privilege, so that programs which merely try go on.
var denied = []uintptr{
	// namespaces and mounts: the way to capabilities of one's own
	unix.SYS_SETNS, unix.SYS_UNSHARE, unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_MOVE_MOUNT,
	unix.SYS_OPEN_TREE, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
	// the kernel itself
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_KEXEC_LOAD, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE,
	unix.SYS_USERFAULTFD, unix.SYS_LOOKUP_DCOOKIE, unix.SYS_REBOOT, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_SYSLOG, unix.SYS_ACCT, unix.SYS_QUOTACTL,
	// keys are not namespaced
	unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL,
	// clocks and names of the host
	unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_CLOCK_ADJTIME, unix.SYS_ADJTIMEX, unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME,
	// other processes
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_KCMP, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_VHANGUP, unix.SYS_NFSSERVCTL,
}

// Offsets in struct seccomp_data, little endian.
const (
	dataNr   = 0
	dataArch = 4
	dataArg0 = 16
	dataArg1 = 24
)

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

func ret(value uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: value}
}

// jump goes on with the next instruction when the condition holds, else skips n.
func jump(condition uint16, k uint32, n uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | condition | unix.BPF_K, Jf: n, K: k}
}

const (
	retAllow  = unix.SECCOMP_RET_ALLOW
	retEPERM  = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	retENOSYS = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
)

// filter is the program. A call of another architecture's table (32-bit, x32) has
// other numbers: it is refused whole.
func filter(arch string) ([]unix.SockFilter, error) {
	audit := map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}[arch]
	if audit == 0 {
		return nil, fmt.Errorf("there is no system call filter for %s yet", arch)
	}
	prog := []unix.SockFilter{
		load(dataArch),
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: audit},
		ret(retEPERM),
		load(dataNr),
		jump(unix.BPF_JGE, 0x40000000, 1), // x32
		ret(retENOSYS),
		// A new user namespace is how an ordinary process gets capabilities. clone3
		// hides its flags in memory: libraries fall back to clone on ENOSYS.
		jump(unix.BPF_JEQ, unix.SYS_CLONE3, 1),
		ret(retENOSYS),
		jump(unix.BPF_JEQ, unix.SYS_CLONE, 4),
		load(dataArg0),
		jump(unix.BPF_JSET, unix.CLONE_NEWUSER|unix.CLONE_NEWNS|unix.CLONE_NEWPID|unix.CLONE_NEWNET|unix.CLONE_NEWIPC|unix.CLONE_NEWCGROUP, 1),
		ret(retEPERM),
		ret(retAllow),
		// Typing into the terminal of whoever started the daemon by hand.
		jump(unix.BPF_JEQ, unix.SYS_IOCTL, 5),
		load(dataArg1),
		jump(unix.BPF_JEQ, unix.TIOCSTI, 1),
		ret(retEPERM),
		jump(unix.BPF_JEQ, unix.TIOCLINUX, 1),
		ret(retEPERM),
		load(dataNr),
	}
	calls := slices.Clone(denied)
	slices.Sort(calls)
	for _, nr := range slices.Compact(calls) {
		prog = append(prog, jump(unix.BPF_JEQ, uint32(nr), 1), ret(retEPERM))
	}
	return append(prog, ret(retAllow)), nil
}

// Seccomp installs the filter on this thread. no_new_privs must be set.
func Seccomp() error {
	prog, err := filter(runtime.GOARCH)
	if err != nil {
		return err
	}
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&fprog)))
	if errors.Is(errno, unix.ENOSYS) || errors.Is(errno, unix.EINVAL) {
		return fmt.Errorf("this kernel has no seccomp filters: %w", errno)
	}
	if errno != 0 {
		return fmt.Errorf("cannot install the system call filter: %w", errno)
	}
	return nil
}
