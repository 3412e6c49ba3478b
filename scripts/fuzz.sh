#!/usr/bin/env bash
# Runs every fuzz target for a bounded time: Go's (found by go test -list) and
# Python's (files called fuzz_*.py below a folder called tests, which read
# CJM_FUZZ_SECONDS).
set -euo pipefail
cd "$(dirname "$0")/.."
go=${GO:-go} python=${PYTHON:-python3} seconds=${FUZZ_SECONDS:-10}
count=0

# Only packages that declare a target are compiled.
mapfile -t dirs < <(git grep -lE --untracked '^func Fuzz[A-Z_]' -- '*_test.go' | xargs -r -n1 dirname | sort -u)
for dir in "${dirs[@]}"; do
    mapfile -t targets < <("$go" test -list '^Fuzz' "./$dir" | grep '^Fuzz' || true)
    for target in "${targets[@]}"; do
        echo "== $dir $target (${seconds}s)"
        "$go" test -run '^$' -fuzz "^${target}\$" -fuzztime "${seconds}s" "./$dir"
        count=$((count + 1))
    done
done

while IFS= read -r file; do
    [ -n "$file" ] || continue
    echo "== $file (${seconds}s)"
    dir=$(dirname "$file")
    top=$dir
    if [ -e "$dir/__init__.py" ]; then top=$(dirname "$dir"); fi
    PYTHONPATH="$PWD/$(dirname "$dir"):$PWD/sdk/python${PYTHONPATH:+:$PYTHONPATH}" CJM_FUZZ_SECONDS="$seconds" \
        "$python" -m unittest discover -s "$dir" -t "$top" -p "$(basename "$file")"
    count=$((count + 1))
done < <(git ls-files -co --exclude-standard -- '*/tests/fuzz_*.py')

if [ "$count" -eq 0 ]; then
    echo "no fuzz target found" >&2
    exit 1
fi
echo "$count fuzz targets, ${seconds}s each: nothing found"
