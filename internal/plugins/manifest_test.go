package plugins

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"

	"github.com/cjmd/cjmd/internal/resource"
)

const v1Whisper = `{
  "name": "cjm-transcription-plugin-whisper", "version": "0.0.9", "type": "python", "category": "transcription",
  "interface": "cjm_transcription.plugin_interface.TranscriptionPlugin",
  "module": "cjm_whisper.plugin", "class": "WhisperPlugin",
  "python_path": "/opt/envs/whisper/bin/python", "db_path": "/data/whisper.db", "description": null, "conda_env": "whisper",
  "resources": {"requires_gpu": true, "min_gpu_vram_mb": 4096, "recommended_gpu_vram_mb": 8192, "min_system_ram_mb": 2048.5},
  "env_vars": {"CUDA_VISIBLE_DEVICES": "0"},
  "config_schema": {"type": "object", "properties": {"model": {"type": "string", "default": "base"}}},
  "something_new": [1, 2]
}`

const v2Voxtral = `{
  "format_version": "2.0",
  "install": {"python_path": "/envs/v/bin/python", "conda_env": "v", "db_path": null, "env_vars": {"A": "1", "HF_HOME": "/old"}, "installed_at": "2026-05-22"},
  "code": {
    "name": "cjm-voxtral", "version": "0.0.12", "description": "speech", "module": "v.plugin", "class": "V",
    "taxonomy": {"domain": "transcription", "role": "tool", "interface_fqcn": "a.b.C"},
    "resources": {"requires_gpu": true, "platforms": ["linux-x64"], "accelerators": ["cuda"]},
    "config_schema": {"properties": {}},
    "worker_env": [
      {"name": "HF_HOME", "default": "${CJM_MODELS_DIR}/huggingface", "label": "cache"},
      {"name": "HF_TOKEN", "secret": true, "required": true},
      {"name": "EXTRA_KEY", "secret": true}
    ]
  },
  "drift_tracking": {"config_schema_hash": "sha256:00"}, "overrides": {}
}`

const v3Speech = `
name: speech
version: 1.2.0
module: speech.plugin
class: Speech
path: [., ../shared]
env: {manager: uv, python: "3.11", requirements: [pocketsphinx]}
env_vars: {MODEL_ROOT: "${CJM_MODELS_DIR}/x"}
resources: {min_system_ram_mb: 300}
devices: {count: 2, pin: [0, GPU-1], avoid: ['3']}
config_schema:
  type: object
  properties: {lang: {type: string, default: en}}
strict: true
secrets: [API_KEY, {name: OTHER, required: false}]
concurrency: 2
isolation: {tier: "2", require: [memory]}
limits: {memory_max_mb: 1000, pids_max: 50, nofile: 1024, nice: -5}
retry: {max_attempts: 1}
timeouts: {start: 10m, stall: 30s, run: 1h, cancel_grace: 1s, interrupt_grace: 500ms, stop_grace: 3s}
`

func TestParse_V1(t *testing.T) {
	t.Parallel()
	m, err := ParseManifest("/m/w.json", []byte(v1Whisper))
	require.NoError(t, err)
	require.Equal(t, "v1", m.Format)
	require.Equal(t, "cjm-transcription-plugin-whisper", m.Name)
	require.Equal(t, []string{"transcription", "cjm_whisper.plugin", "WhisperPlugin", "/opt/envs/whisper/bin/python", "/data/whisper.db", ""},
		[]string{m.Category, m.Module, m.Class, m.PythonPath, m.DBPath, m.Description})
	require.Equal(t, resource.Demand{RequiresGPU: true, MinVRAM: 4096 * resource.MiB, MinRAM: resource.FromMB(2048.5)}, m.Demand)
	require.Equal(t, map[string]string{"CUDA_VISIBLE_DEVICES": "0"}, m.Env)
	require.JSONEq(t, `{"type":"object","properties":{"model":{"type":"string","default":"base"}}}`, string(m.Schema))
	require.Contains(t, string(m.Raw), "something_new")
	require.Empty(t, m.Warnings)
	require.Equal(t, 1, m.Concurrency)

	// Without requires_gpu the number counts for nothing, as it always did.
	m, err = ParseManifest("w.json", []byte(`{"name":"n","module":"m","class":"C","python_path":"/p","resources":{"min_gpu_vram_mb":9},"runtime":"exec"}`))
	require.NoError(t, err)
	require.Zero(t, m.Demand)
	require.Equal(t, []string{`runtime exec is not read here; add "format_version": "3" for it`}, m.Warnings)
}

