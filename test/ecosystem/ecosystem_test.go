//go:build ecosystem

package ecosystem

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cjmd/cjmd/internal/api/wire"
	"github.com/cjmd/cjmd/internal/client"
	"github.com/cjmd/cjmd/internal/plugins"
	"github.com/cjmd/cjmd/test/daemontest"
)

// What run.sh tells by its environment.
const (
	envManifests = "ECOSYSTEM_MANIFESTS" // DIR/ENVIRONMENT/*.json, written by the environments' own installers
	envNLTK      = "ECOSYSTEM_NLTK"      // data for NLTK's sentence splitter
	envTable     = "ECOSYSTEM_TABLE"     // file for the compatibility table
)

func TestMain(m *testing.M) {
	code := m.Run()
	daemontest.Cleanup()
	os.Exit(code)
}

// TestPublished runs every plugin on both transports: one daemon for each
// environment and transport.
func TestPublished(t *testing.T) {
	manifests := os.Getenv(envManifests)
	if manifests == "" {
		t.Skip(envManifests + " is not set: run make ecosystem")
	}
	var rows []row
	for _, env := range environments() {
		for _, transport := range []string{"native", "http"} {
			t.Run(env+"/"+transport, func(t *testing.T) {
				dir := filepath.Join(manifests, env)
				if _, err := os.Stat(dir); err != nil {
					t.Skipf("the environment %s was not made", env)
				}
				paths := dir
				if transport == "http" {
					paths = overHTTP(t, dir)
				}
				d := daemontest.New(t, daemontest.Options{Config: map[string]any{"plugins.paths": []string{paths}}})
				bringData(t, d)
				d.Launch(t)
				for _, p := range all {
					if p.env == env {
						rows = append(rows, run(t, d, p, transport, readManifest(t, filepath.Join(dir, p.name+".json"))))
					}
				}
			})
		}
	}
	complete := len(rows) == 2*len(all) // a table of some would look like one of all
	if path := os.Getenv(envTable); path != "" && complete && !t.Failed() {
		if err := os.WriteFile(path, []byte(table(rows)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// bringData puts NLTK's data where the plugin's own directory will be.
func bringData(t *testing.T, d *daemontest.Daemon) {
	t.Helper()
	own := filepath.Join(d.State, "data", "cjm-text-plugin-nltk")
	if err := os.MkdirAll(own, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(os.Getenv(envNLTK), filepath.Join(own, "nltk_data")); err != nil {
		t.Fatal(err)
	}
}

// environments are those of all, in its order.
func environments() []string {
	var out []string
	for _, p := range all {
		if !slices.Contains(out, p.env) {
			out = append(out, p.env)
		}
	}
	return out
}

func run(t *testing.T, d *daemontest.Daemon, p published, transport string, m *plugins.Manifest) row {
	r := row{plugin: p.name, env: p.env, transport: transport, python: pythonVersion(t, m.PythonPath)}
	r.version = packageVersion(t, p.env, p.name)
	check := func(what string, f func(c caller)) result {
		if f == nil {
			return notOffered
		}
		ok := t.Run(p.name+"/"+what, func(t *testing.T) {
			f(caller{t: t, s: d.Session(t), plugin: p.name})
		})
		if !ok {
			return broken
		}
		return works
	}
	r.unary, r.stream, r.cancel = check("unary", p.unary), check("stream", p.stream), check("cancel", p.cancel)
	r.config = check("config", p.config)
	if p.monitor {
		r.monitor = check("monitor", asMonitor)
	}
	return r
}

// asMonitor makes the plugin the system monitor and reads the machine through it.
func asMonitor(c caller) {
	daemontest.Must[json.RawMessage](c.t)(c.s.API.PutMonitor(c.s.Ctx(), wire.MonitorRequest{Name: "plugin:" + c.plugin}))
	samples := c.s.Stream("/v1/events?samples=true")
	samples.Await(func(client.Event) bool {
		for _, m := range daemontest.Must[wire.Monitors](c.t)(c.s.API.ListMonitors(c.s.Ctx())).Monitors {
			if m.Registered && m.Error != "" {
				c.t.Fatalf("the monitor says: %s", m.Error)
			}
			if m.Registered && m.State == "fresh" {
				return true
			}
		}
		return false
	})
	var system map[string]any
	if err := json.Unmarshal([]byte(c.s.Text("/v1/system")), &system); err != nil {
		c.t.Fatal(err)
	}
	equal(c.t, system["monitor"], "plugin:"+c.plugin)
	plausible(c.t, system)
	back := daemontest.Must[json.RawMessage](c.t)
	back(c.s.API.PutMonitor(c.s.Ctx(), wire.MonitorRequest{Name: "cpu"}))
}

// overHTTP writes the manifests again with runtime: http, as their owner would.
func overHTTP(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("cannot find manifests in %s: %v", dir, err)
	}
	out := t.TempDir()
	adapters := adaptersIn(t, files)
	for _, file := range files {
		if isAdapter(file) {
			continue
		}
		m := readManifest(t, file)
		v3 := map[string]any{
			"format_version": "3", "name": m.Name, "version": m.Version, "runtime": "http", "module": m.Module, "class": m.Class,
			"python_path": m.PythonPath, "env_vars": m.Env, "config_schema": m.Schema, "adapters": fitting(m.Name, adapters),
		}
		for key, value := range v3 {
			if reflect.ValueOf(value).Len() == 0 {
				delete(v3, key)
			}
		}
		b, err := json.Marshal(v3)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(out, filepath.Base(file)), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func isAdapter(file string) bool { return strings.HasPrefix(filepath.Base(file), "adapter-") }

// adaptersIn are "module:Class" of the adapter manifests among files.
func adaptersIn(t *testing.T, files []string) []string {
	t.Helper()
	var out []string
	for _, file := range files {
		if !isAdapter(file) {
			continue
		}
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var a struct{ Module, Class string }
		if err := json.Unmarshal(content, &a); err != nil {
			t.Fatal(err)
		}
		out = append(out, a.Module+":"+a.Class)
	}
	return out
}

// fitting are the adapters of the kind of work that a capability's name tells.
func fitting(name string, adapters []string) []string {
	kinds := map[string]string{"graph": "graph_storage", "pysbd": "sentence_segmentation", "ffmpeg": "media_processing"}
	var out []string
	for part, kind := range kinds {
		for _, adapter := range adapters {
			if strings.Contains(name, part) && strings.Contains(adapter, kind) {
				out = append(out, adapter)
			}
		}
	}
	return out
}

func readManifest(t *testing.T, path string) *plugins.Manifest {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := plugins.ParseManifest(path, content)
	if err != nil {
		t.Fatal(err)
	}
	return m
}
