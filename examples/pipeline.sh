#!/usr/bin/env bash
# Three plugins in a row: ffmpeg makes any recording what the models want (16 kHz, one channel), vad finds where somebody
# speaks, whisper transcribes just that. All three jobs are submitted at once: each names those that it waits
# for (--after) and takes what they found ({"$result": …}); the last one streams while it works.
#
#   cjm-ctl install-all -f examples/plugins.yaml --only ffmpeg,vad,whisper
#   examples/pipeline.sh [RECORDING]
#
# Needs a running cjmd that cjm-ctl reaches. RECORDING: anything that ffmpeg reads; without one, the sample of ffmpeg.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
recording=${1:-$root/examples/plugins/ffmpeg/samples/two-speakers.ogg}
[ -f "$recording" ] || { echo "there is no file $recording" >&2; exit 2; }
recording=$(realpath "$recording")

bold='' off=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' off=$'\e[0m'; fi
step() { printf '\n%s== %s%s\n' "$bold" "$*" "$off"; }

step "Three jobs for $(basename "$recording")"
convert=$(cjm-ctl submit ffmpeg input="$recording" rate:=16000 channels:=1 output=speech.wav)
sound="{\"\$result\": \"$convert\", \"path\": \"/path\"}" # where ffmpeg left its file
find=$(cjm-ctl submit vad --after "$convert" audio:="$sound")
printf '%-8s %s\n' ffmpeg "$convert" vad "$find, after ffmpeg" whisper 'after both, followed here'

step 'What is said (whisper)'
cjm-ctl run whisper --after "$convert" --after "$find" --stream \
  audio:="$sound" speech:="{\"\$result\": \"$find\", \"path\": \"/segments\"}" |
  python3 -c '
import json, sys
for line in sys.stdin:
    part = json.loads(line)
    print("%6.2f s  %s" % (part["start"], part["text"]), flush=True)'

step 'Where somebody speaks (vad)'
cjm-ctl result "$find" | python3 -c '
import json, sys
found = json.load(sys.stdin)
for s in found["segments"]:
    print("%6.2f s to %6.2f s" % (s["start"], s["end"]))
print("%.1f of %.1f s are speech" % (found["speech_seconds"], found["duration"]))'

step 'The jobs'
cjm-ctl jobs --limit 3