func TestParse_V2(t *testing.T) {
	t.Parallel()
	m, err := ParseManifest("/m/v.json", []byte(v2Voxtral))
	require.NoError(t, err)
	require.Equal(t, "v2", m.Format)
	require.Equal(t, []string{"cjm-voxtral", "transcription", "a.b.C", "v.plugin", "V", "/envs/v/bin/python"},
		[]string{m.Name, m.Category, m.Interface, m.Module, m.Class, m.PythonPath})
	require.Equal(t, map[string]string{"A": "1", "HF_HOME": "${CJM_MODELS_DIR}/huggingface"}, m.Env)
	require.Equal(t, []string{"HF_TOKEN"}, m.Secrets)
	require.Equal(t, []string{"EXTRA_KEY"}, m.OptionalSecrets)
	require.True(t, m.Demand.RequiresGPU)
}

func TestParse_V3(t *testing.T) {
	t.Parallel()
	m, err := ParseManifest("/plugins/speech/manifest.yaml", []byte(v3Speech))
	require.NoError(t, err)
	require.Equal(t, "v3", m.Format)
	require.Equal(t, "native", m.Runtime)
	require.Empty(t, m.PythonPath)
	require.Equal(t, []string{"/plugins/speech", "/plugins/shared"}, m.CodeDirs)
	require.JSONEq(t, `{"manager":"uv","python":"3.11","requirements":["pocketsphinx"]}`, string(m.EnvSpec))
	require.Equal(t, resource.Demand{Devices: 2, MinRAM: 300 * resource.MiB}, m.Demand)
	require.True(t, m.Strict)
	require.Equal(t, []string{"API_KEY"}, m.Secrets)
	require.Equal(t, []string{"OTHER"}, m.OptionalSecrets)
	require.Equal(t, 2, m.Concurrency)
	require.Equal(t, Isolation{Tier: "2", Require: []string{"memory"}}, m.Isolation)
	require.Equal(t, Limits{MemoryMaxMB: 1000, PidsMax: 50, NoFile: 1024, Nice: -5}, m.Limits)
	require.Equal(t, 1, m.MaxAttempts)
	require.Equal(t, Timeouts{10 * time.Minute, 30 * time.Second, time.Hour, time.Second, 500 * time.Millisecond, 3 * time.Second}, m.Timeouts)

	m, err = ParseManifest("/p/ff.json", []byte(`{"format_version":3,"name":"ff","runtime":"exec","command":["./run.sh","-x"],"path":"src"}`))
	require.NoError(t, err)
	require.Equal(t, []string{"/p/run.sh", "-x"}, m.Command)
	require.Equal(t, []string{"/p/src"}, m.CodeDirs)
}

func TestParse_HashIsOfTheContentNotTheLayout(t *testing.T) {
	t.Parallel()
	a, err := ParseManifest("a.json", []byte(`{"format_version":"3","name":"n","module":"m","class":"C"}`))
	require.NoError(t, err)
	b, err := ParseManifest("b.json", []byte("{\n \"class\":\"C\", \"module\":\"m\",\n\"name\":\"n\",\"format_version\":\"3\"}\n"))
	require.NoError(t, err)
	c, err := ParseManifest("a.json", []byte(`{"format_version":"3","name":"n","module":"m","class":"D"}`))
	require.NoError(t, err)
	require.Equal(t, a.Hash, b.Hash)
	require.NotEqual(t, a.Hash, c.Hash)
}

