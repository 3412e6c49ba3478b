#!/usr/bin/env bash
# A worker of cjmd in shell: bash, coreutils, od and flock, nothing else. It shows that
# the protocol (docs/worker-protocol.md) needs no library. Each execute is a
# subshell of its own, so that cancel and ping are answered while it runs.
#
# Your work goes into `plugin`. It gets the payload {"args":[…],"kwargs":{…}} as a
# file, prints the result (JSON) on stdout, and may call `chunk` and `progress`.
# It may simply `exec ffmpeg …`: what it writes to stderr becomes the worker's log.
#
# The daemon writes headers as compact JSON with the members in the documented
# order. That is what makes `field` good enough; a worker that takes text from
# elsewhere needs a JSON parser (jq).

set -u
fd=${CJM_WORKER_FD:?this program is started by cjmd}
check=${CJM_WORKER_CHECK:-}
unset CJM_WORKER_FD
LC_ALL=C # lengths are bytes

tmp=$(mktemp -d)
max_header=65536 max_payload=268435456 slots=1 greeted=
declare -A running=() # job → id of its request; $tmp/ID.run is there until it is answered
exec {lock}>"$tmp/lock"

# end_all leaves nothing behind: the daemon is gone or cannot be understood.
end_all() {
  [ $# -gt 0 ] && echo "worker: $1" >&2
  rm -rf "$tmp"
  kill -KILL 0
}

# send HEADER [PAYLOAD-FILE]: one frame, never interleaved with another one.
send() {
  local h=${#1} p=0 lengths
  [ -n "${2:-}" ] && p=$(stat -c %s "$2")
  printf -v lengths '\\x%02x' $((h >> 24 & 255)) $((h >> 16 & 255)) $((h >> 8 & 255)) $((h & 255)) \
    $((p >> 24 & 255)) $((p >> 16 & 255)) $((p >> 8 & 255)) $((p & 255))
  {
    flock "$lock"
    { printf "$lengths%s" "${1//%/%%}"; [ "$p" -gt 0 ] && cat "$2"; } >&"$fd"
    flock -u "$lock"
  }
}

# quote TEXT: as a JSON string.
quote() {
  local s=${1//\\/\\\\}
  s=${s//\"/\\\"} s=${s//$'\n'/\\n} s=${s//$'\t'/\\t}
  printf '"%s"' "${s//[[:cntrl:]]/ }"
}

# field NAME TEXT: the first member of that name that is a string, a number or a word.
field() {
  if [[ $2 =~ \"$1\":\"([^\"\\]*)\" || $2 =~ \"$1\":([-0-9a-z.]+) ]]; then printf %s "${BASH_REMATCH[1]}"; fi
}

result() { send "{\"jsonrpc\":\"2.0\",\"id\":\"$1\",\"result\":$2}" "${3:-}"; }
error() { # ID CODE CATEGORY MESSAGE [RETRIABLE]
  send "{\"jsonrpc\":\"2.0\",\"id\":\"$1\",\"error\":{\"code\":$2,\"message\":$(quote "$4"),\"data\":{\"category\":\"$3\",\"type\":\"shell\",\"retriable\":${5:-false}}}}"
}

# What a plugin may call; $job, $stream and $chunks belong to its subshell.
progress() { send "{\"jsonrpc\":\"2.0\",\"method\":\"progress\",\"params\":{\"job\":\"$job\",\"fraction\":$1,\"message\":$(quote "$2")}}"; }
chunk() {
  [ "$stream" = true ] || return 0
  chunks=$((chunks + 1))
  printf %s "$1" >"$tmp/$id.chunk"
  send "{\"jsonrpc\":\"2.0\",\"method\":\"chunk\",\"params\":{\"job\":\"$job\",\"n\":$chunks}}" "$tmp/$id.chunk"
}
fail() { # CATEGORY MESSAGE [RETRIABLE]
  answering
  error "$id" -32000 "$1" "$2" "${3:-false}"
  exit 0
}

# plugin PAYLOAD-FILE: counts bytes, lines and words of what it is given.
plugin() {
  local lines words bytes
  read -r lines words bytes _ < <(wc "$1")
  progress 0.5 "counted"
  chunk "$bytes"
  printf '{"lines":%d,"words":%d,"bytes":%d}' "$lines" "$words" "$bytes"
}

# conformance PAYLOAD-FILE: what `cjmd worker-check` calls.
conformance() {
  local kwargs op n i
  kwargs=$(tail -c 400 "$1")
  op=$(field op "${kwargs##*\"kwargs\":}")
  [[ $kwargs == *'"op":"echo"'* ]] && op=echo
  case $op in
  echo) cat "$1" ;;
  count)
    n=$(field to "$kwargs")
    for ((i = 1; i <= n; i++)); do chunk "$i"; done
    printf %s "$n"
    ;;
  fail) fail "$(field category "$kwargs")" "$(field message "$kwargs")" "$(field retriable "$kwargs")" ;;
  wait)
    progress -1 waiting
    sleep 300 &
    wait
    ;;
  big)
    n=$(field bytes "$kwargs")
    printf '"'
    head -c "$n" /dev/zero | tr '\0' x
    printf '"'
    ;;
  noise)
    n=$(field bytes "$kwargs")
    head -c "$n" /dev/zero | tr '\0' x >&"$noise"
    printf %s "$n"
    ;;
  spawn)
    sleep 300 >/dev/null 2>&1 {fd}>&- {lock}>&- &
    printf %s $!
    ;;
  *) fail user_input "there is no op \"$op\"" ;;
  esac
}

