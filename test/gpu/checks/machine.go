package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

const mib = 1 << 20

// absentError says what this machine lacks for the checks.
type absentError struct{ what string }

func (e *absentError) Error() string { return e.what }

// card is one GPU as the driver itself describes it.
type card struct {
	UUID     string  `json:"uuid"`
	Name     string  `json:"name"`
	TotalMB  float64 `json:"total_mb"`
	UsedMB   float64 `json:"used_mb"` // before the checks
	device   nvml.Device
	baseline float64 // used when nothing of ours runs, MiB
}

// machine is what the checks run on, read past the daemon.
type machine struct {
	Cards  []*card
	Driver string
	Torch  string
	Python string // the interpreter's own path
	lib    nvml.Interface
}

// probe prints what torch says; it takes no memory of a card.
const probe = `
import json, sys
try:
    import torch
except ImportError as error:
    print(json.dumps({"error": "this Python has no torch (%s)" % error}))
    sys.exit()
print(json.dumps({"python": sys.executable, "version": torch.__version__, "cuda": torch.cuda.is_available(), "count": torch.cuda.device_count()}))
`

// look asks the driver and torch. What is missing is an absentError.
func look(ctx context.Context, o options) (*machine, error) {
	m := &machine{lib: nvml.New()}
	if ret := m.lib.Init(); ret != nvml.SUCCESS {
		return nil, &absentError{fmt.Sprintf("there is no usable NVIDIA driver here (%v)", m.lib.ErrorString(ret))}
	}
	if err := m.readCards(); err != nil {
		m.close()
		return nil, err
	}
	if err := m.readTorch(ctx, o); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

func (m *machine) close() { m.lib.Shutdown() }

func (m *machine) readCards() error {
	n, ret := m.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return fmt.Errorf("cannot count the GPUs: %v", m.lib.ErrorString(ret))
	}
	for i := range n {
		dev, ret := m.lib.DeviceGetHandleByIndex(i)
		if ret != nvml.SUCCESS {
			return fmt.Errorf("cannot find GPU %d: %v", i, m.lib.ErrorString(ret))
		}
		c := &card{device: dev}
		if c.UUID, ret = dev.GetUUID(); ret != nvml.SUCCESS {
			return fmt.Errorf("cannot read the UUID of GPU %d: %v", i, m.lib.ErrorString(ret))
		}
		c.Name, _ = dev.GetName() // only for people
		mem, ret := dev.GetMemoryInfo()
		if ret != nvml.SUCCESS {
			return fmt.Errorf("cannot read the memory of GPU %d: %v", i, m.lib.ErrorString(ret))
		}
		c.TotalMB, c.UsedMB = float64(mem.Total)/mib, float64(mem.Used)/mib
		c.baseline = c.UsedMB
		m.Cards = append(m.Cards, c)
	}
	if len(m.Cards) == 0 {
		return &absentError{"there is an NVIDIA driver but no GPU"}
	}
	m.Driver, _ = m.lib.SystemGetDriverVersion() // only for people
	return nil
}

func (m *machine) readTorch(ctx context.Context, o options) error {
	cmd := exec.CommandContext(ctx, o.python, "-c", probe)
	cmd.WaitDelay = 5 * time.Second
	if o.path != "" {
		cmd.Env = append(cmd.Environ(), "PYTHONPATH="+o.path)
	}
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return &absentError{fmt.Sprintf("torch cannot be used: %v: %s", err, lastLine(string(exit.Stderr)))}
		}
		return &absentError{fmt.Sprintf("%s cannot be run: %v", o.python, err)}
	}
	var says struct {
		Error, Python, Version string
		CUDA                   bool
		Count                  int
	}
	if err := json.Unmarshal(out, &says); err != nil {
		return fmt.Errorf("cannot read what torch says: %w", err)
	}
	switch {
	case says.Error != "":
		return &absentError{says.Error}
	case !says.CUDA || says.Count == 0:
		return &absentError{fmt.Sprintf("torch %s does not see a GPU (a build without CUDA?)", says.Version)}
	}
	m.Torch, m.Python = says.Version, says.Python
	return nil
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// usedMB is what the driver says is in use of a card, now.
func (m *machine) usedMB(c *card) (float64, error) {
	mem, ret := c.device.GetMemoryInfo()
	if ret != nvml.SUCCESS {
		return 0, fmt.Errorf("cannot read the memory of GPU %s: %v", c.UUID, m.lib.ErrorString(ret))
	}
	return float64(mem.Used) / mib, nil
}

func (m *machine) card(uuid string) *card {
	for _, c := range m.Cards {
		if c.UUID == uuid {
			return c
		}
	}
	return nil
}

// reading is what was in use of a card at a time, and which of some processes lived.
type reading struct {
	at    time.Time
	used  float64
	alive []bool
}

// watch reads a card and looks for processes often until stop is called, which
// returns the readings.
func (m *machine) watch(ctx context.Context, c *card, pids ...int) (stop func() []reading) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan []reading, 1)
	go func() {
		var seen []reading
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			r := reading{at: time.Now()}
			for _, pid := range pids {
				r.alive = append(r.alive, syscall.Kill(pid, 0) == nil)
			}
			if used, err := m.usedMB(c); err == nil {
				r.used = used
				seen = append(seen, r)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				done <- seen
				return
			}
		}
	}()
	return func() []reading {
		cancel()
		return <-done
	}
}