func TestParse_BadFilesSayKeyAndWayOut(t *testing.T) {
	t.Parallel()
	const v1 = `"module":"m","class":"C","python_path":"/p"`
	for name, tc := range map[string]struct{ file, content, want string }{
		"not JSON":               {"x.json", "{\n\"a\": tru}", "is no JSON: line 2"},
		"cut off":                {"x.json", `{"name": "x"`, "ends too early"},
		"empty":                  {"x.json", ``, "ends too early"},
		"empty YAML":             {"x.yaml", "# nothing\n", "is empty"},
		"not an object":          {"x.json", `[1]`, "must be one object"},
		"text after it":          {"x.json", `{"name":"x"} {}`, "text after its end"},
		"duplicate key":          {"x.json", `{"resources": {"a": 1, "a": 2}}`, `the key "resources.a" twice`},
		"duplicate YAML key":     {"x.yaml", "name: a\nname: b\n", `already defined at line 1`},
		"two YAML documents":     {"x.yaml", "name: a\n---\nname: b\n", "more than one document"},
		"number as YAML key":     {"x.yaml", "name: a\nenv_vars: {1: a}\n", "a key that is no text"},
		"deep nesting":           {"x.json", strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100), "deeper than 64"},
		"deep YAML":              {"x.yaml", strings.Repeat(`{a: `, 100) + "1" + strings.Repeat("}", 100), "deeper than 64"},
		"future format":          {"x.json", `{"format_version":"4.0"}`, `format_version is "4.0"; this program reads 1, 2 and 3`},
		"v1 no name":             {"x.json", `{` + v1 + `}`, `name is missing; add it, like "my-plugin"`},
		"v1 no module and class": {"x.json", `{"name":"n","python_path":"/p"}`, `module is missing; add it, like "my_plugin.plugin"; class is missing`},
		"relative python_path":   {"x.json", `{"name":"n","module":"m","class":"C","python_path":"bin/python"}`, `python_path is "bin/python"; it must be the absolute path`},
		"env value no text":      {"x.json", `{"name":"n",` + v1 + `,"env_vars":{"A":1}}`, "env_vars.A must be text; put it in quotes"},
		"env name":               {"x.json", `{"name":"n",` + v1 + `,"env_vars":{"A=B":"1"}}`, "is no name of an environment variable"},
		"env of the daemon":      {"x.json", `{"name":"n",` + v1 + `,"env_vars":{"NOTIFY_SOCKET":"1"}}`, "is set by the daemon itself"},
		"name with slash":        {"x.json", `{"name":"a/b",` + v1 + `}`, `name is "a/b"; use 1 to 64`},
		"name with dots":         {"x.json", `{"name":"..",` + v1 + `}`, `name is ".."; use 1 to 64`},
		"name too long":          {"x.json", `{"name":"` + strings.Repeat("x", 65) + `",` + v1 + `}`, `use 1 to 64`},
		"name no text":           {"x.json", `{"name":7,` + v1 + `}`, `name must be text`},
		"quoted number":          {"x.json", `{"name":"n",` + v1 + `,"resources":{"min_system_ram_mb":"9"}}`, "resources.min_system_ram_mb must be a number without quotes"},
		"negative memory":        {"x.json", `{"name":"n",` + v1 + `,"resources":{"min_system_ram_mb":-9}}`, "must be 0 or more"},
		"resources no object":    {"x.json", `{"name":"n",` + v1 + `,"resources":[]}`, "resources must be an object"},
		"v2 without code":        {"x.json", `{"format_version":"2.0","install":{}}`, "code is missing"},
		"v2 without install":     {"x.json", `{"format_version":"2.0","code":{"name":"x"}}`, "install is missing"},
		"v2 keys are named":      {"x.json", `{"format_version":"2.0","install":{"python_path":"p"},"code":{"name":"x","module":"m","class":"C"}}`, "install.python_path is"},
		"v2 unknown template":    {"x.json", `{"format_version":"2.0","install":{"python_path":"/p"},"code":{"name":"x","module":"m","class":"C","worker_env":[{"name":"A","default":"${NOPE}"}]}}`, "code.worker_env[0].default uses"},
		"v3 unknown key":         {"x.yaml", "name: n\nmodule: m\nclass: C\ntimeout: {run: 1s}\n", `timeout is no known key (did you mean "timeouts"?)`},
		"v3 nested unknown key":  {"x.yaml", "name: n\nmodule: m\nclass: C\ntimeouts: {runn: 1s}\n", `timeouts.runn is no known key (did you mean "run"?)`},
		"v3 bare duration":       {"x.yaml", "name: n\nmodule: m\nclass: C\ntimeouts: {run: 30}\n", `timeouts.run must be a duration with its unit`},
		"v3 tier":                {"x.yaml", "name: n\nmodule: m\nclass: C\nisolation: {tier: strong}\n", "isolation.tier is \"strong\"; it must be one of auto, 0, 1, 2, 3"},
		"v3 exec needs command":  {"x.yaml", "name: n\nruntime: exec\n", "command is missing or empty"},
		"v3 schema no object":    {"x.yaml", "name: n\nmodule: m\nclass: C\nconfig_schema: true\n", "config_schema must be an object"},
		"v3 fraction":            {"x.yaml", "name: n\nmodule: m\nclass: C\nconcurrency: 1.5\n", "concurrency must be a whole number from 1 to 1024"},
		"v3 broken template":     {"x.yaml", "name: n\nmodule: m\nclass: C\nenv_vars: {A: \"${CJM_MODELS_DIR\"}\n", "env_vars.A uses"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := ParseManifest("/d/"+tc.file, []byte(tc.content))
			var me *ManifestError
			require.ErrorAs(t, err, &me)
			require.Contains(t, err.Error(), "cannot use manifest /d/"+tc.file)
			require.Contains(t, err.Error(), tc.want)
		})
	}
}

