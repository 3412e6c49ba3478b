package amd

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cjmd/cjmd/internal/resource"
)

const vendorID = "0x1002"

// card is one GPU (of a dual-die board: one die) of the amdgpu driver.
type card struct {
	dir    string // …/device of the card
	hwmon  string // "" when there is none
	pci    string // 0000:03:00.0
	id     string
	name   string
	label  string // vendor:device:revision, for when there is no name
	index  int
	gpuID  string // of the compute driver; "" when it does not know the card
	apu    bool
	kfdPos int
}

// findCards lists the cards in the order in which ROCm counts them. Only a /sys
// that cannot be listed is an error.
func findCards(root string) ([]card, error) {
	entries, err := os.ReadDir(filepath.Join(root, "sys/class/drm"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list the graphics cards: %w", err)
	}
	nodes := computeNodes(root)
	var out []card
	for _, e := range entries {
		if n, ok := strings.CutPrefix(e.Name(), "card"); !ok || strings.Trim(n, "0123456789") != "" {
			continue // a connector, a render node
		}
		dir := filepath.Join(root, "sys/class/drm", e.Name(), "device")
		if text(dir, "vendor") != vendorID {
			continue
		}
		if _, ok := number(dir, "mem_info_vram_total"); !ok {
			continue // another driver has it: radeon, vfio
		}
		out = append(out, describe(root, dir, nodes))
	}
	slices.SortFunc(out, func(a, b card) int {
		return cmp.Or(cmp.Compare(a.kfdPos, b.kfdPos), cmp.Compare(a.pci, b.pci))
	})
	identify(out)
	return out, nil
}

func describe(root, dir string, nodes map[string]computeNode) card {
	c := card{dir: dir, name: text(dir, "product_name")}
	for line := range strings.Lines(text(dir, "uevent")) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "PCI_SLOT_NAME="); ok {
			c.pci = strings.ToLower(v)
		}
	}
	if c.pci == "" {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			c.pci = filepath.Base(real)
		}
	}
	device, revision := strings.TrimPrefix(text(dir, "device"), "0x"), strings.TrimPrefix(text(dir, "revision"), "0x")
	c.label = "AMD GPU 1002:" + device
	if c.name == "" {
		c.name = marketingName(root, device, revision)
	}
	if mons, err := filepath.Glob(filepath.Join(dir, "hwmon", "hwmon*")); err == nil && len(mons) > 0 {
		c.hwmon = mons[0]
	}
	c.apu = isAPU(dir, c.hwmon)
	c.kfdPos = len(nodes)
	if n, ok := nodes[c.pci]; ok {
		c.kfdPos, c.gpuID = n.pos, n.gpuID
	}
	return c
}

// isAPU tells a GPU that shares the host's memory. The driver shows the voltage
// of the north bridge for those alone; where no sensors are shown, they lack
// the load of their own memory and can map more than they have.
func isAPU(dir, hwmon string) bool {
	if hwmon != "" {
		return text(hwmon, "in1_label") == "vddnb"
	}
	_, own := number(dir, "mem_busy_percent")
	vram, _ := number(dir, "mem_info_vram_total")
	gtt, _ := number(dir, "mem_info_gtt_total")
	return !own && gtt > vram
}

// identify numbers the cards and names them as ROCR_VISIBLE_DEVICES does, by
// the address on the bus where they have no number of their own or share it.
func identify(cards []card) {
	count := make(map[string]int)
	for i := range cards {
		cards[i].id = deviceID(text(cards[i].dir, "unique_id"))
		count[cards[i].id]++
	}
	for i := range cards {
		c := &cards[i]
		c.index = i
		if c.id == "" || count[c.id] > 1 {
			c.id = "PCI-" + c.pci
		}
	}
}

// deviceID is "" for a number that is none.
func deviceID(unique string) string {
	n, err := strconv.ParseUint(strings.TrimPrefix(unique, "0x"), 16, 64)
	if err != nil || n == 0 {
		return ""
	}
	return fmt.Sprintf("GPU-%016x", n)
}

// nameAll gives cards without a name what is known of them.
func nameAll(cards []card) {
	for i := range cards {
		if cards[i].name == "" {
			cards[i].name = cards[i].label
		}
	}
}

