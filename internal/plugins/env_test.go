package plugins

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestBuildEnv(t *testing.T) {
	t.Parallel()
	dirs := EnvDirs{Data: "/s/data/w", Models: "/s/models", Cache: "/c/w"}
	for name, tc := range map[string]struct {
		daemon  []string
		man     Manifest
		has     []string
		without []string
	}{
		"passes on what a program needs": {
			daemon: []string{"PATH=/bin", "HOME=/h", "LANG=C", "LC_ALL=C.UTF-8", "TZ=UTC", "TMPDIR=/t", "LD_LIBRARY_PATH=/l", "CUDA_HOME=/cuda", "NVIDIA_VISIBLE_DEVICES=all", "HF_HOME=/hf", "HTTPS_PROXY=p"},
			has:    []string{"PATH=/bin", "HOME=/h", "LANG=C", "LC_ALL=C.UTF-8", "TZ=UTC", "TMPDIR=/t", "LD_LIBRARY_PATH=/l", "CUDA_HOME=/cuda", "NVIDIA_VISIBLE_DEVICES=all", "HF_HOME=/hf", "HTTPS_PROXY=p"},
		},
		"keeps the daemon's own to itself": {
			daemon:  []string{"NOTIFY_SOCKET=/n", "WATCHDOG_USEC=1", "LISTEN_FDS=1", "CJMD_TOKEN=t", "AWS_SECRET_ACCESS_KEY=k", "HF_TOKEN=t", "PYTHONPATH=/x", "PYTHONHOME=/x", "CJM_WORKER_FD=3", "VIRTUAL_ENV=/v", "malformed"},
			without: []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS", "CJMD_TOKEN", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "PYTHONPATH", "PYTHONHOME", "CJM_WORKER_FD", "VIRTUAL_ENV", "malformed"},
		},
		"sets every historic directory name": {
			has: []string{
				"CJM_DATA_DIR=/s/data", "CJM_PLUGIN_DATA_DIR=/s/data", "CJM_CAPABILITY_DATA_DIR=/s/data", "CJM_MODELS_DIR=/s/models",
				"PLUGIN_DATA_DIR=/s/data/w", "CAPABILITY_DATA_DIR=/s/data/w", "CJM_CACHE_DIR=/c/w", "PYTHONUNBUFFERED=1",
			},
		},
		"the manifest wins over the daemon, the directories over the manifest": {
			daemon: []string{"HF_HOME=/daemon", "CUDA_VISIBLE_DEVICES=7"},
			man:    Manifest{Env: map[string]string{"HF_HOME": "/manifest", "CUDA_VISIBLE_DEVICES": "0", "CJM_MODELS_DIR": "/elsewhere", "HF_TOKEN": "given"}},
			has:    []string{"HF_HOME=/manifest", "CUDA_VISIBLE_DEVICES=0", "CJM_MODELS_DIR=/s/models", "HF_TOKEN=given"},
		},
		"templates": {
			man: Manifest{Name: "whisper", Env: map[string]string{
				"A": "${CJM_MODELS_DIR}/hf:${PLUGIN_DATA_DIR}", "B": "${PLUGIN_NAME}-${CAPABILITY_NAME}", "C": "${CJM_PLUGIN_DATA_DIR}${CJM_DATA_DIR}", "D": "${HOME} $PATH ${", "E": "${CAPABILITY_DATA_DIR}",
			}},
			has: []string{"A=/s/models/hf:/s/data/w", "B=whisper-whisper", "C=/s/data/s/data", "D=${HOME} $PATH ${", "E=/s/data/w"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env, err := BuildEnv(tc.daemon, tc.man, Instance{ID: "w"}, dirs)
			require.NoError(t, err)
			require.Subset(t, env, tc.has)
			for _, k := range tc.without {
				for _, kv := range env {
					require.False(t, strings.HasPrefix(kv, k+"=") || kv == k, kv)
				}
			}
			require.IsIncreasing(t, env)
		})
	}
	_, err := BuildEnv(nil, Manifest{Env: map[string]string{"LISTEN_FDS": "3"}}, Instance{ID: "w"}, dirs)
	require.ErrorContains(t, err, "LISTEN_FDS")
}