func TestParse_ASchemaThatIsNoneIsAWarning(t *testing.T) {
	t.Parallel()
	m, err := ParseManifest("x.json", []byte(`{"name":"n","module":"m","class":"C","python_path":"/p","config_schema":"none"}`))
	require.NoError(t, err)
	require.Nil(t, m.Schema)
	require.Equal(t, []string{"config_schema is no object: configurations are accepted unchecked"}, m.Warnings)

	m, err = ParseManifest("x.json", []byte(`{"name":"n","module":"m","class":"C","python_path":"/p","config_schema":{"properties":{"a":{"pattern":"(?=x)"}}}}`))
	require.NoError(t, err)
	require.Len(t, m.Warnings, 1)
	require.Contains(t, m.Warnings[0], "pattern of a cannot be checked")
}

func TestParse_RulesOfASchemaThatCannotBeCheckedAreTold(t *testing.T) {
	t.Parallel()
	m, err := ParseManifest("x.json", []byte(`{"name":"n","module":"m","class":"C","python_path":"/p","config_schema":{
		"type": "object", "required": "a",
		"properties": {
			"a": "integer", "b": {"type": 12, "enum": 5, "minimum": "x"}, "c": {"type": ["string", "nul"]},
			"d": {"type": "array", "items": {"type": "text"}}, "e": {"properties": [1]}, "f": {"properties": {"g": {"maxLength": []}}},
			"good": {"type": ["string", "null"], "enum": ["a"], "minLength": 1, "pattern": "a+"}, "any": true}}}`))
	require.NoError(t, err)
	require.Equal(t, []string{
		"config_schema: required is not a list, so it is not checked",
		"config_schema: a is no schema, so it is not checked",
		"config_schema: b: type is not a type of JSON or a list of them, so it is not checked",
		"config_schema: b: enum is not a list, so it is not checked",
		"config_schema: b: minimum is not a number, so it is not checked",
		"config_schema: c: type is not a type of JSON or a list of them, so it is not checked",
		"config_schema: d[]: type is not a type of JSON or a list of them, so it is not checked",
		"config_schema: e: properties is not an object, so it is not checked",
		"config_schema: f.g: maxLength is not a number, so it is not checked",
	}, m.Warnings)
}

