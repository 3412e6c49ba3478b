package amd

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cjmd/cjmd/internal/monitors/accel"
	"github.com/cjmd/cjmd/internal/resource"
)

const (
	toolLimit = 2 * time.Second // for one call; it hangs when the driver does
	toolEvery = 2 * time.Second // it is a Python program of some hundred milliseconds
)

var toolArgs = [...]string{"--showmeminfo", "vram", "--showuse", "--showtemp", "--showpower",
	"--showproductname", "--showuniqueid", "--showbus", "--showpids", "--json"}

// errNoAnswer is a hanging tool: a fault, where any other failure of it means
// that there is no driver.
var errNoAnswer = errors.New("cannot ask rocm-smi: no answer")

// findTool is the path of rocm-smi, "" when there is none.
func findTool(root string) string {
	if root == "/" {
		if path, err := exec.LookPath("rocm-smi"); err == nil {
			return path
		}
	}
	path := filepath.Join(root, "opt/rocm/bin/rocm-smi")
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// tool runs rocm-smi and keeps its last answer for a while.
type tool struct {
	path  string
	clock func() time.Time
	last  table
}

func (t *tool) ask(ctx context.Context) (table, error) {
	if !t.last.at.IsZero() && t.clock().Sub(t.last.at) < toolEvery {
		return t.last, nil
	}
	ctx, cancel := context.WithTimeout(ctx, toolLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, t.path, toolArgs[:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = toolLimit / 4
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return table{}, fmt.Errorf("%w in %v", errNoAnswer, toolLimit)
		}
		return table{}, fmt.Errorf("cannot ask rocm-smi: %w: %.200s", err, bytes.TrimSpace(said.Bytes()))
	}
	got, err := parseTool(out.Bytes())
	if err != nil {
		return table{}, err
	}
	got.at = t.clock()
	t.last = got
	return got, nil
}

// table is an answer of rocm-smi.
type table struct {
	at    time.Time
	cards []row
	pids  map[int]resource.Bytes // over all cards
}

type row struct {
	number      int
	device      resource.Device
	pci         string
	memoryKnown bool
}

// parseTool reads rocm-smi --json. Warnings may come before the object, keys
// differ in spelling between releases, and figures are strings, "N/A" at times.
func parseTool(out []byte) (table, error) {
	if at := bytes.IndexByte(out, '{'); at > 0 {
		out = out[at:]
	}
	var raw map[string]map[string]string
	if err := json.Unmarshal(out, &raw); err != nil {
		return table{}, fmt.Errorf("cannot read the answer of rocm-smi: %w", err)
	}
	t := table{pids: make(map[int]resource.Bytes)}
	for name, fields := range raw {
		if n, err := strconv.Atoi(strings.TrimPrefix(name, "card")); err == nil && strings.HasPrefix(name, "card") {
			t.cards = append(t.cards, parseRow(n, fields))
			continue
		}
		for key, value := range fields { // "PID4242": "python3, 1, 8589934592, 0, 0"
			pid, err := strconv.Atoi(strings.TrimPrefix(key, "PID"))
			f := strings.Split(value, ",")
			if err != nil || pid <= 0 || len(f) < 5 {
				continue
			}
			// From the end: a program's name may hold commas.
			if n, ok := amount(strings.TrimSpace(f[len(f)-3])); ok {
				t.pids[pid] = n
			}
		}
	}
	slices.SortFunc(t.cards, func(a, b row) int { return cmp.Compare(a.number, b.number) })
	for i := range t.cards {
		t.cards[i].device.Index = i
	}
	return t, nil
}

func parseRow(n int, fields map[string]string) row {
	r := row{number: n}
	get := func(words ...string) (string, bool) {
		for _, key := range slices.Sorted(maps.Keys(fields)) {
			low, all := strings.ToLower(key), true
			for _, w := range words {
				all = all && strings.Contains(low, w)
			}
			if v := strings.TrimSpace(fields[key]); all && v != "" && !strings.EqualFold(v, "n/a") {
				return v, true
			}
		}
		return "", false
	}
	bytesOf := func(words ...string) (resource.Bytes, bool) {
		v, _ := get(words...)
		return amount(v)
	}
	float := func(words ...string) float64 {
		v, _ := get(words...)
		f, err := strconv.ParseFloat(v, 64)
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return 0 // not told
		}
		return f
	}
	d := &r.device
	total, ok := bytesOf("vram total memory")
	used, ok2 := bytesOf("vram total used memory")
	r.memoryKnown = ok && ok2 && total > 0
	d.Total, d.Used = total, min(used, total)
	d.Free = d.Total - d.Used
	d.LoadPercent = min(max(float("gpu use (%)"), 0), 100)
	d.TempCelsius = float("temperature", "edge")
	if d.TempCelsius == 0 {
		d.TempCelsius = float("temperature", "junction")
	}
	d.PowerWatts = float("package power")
	d.Name, _ = get("card series")
	if strings.HasPrefix(d.Name, "0x") || d.Name == "" {
		d.Name = "AMD GPU"
	}
	bus, _ := get("pci bus")
	r.pci = strings.ToLower(bus)
	unique, _ := get("unique id")
	d.ID = resource.DeviceID(deviceID(unique))
	switch {
	case d.ID != "":
	case r.pci != "":
		d.ID = resource.DeviceID("PCI-" + r.pci)
	default: // as those known by their address: ROCm has to be told the place in the order
		d.ID = resource.DeviceID("PCI-card" + strconv.Itoa(n))
	}
	return r
}

// devices lists the cards whose memory is known.
func (t *table) devices() []resource.Device {
	out := make([]resource.Device, 0, len(t.cards))
	for i := range t.cards {
		if t.cards[i].memoryKnown {
			out = append(out, t.cards[i].device)
		}
	}
	return out
}

// processes lists who uses a card. rocm-smi does not say which: with several it
// is unknown.
func (t *table) processes(root string) []resource.Process {
	out := make([]resource.Process, 0, len(t.pids))
	for pid, n := range t.pids {
		p := resource.Process{PID: pid, Index: -1, Memory: n, Command: accel.Command(root, pid)}
		if len(t.cards) == 1 {
			p.Index, p.Device = t.cards[0].device.Index, t.cards[0].device.ID
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b resource.Process) int { return cmp.Compare(a.PID, b.PID) })
	return out
}

// takeNames names cards of /sys that had none.
func takeNames(cards []card, t table) {
	for i := range cards {
		for j := range t.cards {
			if cards[i].name == "" && t.cards[j].pci == cards[i].pci && t.cards[j].device.Name != "AMD GPU" {
				cards[i].name = t.cards[j].device.Name
			}
		}
	}
}