// marketingName looks a device up in libdrm's list, where that is installed.
func marketingName(root, device, revision string) string {
	b, err := os.ReadFile(filepath.Join(root, "usr/share/libdrm/amdgpu.ids"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(line, ",", 3)
		if len(f) == 3 && strings.EqualFold(strings.TrimSpace(f[0]), device) && strings.EqualFold(strings.TrimSpace(f[1]), revision) {
			return strings.TrimSpace(f[2])
		}
	}
	return ""
}

// computeNode is a GPU as the compute driver (KFD) knows it.
type computeNode struct {
	gpuID string
	pos   int
}

// computeNodes maps addresses on the bus to nodes of the compute driver, in
// whose order ROCm counts devices. Empty where that driver is not loaded.
func computeNodes(root string) map[string]computeNode {
	dir := filepath.Join(root, "sys/class/kfd/kfd/topology/nodes")
	out := make(map[string]computeNode)
	entries, _ := os.ReadDir(dir) // no compute driver, no nodes
	numbers := make([]int, 0, len(entries))
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	for _, n := range numbers {
		node := filepath.Join(dir, strconv.Itoa(n))
		id := text(node, "gpu_id")
		if id == "" || id == "0" {
			continue // a CPU
		}
		var location, domain uint64
		for line := range strings.Lines(text(node, "properties")) {
			switch f := strings.Fields(line); {
			case len(f) != 2:
			case f[0] == "location_id":
				location, _ = strconv.ParseUint(f[1], 10, 32)
			case f[0] == "domain":
				domain, _ = strconv.ParseUint(f[1], 10, 32)
			}
		}
		pci := fmt.Sprintf("%04x:%02x:%02x.%d", domain, location>>8&0xff, location>>3&0x1f, location&7)
		out[pci] = computeNode{gpuID: id, pos: len(out)}
	}
	return out
}

// read takes the card's figures; more holds what only people read.
func (c *card) read(host resource.Host) (d resource.Device, more map[string]any, err error) {
	var got [4]resource.Bytes
	for i, name := range [...]string{"mem_info_vram_total", "mem_info_vram_used", "mem_info_gtt_total", "mem_info_gtt_used"} {
		n, ok := number(c.dir, name)
		if !ok && i < 2 {
			return d, nil, fmt.Errorf("cannot read the memory of GPU %s: %s in /sys is gone or holds no number", c.id, name)
		}
		got[i] = resource.Bytes(n)
	}
	vram, vramUsed, gtt, gttUsed := got[0], min(got[1], got[0]), got[2], min(got[3], got[2])
	d = resource.Device{ID: resource.DeviceID(c.id), Index: c.index, Name: c.name, Unified: c.apu}
	more = map[string]any{"pci": c.pci, "vram_total_mb": vram.MB(), "vram_used_mb": vramUsed.MB(),
		"gtt_total_mb": gtt.MB(), "gtt_used_mb": gttUsed.MB()}
	if c.apu {
		// What it can map of the host's memory, as far as the host has it left, and
		// the part that the firmware set aside for it.
		d.Total = vram + gtt
		d.Free = min(vram-vramUsed+min(gtt-gttUsed, host.MemAvailable), d.Total)
	} else {
		d.Total, d.Free = vram, vram-vramUsed
	}
	d.Used = d.Total - d.Free
	if text(c.dir, "power/runtime_status") == "suspended" {
		more["suspended"] = true // asking for more would wake it, every few seconds
		return d, more, nil
	}
	if n, ok := number(c.dir, "gpu_busy_percent"); ok {
		d.LoadPercent = float64(min(max(n, 0), 100))
	} else {
		more["load_unknown"] = true
	}
	if c.hwmon != "" {
		if n, ok := number(c.hwmon, "temp1_input"); ok {
			d.TempCelsius = float64(n) / 1e3
		}
		n, ok := number(c.hwmon, "power1_average")
		if !ok {
			n, ok = number(c.hwmon, "power1_input")
		}
		if ok {
			d.PowerWatts = float64(n) / 1e6
		}
	}
	return d, more, nil
}

// number reads a file of one number; false when there is none.
func number(dir, name string) (int64, bool) {
	n, err := strconv.ParseInt(text(dir, name), 10, 64)
	return n, err == nil
}

// text is a small file's content; "" when it cannot be read.
func text(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