func TestParse_AdaptersAreNoPlugins(t *testing.T) {
	t.Parallel()
	m, err := ParseManifest("x.json", []byte(`{"unit":"adapter","name":"adapter-vad-X","task_name":"vad"}`))
	require.ErrorIs(t, err, errAdapter)
	require.Equal(t, "adapter-vad-X", m.Name)
}

// manifestSchema compiles the published schema.
func manifestSchema(t testing.TB) *jsonschema.Schema {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "api", "manifest.schema.json"))
	require.NoError(t, err)
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	require.NoError(t, err)
	c := jsonschema.NewCompiler()
	require.NoError(t, c.AddResource("manifest.schema.json", doc))
	s, err := c.Compile("manifest.schema.json")
	require.NoError(t, err)
	return s
}

// TestSchema_AgreesWithTheParser changes one key of a good manifest at a time
// and asks both.
func TestSchema_AgreesWithTheParser(t *testing.T) {
	t.Parallel()
	schema := manifestSchema(t)
	samples := map[string][]string{ // key → values, as JSON
		"format_version": {`"3"`, `3`, `"3.1"`, `3.5`, `"30"`, `null`, `true`},
		"name":           {`"a"`, `"a.b-c_D9"`, `"-x"`, `".x"`, `"a/b"`, `""`, `null`, `7`, `"` + strings.Repeat("x", 64) + `"`, `"` + strings.Repeat("x", 65) + `"`},
		"version":        {`"1"`, `null`, `1`, `""`, `"a\u0000"`},
		"runtime":        {`"native"`, `"http"`, `"exec"`, `"grpc"`, `""`, `null`, `1`},
		"module":         {`"m"`, `""`, `null`, `1`},
		"class":          {`"C"`, `""`},
		"command":        {`["a"]`, `["./a","b"]`, `[]`, `null`, `"a"`, `[""]`, `[1]`},
		"python_path":    {`"/p"`, `"p"`, `""`, `null`, `1`},
		"adapters":       {`["a.b:C"]`, `["a:B","c:D"]`, `[]`, `null`, `"a:B"`, `["a"]`, `[":B"]`, `["a:"]`, `["a:B:C"]`, `["a/b:C"]`, `["a b:C"]`, `["a\\b:C"]`, `[1]`, `[""]`, `["a\u00a0b:C"]`, `["a\tb:C"]`},
		"path":           {`"."`, `["a","b"]`, `[]`, `""`, `[""]`, `null`, `1`},
		"env":            {`{}`, `{"manager":"uv"}`, `null`, `[]`, `"uv"`},
		"env_vars": {`{}`, `null`, `{"A":"b"}`, `{"A":1}`, `{"1A":"x"}`, `{"A B":"x"}`, `{"LISTEN_FDS":"1"}`, `{"WATCHDOG_USEC":"1"}`, `{"NOTIFY_SOCKETS":"1"}`, `{"CJM_WORKER_FD":"3"}`,
			`{"A":"${PLUGIN_NAME}/x"}`, `{"A":"${NOPE}"}`, `{"A":"${"}`, `{"A":"$"}`, `{"A":"$x$"}`, `{"A":"$${PLUGIN_NAME}"}`, `{"A":"$${NOPE}"}`, `{"A":"${${PLUGIN_NAME}}"}`, `{"A":"a\nb"}`, `{"A":""}`, `[]`},
		"resources": {`{}`, `null`, `{"requires_gpu":true}`, `{"requires_gpu":"yes"}`, `{"min_gpu_vram_mb":1.5}`, `{"min_gpu_vram_mb":-1}`, `{"min_system_ram_mb":1e16}`, `{"gpu":1}`, `[]`},
		"devices": {`{"count":1}`, `{"count":0}`, `{"count":65}`, `{"count":1.5}`, `{"count":null}`, `{"n":1}`, `2`,
			`{"pin":[0,"GPU-1"],"prefer":["1"],"avoid":[]}`, `{"pin":"0"}`, `{"pin":[""]}`, `{"pin":[-1]}`, `{"pin":[1.5]}`, `{"pin":["a b"]}`, `{"pin":["a,b"]}`,
			`{"avoid":[1.0,65537]}`, `{"avoid":[null]}`, `{"prefer":null}`, `{"pin":[2e0]}`},
		"config_schema": {`{}`, `{"properties":3}`, `null`, `true`, `[]`},
		"strict":        {`true`, `null`, `"true"`},
		"secrets":       {`[]`, `["A"]`, `["a b"]`, `[""]`, `[{"name":"A"}]`, `[{"name":"A","required":false,"description":"d"}]`, `[{"required":true}]`, `[{"name":"A","x":1}]`, `["LISTEN_PID"]`, `[1]`, `"A"`, `null`},
		"concurrency":   {`1`, `1024`, `1025`, `0`, `-1`, `1.5`, `2.0`, `"1"`, `null`},
		"isolation":     {`{}`, `{"tier":"auto"}`, `{"tier":"3"}`, `{"tier":3}`, `{"tier":"4"}`, `{"require":["memory","gpu"]}`, `{"require":["soul"]}`, `{"require":"memory"}`, `{"x":1}`},
		"limits":        {`{}`, `{"memory_max_mb":1}`, `{"memory_max_mb":0}`, `{"nice":-20}`, `{"nice":20}`, `{"nofile":15}`, `{"cpu_max":0.5,"cpu_weight":10000,"io_weight":1}`, `{"cpu_max":0}`, `{"cpu_weight":10001}`, `{"pids_max":1.5}`, `{"x":1}`},
		"retry":         {`{"max_attempts":1}`, `{"max_attempts":0}`, `{"max_attempts":101}`, `{"max":1}`},
		"timeouts":      {`{"run":"30s"}`, `{"run":"1h30m"}`, `{"run":"0s"}`, `{"run":"0h0.0s"}`, `{"run":".5s"}`, `{"run":"-1s"}`, `{"run":"30"}`, `{"run":30}`, `{"run":"1d"}`, `{"run":""}`, `{"run":null}`, `{"wait":"1s"}`},
		"whatever":      {`1`},
		"exec": {`{}`, `null`, `[]`, `{"args":["{kwargs.a}",["-b","{kwargs.b}"],1,true]}`, `{"args":"x"}`, `{"args":[{}]}`, `{"args":[null]}`, `{"args":[[]]}`, `{"args":[[["x"]]]}`,
			`{"stdin":"none"}`, `{"stdin":"json"}`, `{"stdin":"x"}`, `{"stdin":{"text":"t"}}`, `{"stdin":{"file":"f"}}`, `{"stdin":{}}`, `{"stdin":{"text":"t","file":"f"}}`, `{"stdin":{"x":1}}`, `{"stdin":7}`,
			`{"stdout":"lines"}`, `{"stdout":"xml"}`, `{"stdout":""}`, `{"result":{"file":"a"}}`, `{"result":{}}`, `{"result":{"file":"a","type":"path"}}`, `{"result":{"file":"a","type":"png"}}`, `{"result":"a"}`,
			`{"progress":[]}`, `{"progress":[{"pattern":"(?P<percent>x)"}]}`, `{"progress":[{"pattern":"x"}]}`, `{"progress":[{}]}`, `{"progress":[1]}`, `{"progress":[{"pattern":"(?P<done>x)","total":60}]}`,
			`{"progress":[{"pattern":"(?P<done>x)","from":"tty"}]}`, `{"progress":[{"pattern":"(?P<done>x)","total":[]}]}`,
			`{"exit_codes":{"1":"user_input","255":"oom"}}`, `{"exit_codes":{"0":"fatal"}}`, `{"exit_codes":{"256":"fatal"}}`, `{"exit_codes":{"x":"fatal"}}`, `{"exit_codes":{"1":"bad"}}`, `{"exit_codes":[]}`,
			`{"cancel_signal":"TERM"}`, `{"cancel_signal":"KILL"}`, `{"allow_options":true}`, `{"allow_options":1}`, `{"shell":true}`},
	}
	var accepted, refused int
	for key, values := range samples {
		for _, value := range values {
			doc := map[string]json.RawMessage{"format_version": json.RawMessage(`"3"`), "name": json.RawMessage(`"n"`), "module": json.RawMessage(`"m"`), "class": json.RawMessage(`"C"`)}
			if key == "exec" {
				doc["runtime"], doc["command"] = json.RawMessage(`"exec"`), json.RawMessage(`["/bin/true"]`)
			}
			doc[key] = json.RawMessage(value)
			text, err := json.Marshal(doc)
			require.NoError(t, err)
			_, perr := ParseManifest("/d/x.json", text)
			inst, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
			require.NoError(t, err)
			serr := schema.Validate(inst)
			if (perr == nil) != (serr == nil) {
				t.Errorf("%s: %s: parser says %v, schema says %v", key, value, perr, serr)
			}
			if perr == nil {
				accepted++
			} else {
				refused++
			}
		}
	}
	require.Greater(t, accepted, 50)
	require.Greater(t, refused, 50)
}

