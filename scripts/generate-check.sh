#!/usr/bin/env bash
# Runs go generate and fails when that changed, added or removed a file. It
# compares the tree with itself, so it also works before a commit.
set -euo pipefail
cd "$(dirname "$0")/.."
go=${GO:-go}

fingerprint() {
    git ls-files -z -co --exclude-standard |
        while IFS= read -r -d '' f; do [ -f "$f" ] && printf '%s\0' "$f"; done |
        xargs -0 -r sha256sum | sort -k2
}

before=$(fingerprint)
"$go" generate ./...
if ! diff <(printf '%s\n' "$before") <(fingerprint); then
    echo "generated files were out of date (see above): commit what make generate writes" >&2
    exit 1
fi
