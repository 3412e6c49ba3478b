package main

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/cjmd/cjmd/internal/api/wire"
)

// holdingFlags are the flags that say how strongly a worker is held and what it
// may use.
type holdingFlags struct {
	cmd                          *cobra.Command
	tier, network, memory        string
	require, read                []string
	pids, cpuWeight, ioWeight    int
	noFile                       int
	cpus                         float64
	asManifest, limitsAsManifest bool
}

func addHolding(cmd *cobra.Command) *holdingFlags {
	h := &holdingFlags{cmd: cmd}
	f := cmd.Flags()
	f.StringVar(&h.tier, "isolation", "", "tier of isolation: auto, 0 none, 1 basic, 2 contained, 3 sandboxed")
	f.StringSliceVar(&h.require, "require", nil, "do not start without these in force: memory, pids, fs, net, gpu")
	f.StringVar(&h.network, "network", "", "what tier 3 shows of the network: host, none or loopback")
	f.StringSliceVar(&h.read, "read", nil, "what tier 3 shows besides the worker's own directories")
	f.StringVar(&h.memory, "memory-max", "", "most memory of its process tree: 4G")
	f.IntVar(&h.pids, "pids-max", 0, "most processes and threads")
	f.Float64Var(&h.cpus, "cpu-max", 0, "most processors: 1.5")
	f.IntVar(&h.cpuWeight, "cpu-weight", 0, "share of the processors under load; 100 is the usual one")
	f.IntVar(&h.ioWeight, "io-weight", 0, "share of the disks under load; 100 is the usual one")
	f.IntVar(&h.noFile, "nofile", 0, "most open files of one process")
	f.BoolVar(&h.asManifest, "isolation-of-manifest", false, "forget every wish about isolation but the manifest's")
	f.BoolVar(&h.limitsAsManifest, "limits-of-manifest", false, "forget every limit but the manifest's")
	return h
}

// any reports whether one of the flags was given.
func (h *holdingFlags) any(names ...string) bool {
	for _, name := range names {
		if h.cmd.Flags().Changed(name) {
			return true
		}
	}
	return false
}

// wish lays what was given over what is there; nil when nothing was given.
func (h *holdingFlags) wish(now *wire.IsolationWish) (*wire.IsolationWish, error) {
	if h.asManifest {
		return &wire.IsolationWish{}, nil
	}
	if !h.any("isolation", "require", "network", "read") {
		return nil, nil
	}
	var out wire.IsolationWish
	if now != nil {
		out = *now
	}
	f := h.cmd.Flags()
	if f.Changed("isolation") {
		out.Tier = h.tier
	}
	if f.Changed("require") {
		out.Require = h.require
	}
	if f.Changed("network") {
		out.Network = h.network
	}
	if f.Changed("read") {
		out.Read = nil
		for _, path := range h.read {
			abs, err := filepath.Abs(path)
			if err != nil {
				return nil, err
			}
			out.Read = append(out.Read, abs)
		}
	}
	return &out, nil
}

// limits does the same for the limits.
func (h *holdingFlags) limits(now *wire.WorkerLimits) (*wire.WorkerLimits, error) {
	if h.limitsAsManifest {
		return &wire.WorkerLimits{}, nil
	}
	if !h.any("memory-max", "pids-max", "cpu-max", "cpu-weight", "io-weight", "nofile") {
		return nil, nil
	}
	var out wire.WorkerLimits
	if now != nil {
		out = *now
	}
	f := h.cmd.Flags()
	if f.Changed("memory-max") {
		mb, err := parseSize(h.memory)
		if err != nil {
			return nil, err
		}
		out.MemoryMaxMb = int64(mb)
	}
	if f.Changed("cpu-max") {
		out.CpuMax = h.cpus
	}
	for name, to := range map[string]struct {
		value int
		field *int
	}{
		"pids-max": {h.pids, &out.PidsMax}, "cpu-weight": {h.cpuWeight, &out.CpuWeight},
		"io-weight": {h.ioWeight, &out.IoWeight}, "nofile": {h.noFile, &out.Nofile},
	} {
		if f.Changed(name) {
			*to.field = to.value
		}
	}
	return &out, nil
}