func TestSchema_KnowsEveryKeyOfTheParser(t *testing.T) {
	t.Parallel()
	f := &fields{obj: map[string]any{}, problems: new([]ManifestProblem)}
	readV3(f, &Manifest{})
	text, err := os.ReadFile(filepath.Join("..", "..", "api", "manifest.schema.json"))
	require.NoError(t, err)
	var s struct{ Properties map[string]any }
	require.NoError(t, json.Unmarshal(text, &s))
	seen := map[string]bool{}
	for _, k := range f.seen {
		seen[k] = true
		require.Contains(t, s.Properties, k)
	}
	for k := range s.Properties {
		require.True(t, seen[k], "the parser never reads %q", k)
	}
}

// FuzzParseManifest: never panics, and what was parsed parses again to the
// same manifest.
func FuzzParseManifest(f *testing.F) {
	f.Add("x.json", v1Whisper)
	f.Add("x.json", v2Voxtral)
	f.Add("x.yaml", v3Speech)
	f.Add("x.json", `{"format_version":"3","name":"n","command":["a"],"secrets":[{"name":"A"}]}`)
	f.Add("x.json", `{"unit":"adapter"}`)
	f.Add("x.yaml", "a: &a [*a]")
	f.Add("x.yaml", "name: !!binary aGk=\nmodule: 2001-01-01\nclass: .inf")
	f.Fuzz(func(t *testing.T, path, content string) {
		path = "/d/" + filepath.Base(path)
		m, err := ParseManifest(path, []byte(content))
		if m == nil {
			t.Fatal("no manifest beside the error")
		}
		if err != nil {
			var me *ManifestError
			if !errors.Is(err, errAdapter) && !errors.As(err, &me) {
				t.Fatalf("unexpected kind of error: %v", err)
			}
			return
		}
		if !ValidName(m.Name) || m.Hash == "" {
			t.Fatalf("accepted %+v", m)
		}
		// Raw is JSON, where our own format needs its version.
		raw := m.Raw
		if m.Format == "v3" && !bytes.Contains(raw, []byte(`"format_version"`)) {
			raw = append([]byte(`{"format_version":"3",`), raw[1:]...)
		}
		again, err := ParseManifest("/d/again.json", raw)
		if err != nil {
			t.Fatalf("parsed once, not twice: %v\n%s", err, raw)
		}
		if again.Name != m.Name || again.Module != m.Module || string(again.Schema) != string(m.Schema) || again.Demand != m.Demand {
			t.Fatalf("%+v became %+v", m, again)
		}
	})
}
