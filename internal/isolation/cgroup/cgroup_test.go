package cgroup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cjmd/cjmd/internal/isolation"
)

// fake is a directory with the files of a cgroup that has these controllers.
func fake(t *testing.T, controllers ...string) string {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{
		"cgroup.controllers": strings.Join(controllers, " ") + "\n", "cgroup.subtree_control": "\n", "cgroup.procs": "",
	}
	for _, c := range controllers {
		for _, f := range map[string][]string{
			"memory": {"memory.max", "memory.high", "memory.oom.group", "memory.swap.max"},
			"pids":   {"pids.max"}, "cpu": {"cpu.weight", "cpu.max"}, "io": {"io.weight"},
		}[c] {
			files[f] = "max\n"
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func content(t *testing.T, dir, file string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func byName(facts []isolation.Fact) map[string]isolation.Fact {
	m := map[string]isolation.Fact{}
	for _, f := range facts {
		m[f.Mechanism] = f
	}
	return m
}

func nothingMissing(string) string { return "" }

func TestApply_WritesWhatTheKernelTakes(t *testing.T) {
	t.Parallel()
	dir := fake(t, "memory", "pids", "cpu")
	facts := byName(Apply(dir, Limits{MemoryMax: 1<<30 + 1000, PidsMax: 200, CPUWeight: 50, CPUMax: 1.5}, nothingMissing))
	for file, want := range map[string]string{
		"memory.max": "1073741824", "memory.high": "1006632960", "memory.oom.group": "1", "memory.swap.max": "0",
		"pids.max": "200", "cpu.weight": "50", "cpu.max": "150000 100000",
	} {
		if got := content(t, dir, file); got != want {
			t.Errorf("%s holds %q, want %q", file, got, want)
		}
	}
	if len(facts) != 7 {
		t.Errorf("facts %v", facts)
	}
	for name, f := range facts {
		if !f.Requested || !f.InForce || f.VerifiedBy == "" || f.Detail == "" {
			t.Errorf("%s: %+v", name, f)
		}
	}
	if facts["memory"].Detail != "1024 MiB" || facts["cpu_max"].Detail != "1.5 processors" {
		t.Errorf("details %q, %q", facts["memory"].Detail, facts["cpu_max"].Detail)
	}
}

func TestApply_NothingAskedNothingSet(t *testing.T) {
	t.Parallel()
	dir := fake(t, "memory", "pids")
	if facts := Apply(dir, Limits{}, nothingMissing); len(facts) != 0 || content(t, dir, "memory.max") != "max" {
		t.Errorf("facts %v, memory.max %q", facts, content(t, dir, "memory.max"))
	}
}

func TestApply_AMissingControllerIsToldWithItsReason(t *testing.T) {
	t.Parallel()
	dir := fake(t, "pids")
	facts := byName(Apply(dir, Limits{MemoryMax: 1 << 30, PidsMax: 5}, func(c string) string { return "no " + c + " here" }))
	if f := facts["memory"]; f.InForce || f.Detail != "no memory here" {
		t.Errorf("memory: %+v", f)
	}
	if len(facts) != 2 {
		t.Errorf("one missing controller is told more than once: %v", facts)
	}
	if !facts["pids"].InForce {
		t.Errorf("pids: %+v", facts["pids"])
	}
	if _, err := os.Stat(filepath.Join(dir, "memory.max")); err == nil {
		t.Error("a file was made that the kernel does not have")
	}
}

func TestApply_AKernelWithoutSwapAccountingHoldsTheLimit(t *testing.T) {
	t.Parallel()
	dir := fake(t, "memory")
	if err := os.Remove(filepath.Join(dir, "memory.swap.max")); err != nil {
		t.Fatal(err)
	}
	for _, f := range Apply(dir, Limits{MemoryMax: 1 << 30}, nothingMissing) {
		if !f.InForce {
			t.Errorf("%+v", f)
		}
	}
}

// io.weight reads back in another form than it is written in; a fake keeps what
// was written, which is exactly a kernel that took something else.
func TestApply_WhatReadsBackDifferentlyIsNotInForce(t *testing.T) {
	t.Parallel()
	facts := Apply(fake(t, "io"), Limits{IOWeight: 300}, nothingMissing)
	if len(facts) != 1 || facts[0].InForce || !strings.Contains(facts[0].Detail, `holds "300"`) {
		t.Errorf("%+v", facts)
	}
}

func TestEnable_TellsWhatIsNotThere(t *testing.T) {
	t.Parallel()
	dir := fake(t, "memory", "cpu")
	// A plain file keeps the last write only: "+cpu", not a list with it. So each
	// is reported as not taken, which is what a kernel that ignores writes is like.
	missing := Enable(dir)
	if !strings.Contains(missing["pids"], "not available") || !strings.Contains(missing["memory"], "is not there") {
		t.Errorf("%v", missing)
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("cpu memory\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if missing = Enable(dir); len(missing) != 2 || missing["memory"] != "" || content(t, dir, "cgroup.subtree_control") != "cpu memory" {
		t.Errorf("%v; an enabled controller is enabled again", missing)
	}
}

func TestProcesses_AndMove(t *testing.T) {
	t.Parallel()
	dir := fake(t)
	if err := Move(dir, 42); err != nil {
		t.Fatal(err)
	}
	if pids, err := Processes(dir); err != nil || len(pids) != 1 || pids[0] != 42 {
		t.Errorf("%v %v", pids, err)
	}
	if _, err := Processes(filepath.Join(dir, "nowhere")); err == nil {
		t.Error("a cgroup that is not there has processes")
	}
	if err := Move(filepath.Join(dir, "nowhere"), 1); err == nil {
		t.Error("a cgroup that is not there takes processes")
	}
}
