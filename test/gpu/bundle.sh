#!/usr/bin/env bash
# Packs programs, plugins, configuration and run-gpu-checks.sh into one archive
# for a machine with an NVIDIA GPU. Usage: bundle.sh [ARCHIVE]
set -euo pipefail
cd "$(dirname "$0")/../.."
go=${GO:-go} archive=${1:-dist/cjmd-gpu-checks.tar.gz} limit_mb=60
if [ "$("$go" env GOOS)/$("$go" env GOARCH)" != linux/amd64 ]; then
    echo "cannot build the bundle here: its programs use C libraries and are built on linux/amd64" >&2
    exit 1
fi
mkdir -p "$(dirname "$archive")"
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
top=$stage/cjmd-gpu-checks
mkdir -p "$top/bin" "$top/plugins"
# Everything but the C library is linked in; SQLite and NVML need cgo.
version=$(git describe --tags --always --dirty 2>/dev/null || echo unknown)
CGO_ENABLED=1 "$go" build -trimpath -ldflags "-s -w -X main.version=$version" -o "$top/bin/" ./cmd/cjmd ./cmd/cjm-ctl ./test/gpu/checks
cp test/gpu/run-gpu-checks.sh test/gpu/cjmd.yaml "$top/"
cp test/gpu/plugins/*.py "$top/plugins/"
cp docs/gpu.md "$top/README.md"
cp LICENSE "$top/"
# The newest symbol version that a program asks for is the oldest C library it runs on.
grep -haoE 'GLIBC_2\.[0-9]+' "$top"/bin/* | sort -uV | tail -1 | sed 's/GLIBC_//' >"$top/GLIBC"
tar -C "$stage" --owner=0 --group=0 --numeric-owner --sort=name -czf "$archive.new" cjmd-gpu-checks
size=$(stat -c %s "$archive.new")
if [ "$size" -ge $((limit_mb << 20)) ]; then
    rm -f "$archive.new"
    echo "the bundle would be $((size >> 20)) MiB; $limit_mb are allowed" >&2
    exit 1
fi
mv "$archive.new" "$archive"
echo "$archive: $((size >> 20)) MiB, needs glibc $(cat "$top/GLIBC") or newer and a python3 with torch"
echo "there: tar xzf $(basename "$archive") && ./cjmd-gpu-checks/run-gpu-checks.sh"
