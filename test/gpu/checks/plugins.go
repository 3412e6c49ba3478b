package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
)

// plugin is one manifest of the checks; sizes in MiB.
type plugin struct {
	name      string
	class     string
	resident  float64
	needs     float64 // min_gpu_vram_mb; 0: the manifest says nothing
	cards     int
	anywhere  bool // not pinned to the card of the checks
	withoutGP bool
	countsTo  string // file that counts its loads
}

func (s *session) manifests() []plugin {
	z := s.size
	return []plugin{
		{name: "alloc", resident: z.small, needs: z.small + z.context},
		{name: "share", resident: z.small, needs: z.small + z.context},
		{name: "big", resident: z.big, needs: z.big + z.context},
		{name: "unknown", resident: z.tiny},
		{name: "huge", resident: z.tiny, needs: math.Floor(1.5 * s.largest())},
		{name: "loadoom", resident: math.Floor(2 * z.total), needs: z.tiny + z.context, countsTo: s.file("loadoom.loads")},
		{name: "runoom", resident: z.tiny, needs: z.tiny + z.context},
		{name: "leak", resident: z.tiny, needs: z.tiny + z.context},
		{name: "pair", resident: z.tiny, needs: z.tiny + z.context, cards: 2, anywhere: true},
		{name: "nogpu", class: "NoGPU", withoutGP: true, anywhere: true},
	}
}

func (s *session) largest() float64 {
	largest := 0.0
	for _, c := range s.m.Cards {
		largest = math.Max(largest, c.TotalMB)
	}
	return largest
}

// file is a path in the private directory.
func (s *session) file(name string) string { return filepath.Join(s.dir, name) }

// writePlugins writes the manifests, sized for this machine, and the module.
func (s *session) writePlugins() error {
	dir := s.file("plugins")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("cannot make the directory of the plugins: %w", err)
	}
	code, err := os.ReadFile(filepath.Join(s.o.plugins, "gpu_plugin.py"))
	if err != nil {
		return fmt.Errorf("cannot read the plugin: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "gpu_plugin.py"), code, 0o644); err != nil {
		return fmt.Errorf("cannot write the plugin: %w", err)
	}
	for _, p := range s.manifests() {
		text, err := json.MarshalIndent(s.manifest(p), "", "  ")
		if err != nil {
			return fmt.Errorf("cannot encode a manifest: %w", err)
		}
		if err := os.WriteFile(filepath.Join(dir, p.name+".json"), text, 0o644); err != nil {
			return fmt.Errorf("cannot write a manifest: %w", err)
		}
	}
	return nil
}

func (s *session) manifest(p plugin) map[string]any {
	paths := []string{"."}
	if s.o.path != "" {
		paths = append(paths, s.o.path)
	}
	class := "Tensor"
	if p.class != "" {
		class = p.class
	}
	needs := map[string]any{"requires_gpu": !p.withoutGP}
	if p.needs > 0 {
		needs["min_gpu_vram_mb"] = p.needs
	}
	devices := map[string]any{}
	if p.cards > 0 {
		devices["count"] = p.cards
	}
	if !p.anywhere {
		devices["pin"] = []string{s.card.UUID}
	}
	m := map[string]any{
		"format_version": "3", "name": p.name, "version": "1.0.0", "description": "For checking the scheduler on a real GPU", "category": "testing",
		"module": "gpu_plugin", "class": class, "path": paths, "python_path": s.m.Python, "resources": needs,
		"config_schema": map[string]any{"type": "object", "properties": map[string]any{
			"resident_mb": map[string]any{"type": "number", "default": p.resident},
			"count_loads": map[string]any{"type": "string", "default": p.countsTo},
		}},
		"timeouts": map[string]any{"start": "3m", "stall": "2m"},
	}
	if len(devices) > 0 {
		m["devices"] = devices
	}
	return m
}
