package amd

import (
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cjmd/cjmd/internal/monitors/accel"
	"github.com/cjmd/cjmd/internal/resource"
)

// Looking at every open file of every process costs ten milliseconds and more
// on a busy box. It is done when the memory in use has moved, but not more often
// than scanEvery while samples are wanted often, else not for more than a
// scanShare of the time; and after scanAtLeast in any case. In between only the
// files that are known are read.
const (
	scanEvery   = time.Second
	scanShare   = 1000
	scanAtLeast = 30 * time.Second
	scanMoved   = 4 * resource.MiB
)

// users finds the processes that use the cards. Owned by Run.
type users struct {
	root    string
	clock   func() time.Time
	asked   time.Time // the last list
	scanned time.Time
	took    time.Duration  // that scan
	used    resource.Bytes // on all cards at that time
	files   []openFile
	hidden  int // processes whose files we may not see
}

// openFile is a file of a card that a process has open.
type openFile struct {
	pid  int
	info string // path of its fdinfo
}

// list returns each process once per card, with what it holds there: dedicated
// memory of a card that has it, all it has mapped of one that shares the host's.
func (u *users) list(cards []card, used resource.Bytes) []resource.Process {
	u.refresh(used)
	type place struct {
		pid  int
		card int
	}
	byPCI := make(map[string]int, len(cards))
	for i := range cards {
		byPCI[cards[i].pci] = i
	}
	held := make(map[place]resource.Bytes)
	counted := make(map[string]bool) // a file that several processes share counts for the first
	for _, f := range u.files {
		b, err := os.ReadFile(f.info)
		if err != nil {
			continue // closed, or the process ended
		}
		c, ok := parseFDInfo(string(b))
		if !ok {
			continue
		}
		at, ok := byPCI[c.pci]
		key := c.pci + " " + c.id
		if !ok || c.id != "" && counted[key] {
			continue
		}
		counted[key] = true
		n := c.vram
		if cards[at].apu {
			n += c.gtt
		}
		held[place{f.pid, at}] += n
	}
	for i := range cards {
		for pid, n := range computeUsers(u.root, cards[i].gpuID) {
			// The same memory as seen by the compute driver.
			held[place{pid, i}] = max(held[place{pid, i}], n)
		}
	}
	out := make([]resource.Process, 0, len(held))
	for p, n := range held {
		out = append(out, resource.Process{PID: p.pid, Device: resource.DeviceID(cards[p.card].id), Index: cards[p.card].index,
			Memory: n, Command: accel.Command(u.root, p.pid)})
	}
	slices.SortFunc(out, func(a, b resource.Process) int {
		return cmp.Or(cmp.Compare(a.Index, b.Index), cmp.Compare(a.PID, b.PID))
	})
	return out
}

// refresh scans when it is time to.
func (u *users) refresh(used resource.Bytes) {
	now := u.clock()
	pause := time.Duration(scanEvery)
	if now.Sub(u.asked) > scanEvery {
		pause = max(pause, scanShare*u.took)
	}
	u.asked = now
	age, moved := now.Sub(u.scanned), used-u.used
	if u.scanned.IsZero() || age >= scanAtLeast || age >= pause && (moved >= scanMoved || -moved >= scanMoved) {
		u.scan()
		u.scanned, u.used, u.took = now, used, u.clock().Sub(now)
	}
}

// scan looks for open files of cards in all processes that may be looked at.
func (u *users) scan() {
	u.files, u.hidden = nil, 0
	proc := filepath.Join(u.root, "proc")
	buf := make([]byte, len(cardFiles))
	for _, pid := range numbered(proc) {
		dir := filepath.Join(proc, strconv.Itoa(pid))
		fds, err := os.Open(filepath.Join(dir, "fd"))
		if err != nil {
			if os.IsPermission(err) {
				u.hidden++
			}
			continue
		}
		dirfd := int(fds.Fd())
		names, _ := fds.Readdirnames(-1) // as far as they could be read: the process may end
		for _, name := range names {
			n, err := unix.Readlinkat(dirfd, name, buf)
			if err == nil && string(buf[:n]) == cardFiles {
				u.files = append(u.files, openFile{pid: pid, info: filepath.Join(dir, "fdinfo", name)})
			}
		}
		_ = fds.Close() // it was only read
	}
}

// cardFiles is where the kernel shows cards as files; what a link to one begins
// with.
const cardFiles = "/dev/dri/"

// notes says what is known to be missing.
func (u *users) notes() map[string]any {
	if u.hidden == 0 {
		return nil
	}
	return map[string]any{"processes_not_readable": u.hidden}
}

// computeUsers reads the compute driver's table: what each process holds on the
// GPU of an id.
func computeUsers(root, gpuID string) map[int]resource.Bytes {
	if gpuID == "" {
		return nil
	}
	dir := filepath.Join(root, "sys/class/kfd/kfd/proc")
	out := make(map[int]resource.Bytes)
	for _, pid := range numbered(dir) {
		if n, ok := number(filepath.Join(dir, strconv.Itoa(pid)), "vram_"+gpuID); ok && n > 0 {
			out[pid] = resource.Bytes(n)
		}
	}
	return out
}

// numbered lists the entries of a directory whose names are numbers, in order;
// none when it cannot be read.
func numbered(dir string) []int {
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close()
	names, _ := f.Readdirnames(-1) // as far as they could be read
	out := make([]int, 0, len(names))
	for _, name := range names {
		if n, err := strconv.Atoi(name); err == nil && n > 0 {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}
