package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestConfig_CheckSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	dir, env := home(t)
	file := filepath.Join(dir, "cjmd.yaml")
	if err := os.WriteFile(file, []byte("jobs: {max_pendin: 5}\nlog: {level: loud}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := once(t, env, "config", "check", "--config", file)
	if code != 1 || !strings.Contains(stderr, "jobs.max_pendin") || !strings.Contains(stderr, "max_pending") || !strings.Contains(stderr, "loud") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if err := os.WriteFile(file, []byte("jobs: {max_pending: 5}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, stdout, stderr := once(t, env, "config", "check", "--config", file); code != 0 || stdout != "ok: "+file+"\n" {
		t.Errorf("exit code %d: %s %s", code, stdout, stderr)
	}
}

func TestConfig_ShowSaysWhereEachValueComesFrom(t *testing.T) {
	t.Parallel()
	dir, env := home(t)
	file := filepath.Join(dir, "cjmd.yaml")
	if err := os.WriteFile(file, []byte("jobs: {max_pending: 5}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := once(t, append(env, "CJMD_LOG_LEVEL=warn"), "config", "show", "--json", "--config", file, "--listen", "none")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	var rows []map[string]any
	if err := json.Unmarshal([]byte(stdout), &rows); err != nil {
		t.Fatal(err)
	}
	_, table, _ := once(t, append(env, "CJMD_LOG_LEVEL=warn"), "config", "show", "--config", file, "--listen", "none")
	for key, want := range map[string][]string{
		"jobs.max_pending": {"5", "cjmd.yaml"}, "log.level": {"warn", "CJMD_LOG_LEVEL"}, "server.listen": {"none", "--listen"}, "jobs.max_attempts": {"3", "default"},
	} {
		line := ""
		for l := range strings.Lines(table) {
			if strings.HasPrefix(l, key+" ") {
				line = l
			}
		}
		for _, w := range want {
			if !strings.Contains(line, w) {
				t.Errorf("%s: %q has no %q", key, line, w)
			}
		}
		if !strings.Contains(stdout, `"`+key+`"`) {
			t.Errorf("no %s in JSON", key)
		}
	}
}

func TestWorkerCheck_ExitCodeSaysWhetherItConforms(t *testing.T) {
	t.Parallel()
	_, env := home(t)
	if code, _, stderr := once(t, env, "worker-check"); code != 1 || !strings.Contains(stderr, "cjmd: ") {
		t.Errorf("without a command: %d %s", code, stderr)
	}
	code, stdout, stderr := once(t, env, "worker-check", "--json", "--timeout", "5s", "--", "/bin/false")
	if code != 1 || !json.Valid([]byte(stdout)) {
		t.Errorf("a program that is no worker: %d %s %s", code, stdout, stderr)
	}
}

func TestVersion_IsOneLine(t *testing.T) {
	t.Parallel()
	_, env := home(t)
	if code, stdout, _ := once(t, env, "--version"); code != 0 || strings.Count(stdout, "\n") != 1 || !strings.Contains(stdout, version) {
		t.Errorf("%d %q", code, stdout)
	}
}
