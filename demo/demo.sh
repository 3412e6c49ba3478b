#!/usr/bin/env bash
# The main job on real input: a speech recording goes in over HTTP, a Python plugin in its own environment recognises it,
# partial results stream out while they arise, and the job can be read, cancelled and followed afterwards.
# Ends by itself with exit code 0 when the transcript holds the expected words. DEMO_KEEP=1 keeps serving until Ctrl-C.
# Everything is kept below DEMO_DIR (default: .demo in the project), nothing is left running.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
dir=${DEMO_DIR:-$root/.demo}
sample=$root/examples/plugins/speech/samples/goforward.wav
expected=(go forward ten meters)

bold=''; dim=''; off=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m'; dim=$'\e[2m'; off=$'\e[0m'; fi
step() { printf '\n%s== %s%s\n' "$bold" "$*" "$off"; }
show() { printf '%s$ %s%s\n' "$dim" "$*" "$off"; }

daemon='' run=''
stop() {
  local code=$?
  trap - EXIT INT TERM
  if [ -n "$daemon" ] && kill -0 "$daemon" 2>/dev/null; then
    kill -TERM "$daemon"
    wait "$daemon" || true
  fi
  if [ -n "$run" ]; then rm -rf "$run"; fi
  exit "$code"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

step 'Build'
make -s -C "$root" build
export PATH="$root/bin:$PATH"

step "Environment of the plugin (kept in ${dir#"$PWD"/})"
mkdir -p "$dir"
env=$dir/state/envs/speech
# One of an older demo was made by hand.
if [ -d "$env" ] && [ ! -L "$env" ]; then rm -rf "$env"; fi
show "cjm-ctl install-all -f examples/plugins/speech --state-dir $dir/state"
# Nobody is to be told yet.
CJMD_SOCKET=/nonexistent cjm-ctl install-all -f "$root/examples/plugins/speech" --state-dir "$dir/state"
"$env/bin/python" -c 'import pocketsphinx, sys; print("python", sys.version.split()[0], "with pocketsphinx")'

step 'Start the daemon'
# Yesterday's jobs are of no use here; the environments are.
find "$dir/state" -mindepth 1 -maxdepth 1 ! -name envs -exec rm -rf {} +
# A Unix socket's path may have 107 bytes; a deep clone would break it.
run=$(mktemp -d "${TMPDIR:-/tmp}/cjmd-demo.XXXXXX")
export CJMD_SOCKET="$run/cjmd.sock"
show "cjmd serve --state-dir $dir/state --socket $CJMD_SOCKET --plugins examples/plugins"
cjmd serve --state-dir "$dir/state" --socket "$CJMD_SOCKET" --listen none \
  --plugins "$root/examples/plugins" --log-format json 2>"$dir/daemon.log" &
daemon=$!
if ! curl -sSf --retry 200 --retry-delay 0 --retry-all-errors --retry-max-time 20 \
    --unix-socket "$CJMD_SOCKET" http://cjmd/readyz >/dev/null 2>&1; then
  cat "$dir/daemon.log" >&2
  echo 'the daemon did not start' >&2
  exit 1
fi
cjm-ctl status
cjm-ctl plugins

step 'Recognise a recording, with partial results as they arise'
show "cjm-ctl run speech @${sample#"$root"/} --id demo-speech"
cjm-ctl run speech "@$sample" --id demo-speech --stream | tee "$dir/stream.jsonl"

step 'The job, as it is stored'
cjm-ctl job demo-speech
cjm-ctl result demo-speech > "$dir/result.json"
cjm-ctl logs demo-speech

step 'A second job, cancelled while it runs'
cjm-ctl submit sleeper seconds:=60 --id demo-cancel
# Its own events say when it is really at work.
grep -q -m 1 '"phase":"executing"' < <(curl -sN --unix-socket "$CJMD_SOCKET" http://cjmd/v1/jobs/demo-cancel/events)
cjm-ctl cancel demo-cancel --reason 'only a demonstration'
cjm-ctl wait demo-cancel || [ $? -eq 5 ] # 5: the job was cancelled

step 'Go on with curl'
cat <<TEXT
  curl -s  --unix-socket $CJMD_SOCKET http://cjmd/v1/jobs/demo-speech
  curl -s  --unix-socket $CJMD_SOCKET http://cjmd/v1/jobs/demo-speech/result
  curl -sN --unix-socket $CJMD_SOCKET http://cjmd/v1/jobs/demo-speech/events
  curl -s  --unix-socket $CJMD_SOCKET http://cjmd/v1/jobs -H 'Content-Type: application/json' \\
       -d '{"plugin":"textstats","args":["How many words are these?"]}'
TEXT

step 'Check the transcript'
missing=0
for word in "${expected[@]}"; do
  if ! grep -qiw -- "$word" "$dir/result.json"; then
    echo "the transcript lacks the word: $word" >&2
    missing=1
  fi
done
if [ "$missing" -ne 0 ]; then cat "$dir/result.json" >&2; exit 1; fi
echo "The transcript holds: ${expected[*]}"

if [ -n "${DEMO_KEEP:-}" ]; then
  step 'Serving until Ctrl-C'
  wait "$daemon"
fi
