#!/usr/bin/env bash
# Builds dist/cjmd_VERSION_ARCH.deb and the rpm, from the sources alone. Needs Go
# and a C compiler; nfpm is fetched at a pinned version.
set -euo pipefail
cd "$(dirname "$0")/../../.."
NFPM=github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.0

stage=dist/stage
rm -rf "$stage"
mkdir -p "$stage"/bin "$stage"/completion/{bash,zsh,fish}
make --no-print-directory build BIN="$stage/bin"

for program in cjmd cjm-ctl; do
    "$stage/bin/$program" man "$stage/man"
    "$stage/bin/$program" completion bash >"$stage/completion/bash/$program"
    "$stage/bin/$program" completion zsh >"$stage/completion/zsh/_$program"
    "$stage/bin/$program" completion fish >"$stage/completion/fish/$program.fish"
done
gzip -9n "$stage"/man/*.1
cp configs/cjmd.yaml "$stage/cjmd.yaml"

# v1.2.3-4-gabc is four commits after 1.2.3. Without a tag: 0.0.0, the commit's
# time (so that newer sorts as newer) and the commit.
if tag=$(git describe --tags --match 'v[0-9]*' 2>/dev/null); then
    PKG_VERSION=${tag#v}
else
    PKG_VERSION=0.0.0~$(git show -s --format=%cd --date=format:%Y%m%d%H%M%S HEAD).$(git rev-parse --short=9 HEAD)
fi
ARCH=$(go env GOARCH)
export PKG_VERSION ARCH
for kind in deb rpm; do
    go run "$NFPM" package --config deploy/deb/nfpm.yaml --packager "$kind" --target dist/
done
rm -rf "$stage"
ls -l dist/cjmd[_-]*