# answering comes before the one answer of a call: from here on it cannot be
# cancelled, and its job's id is free again.
answering() {
  trap '' TERM
  rm -f "$tmp/$id.run"
}

# run is one execute, in a subshell: it ends with an answer, or by a cancel.
run() {
  local chunks=0 out="$tmp/$id.out" what=plugin
  trap 'answering; kill $(jobs -p) 2>/dev/null; error "$id" -32002 cancelled "cancelled"; rm -f "$tmp/$id".*; exit 0' TERM
  : >"$tmp/$id.armed"
  [ "$check" = 1 ] && what=conformance
  exec {noise}>&1
  if ! "$what" "$1" >"$out"; then fail fatal "the plugin ended with an error"; fi
  answering
  if [ "$(stat -c %s "$out")" -gt "$max_payload" ]; then
    error "$id" -32000 resource "the result is longer than the limit of $max_payload bytes"
  else
    result "$id" "{\"chunks\":$chunks}" "$out"
  fi
  rm -f "$tmp/$id".*
}

execute() {
  job=$(field job "$1") stream=$(field stream "$1")
  reap
  if [ -z "$greeted" ] || [ -z "$job" ] || [ ${#running[@]} -ge "$slots" ] || [ -n "${running[$job]:-}" ]; then
    error "$id" -32600 fatal "no execute is possible now"
    return
  fi
  mv "$tmp/payload" "$tmp/$id.in"
  : >"$tmp/$id.run"
  run "$tmp/$id.in" &
  printf %s $! >"$tmp/$id.pid"
  running[$job]=$id
}

# reap forgets the calls that have ended.
reap() {
  local job
  for job in "${!running[@]}"; do
    [ -e "$tmp/${running[$job]}.run" ] || unset "running[$job]"
  done
}

cancel() {
  local job call accepted=false
  job=$(field job "$1")
  reap
  call=${running[$job]:-}
  if [ -n "$call" ]; then
    # a signal before the subshell is ready for it would end the call without an answer
    while [ -e "$tmp/$call.run" ] && [ ! -e "$tmp/$call.armed" ]; do sleep 0.01; done
    if kill -TERM "$(cat "$tmp/$call.pid")" 2>/dev/null; then accepted=true; fi
  fi
  result "$id" "{\"accepted\":$accepted,\"hook\":\"called\"}"
}

hello() {
  if [ -n "$greeted" ]; then
    error "$id" -32600 fatal "hello was said before"
    return
  fi
  greeted=1
  max_header=$(field max_header "$1") max_payload=$(field max_payload "$1") slots=$(field concurrency "$1")
  result "$id" "{\"protocol\":1,\"name\":\"shell\",\"version\":\"1.0\",\"pid\":$$,\"runtime\":\"bash $BASH_VERSION\",\"capabilities\":[\"stream\",\"cancel\",\"concurrent\",\"control\",\"progress\"]}"
}

while lengths=$(head -c 8 <&"$fd" | od -An -v -tu1) && read -r -a b <<<"${lengths//$'\n'/ }" && [ ${#b[@]} -eq 8 ]; do
  h=$((b[0] << 24 | b[1] << 16 | b[2] << 8 | b[3]))
  p=$((b[4] << 24 | b[5] << 16 | b[6] << 8 | b[7]))
  if [ "$h" -eq 0 ] || [ "$h" -gt "$max_header" ] || [ "$p" -gt "$max_payload" ]; then
    end_all "a frame with a header of $h and a payload of $p bytes breaks the limits"
  fi
  header=$(head -c "$h" <&"$fd")
  if [ "$p" -gt 0 ]; then head -c "$p" <&"$fd" >"$tmp/payload"; else : >"$tmp/payload"; fi
  [[ $header == '{"jsonrpc":"2.0",'*'}' ]] || end_all "a header is no JSON-RPC 2.0 object"
  [[ $header == '{"jsonrpc":"2.0","method":'* ]] && continue # a notification: none is known
  id=$(field id "$header")
  case $(field method "$header") in
  hello) hello "$header" ;;
  execute) execute "$header" ;;
  cancel) cancel "$header" ;;
  ping) result "$id" '{}' ;;
  shutdown)
    result "$id" '{}'
    rm -rf "$tmp"
    exit 0 # what still runs is ended by the daemon, with the whole process tree
    ;;
  stats | schema | config | options | configure | prefetch | release | enable | disable | system_status | processes)
    error "$id" -32001 fatal "this worker does not have it"
    ;;
  '') end_all "an answer to a request that was never sent" ;;
  *) error "$id" -32601 fatal "unknown method" ;;
  esac
done
end_all
