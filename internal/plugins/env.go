package plugins

import (
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// EnvDirs are the directories a worker is told about.
type EnvDirs struct {
	Data   string // this instance's own
	Models string // shared by all plugins
	Cache  string // this instance's own; may vanish
}

// passed are the daemon's variables that a worker inherits; passedPrefixes
// whole families. Everything else of the daemon's environment stays with it:
// it may hold secrets that are nobody's business.
var (
	passed = []string{
		"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR",
		"LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
		"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
		"XDG_CACHE_HOME",
	}
	passedPrefixes = []string{
		"LC_", "CUDA_", "NVIDIA_", "NCCL_", "CUDNN_", "ROCM_", "ROCR_", "HIP_", "HSA_", "ONEAPI_", "ZE_",
		"HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TORCH_", "PYTORCH_", "TF_", "XLA_", "OMP_", "MKL_", "OPENBLAS_", "NUMBA_", "TOKENIZERS_",
	}
	// neverPassed wins over both: tokens that belong to the daemon's owner are
	// given to a plugin by name, as its secrets.
	neverPassed = []string{"HF_TOKEN", "HUGGINGFACE_HUB_TOKEN", "HUGGINGFACE_TOKEN"}
)

// reservedEnv are names that no manifest may set: the service manager's, which
// would make a worker answer for the daemon, and the protocol's.
func reservedEnv(name string) bool {
	return name == "NOTIFY_SOCKET" || name == "CJM_WORKER_FD" ||
		strings.HasPrefix(name, "WATCHDOG_") || strings.HasPrefix(name, "LISTEN_")
}

// templates are what ${…} in a manifest's values may name.
var templates = []string{
	"CJM_MODELS_DIR", "CJM_DATA_DIR", "CJM_PLUGIN_DATA_DIR", "CJM_CAPABILITY_DATA_DIR",
	"PLUGIN_DATA_DIR", "CAPABILITY_DATA_DIR", "PLUGIN_NAME", "CAPABILITY_NAME",
}

var templatePattern = regexp.MustCompile(`\$\{([^${}]*)\}`)

// BuildEnv makes a worker's complete environment from the daemon's: the
// allowed part of it < the manifest's env_vars (templates expanded) < the
// directory names of every generation of the Python system. Sorted, so that
// equal inputs give equal workers. Secrets are not here: they travel over the
// worker's channel.
func BuildEnv(daemonEnv []string, man Manifest, inst Instance, dirs EnvDirs) ([]string, error) {
	env := map[string]string{}
	for _, kv := range daemonEnv {
		if k, v, ok := strings.Cut(kv, "="); ok && inherits(k) {
			env[k] = v
		}
	}
	env["PYTHONUNBUFFERED"] = "1" // a print must reach the log when it happens
	env["PYTHONIOENCODING"] = "utf-8"

	// CJM_DATA_DIR and its successors meant the parent of all data directories;
	// PLUGIN_DATA_DIR this plugin's own. Plugins disagree on which they read.
	shared := filepath.Dir(dirs.Data)
	known := map[string]string{
		"CJM_MODELS_DIR": dirs.Models, "CJM_DATA_DIR": shared, "CJM_PLUGIN_DATA_DIR": shared, "CJM_CAPABILITY_DATA_DIR": shared,
		"PLUGIN_DATA_DIR": dirs.Data, "CAPABILITY_DATA_DIR": dirs.Data, "PLUGIN_NAME": man.Name, "CAPABILITY_NAME": man.Name,
	}
	for _, name := range slices.Sorted(maps.Keys(man.Env)) {
		if reservedEnv(name) {
			return nil, fmt.Errorf("cannot start %q: its manifest sets %s, which is the daemon's own", inst.ID, name)
		}
		env[name] = templatePattern.ReplaceAllStringFunc(man.Env[name], func(t string) string {
			if v, ok := known[t[2:len(t)-1]]; ok {
				return v
			}
			return t // v1 never expanded anything: leave foreign text alone
		})
	}
	for _, name := range templates[:6] {
		env[name] = known[name]
	}
	if dirs.Cache != "" {
		env["CJM_CACHE_DIR"] = dirs.Cache
	}
	out := make([]string, 0, len(env))
	for _, k := range slices.Sorted(maps.Keys(env)) {
		out = append(out, k+"="+env[k])
	}
	return out, nil
}

func inherits(name string) bool {
	if slices.Contains(neverPassed, name) {
		return false
	}
	return slices.Contains(passed, name) ||
		slices.ContainsFunc(passedPrefixes, func(p string) bool { return strings.HasPrefix(name, p) })
}
