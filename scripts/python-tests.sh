#!/usr/bin/env bash
# Runs every Python test of the tree with unittest and the standard library:
# each folder called "tests" that holds test_*.py, with its parent importable.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

mapfile -t dirs < <(git ls-files -co --exclude-standard -- '*/tests/test_*.py' | xargs -r -n1 dirname | sort -u)
if [ "${#dirs[@]}" -eq 0 ]; then
    echo "no Python tests found below a folder called tests" >&2
    exit 1
fi
# A folder with __init__.py is a package, whose modules may import each other.
top() { if [ -e "$1/__init__.py" ]; then dirname "$1"; else echo "$1"; fi; }

failed=0
for dir in "${dirs[@]}"; do
    echo "== $dir ($("$python" --version))"
    parent=$(dirname "$dir")
    # -P is not used: it is newer than the oldest Python that the runtime supports.
    PYTHONPATH="$PWD/$parent:$PWD/sdk/python${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1 \
        "$python" -X dev -W error::ResourceWarning -m unittest discover -s "$dir" -t "$(top "$dir")" || failed=1
done
exit "$failed"
