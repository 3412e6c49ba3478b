package main

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cjmd/cjmd/internal/config"
	"github.com/cjmd/cjmd/internal/isolation"
	"github.com/cjmd/cjmd/internal/plugins"
)

// hiddenDirs are the daemon's own, of which a sandboxed worker sees nothing but
// what view grants.
func hiddenDirs(cfg *config.Config) []string {
	return []string{cfg.StateDir, cfg.RunDir, cfg.LogDir, cfg.CacheDir, cfg.DataDir(), cfg.ModelsDir()}
}

// view is what a sandboxed worker sees: its code and its interpreter, directories
// of its own, the models that all share, and the nodes of its accelerators.
func (s *specs) view(man plugins.Manifest, wish plugins.Isolation, command []string, dirs plugins.EnvDirs, devices []string) isolation.View {
	v := isolation.View{
		Own:     []string{dirs.Data, dirs.Cache},
		Shared:  []string{dirs.Models},
		Network: wish.Network,
		Nodes:   acceleratorNodes("/", devices, man.Demand.RequiresGPU),
	}
	read := slices.Concat([]string{s.runtime}, man.CodeDirs, wish.Read)
	program := command[0]
	if man.Runtime == runtimeExec {
		// The worker is the daemon's binary, which needs nothing around it; the program
		// may be one of an environment, and its files may be beside the manifest.
		read = append(read, filepath.Dir(program), filepath.Dir(man.Path))
		program = man.Command[0]
	}
	read = append(read, programDirs(program)...)
	for _, dir := range read {
		if _, err := os.Stat(dir); err == nil && !slices.Contains(v.Read, dir) {
			v.Read = append(v.Read, dir)
		}
	}
	return v
}

// programDirs are the directories without which a program does not run: its own
// and, for an interpreter of an environment, those of the environment and of the
// installation that it was made from.
func programDirs(program string) []string {
	if !filepath.IsAbs(program) {
		return nil
	}
	dirs := []string{filepath.Dir(program)}
	prefix := func(bin string) {
		if filepath.Base(bin) == "bin" && filepath.Dir(bin) != "/" {
			dirs = append(dirs, filepath.Dir(bin))
		}
	}
	prefix(filepath.Dir(program))
	if real, err := filepath.EvalSymlinks(program); err == nil {
		dirs = append(dirs, filepath.Dir(real))
		prefix(filepath.Dir(real))
	}
	// The environment itself may be reached through a link, and says where it comes from.
	for _, env := range slices.Clone(dirs) {
		if real, err := filepath.EvalSymlinks(env); err == nil {
			dirs = append(dirs, real)
		}
		if home := pyvenvHome(filepath.Join(env, "pyvenv.cfg")); home != "" {
			dirs = append(dirs, home)
			prefix(home)
		}
	}
	return dirs
}

// pyvenvHome is the "home" of a virtual environment, "" where there is none.
func pyvenvHome(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if key, value, ok := strings.Cut(sc.Text(), "="); ok && strings.TrimSpace(key) == "home" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// acceleratorNodes are the device nodes of the accelerators that a worker was
// placed on, and those of the driver as a whole that every user of it opens.
// Without a placement a worker that needs an accelerator gets all of them, as it
// sees all of them in every other tier, and one that does not gets none. root is
// "/" but for tests.
func acceleratorNodes(root string, devices []string, needsGPU bool) []string {
	if len(devices) == 0 && !needsGPU {
		return nil
	}
	glob := func(patterns ...string) (nodes []string) {
		for _, p := range patterns {
			found, _ := filepath.Glob(filepath.Join(root, p)) // the patterns are well formed
			nodes = append(nodes, found...)
		}
		return nodes
	}
	nodes := glob("dev/nvidiactl", "dev/nvidia-uvm", "dev/nvidia-uvm-tools", "dev/nvidia-modeset", "dev/kfd")
	every := func() { nodes = append(nodes, glob("dev/nvidia[0-9]*", "dev/nvidia-caps/*", "dev/dri/renderD*")...) }
	if len(devices) == 0 {
		every()
		return nodes
	}
	byID := nodesByID(root)
	for _, id := range devices {
		node, ok := byID[id]
		if !ok { // a part of a card (MIG), or one known by its index alone
			every()
			break
		}
		nodes = append(nodes, node)
	}
	slices.Sort(nodes)
	return slices.Compact(nodes)
}

// nodesByID maps what monitors call a card to its device node, as the drivers
// tell it without a library.
func nodesByID(root string) map[string]string {
	byID := map[string]string{}
	infos, _ := filepath.Glob(filepath.Join(root, "proc/driver/nvidia/gpus/*/information"))
	for _, info := range infos {
		text, err := os.ReadFile(info)
		if err != nil {
			continue
		}
		fields := map[string]string{}
		for line := range strings.Lines(string(text)) {
			if key, value, ok := strings.Cut(line, ":"); ok {
				fields[strings.TrimSpace(key)] = strings.TrimSpace(value)
			}
		}
		if uuid, minor := fields["GPU UUID"], fields["Device Minor"]; uuid != "" && minor != "" {
			byID[uuid] = filepath.Join(root, "dev/nvidia"+minor)
		}
	}
	numbers, _ := filepath.Glob(filepath.Join(root, "sys/class/drm/renderD*/device/unique_id"))
	for _, path := range numbers {
		if id, err := os.ReadFile(path); err == nil {
			node := filepath.Base(filepath.Dir(filepath.Dir(path)))
			byID["GPU-"+strings.TrimSpace(string(id))] = filepath.Join(root, "dev/dri", node)
		}
	}
	return byID
}
