#!/usr/bin/env bash
# Builds the package, boots a real systemd in namespaces of its own and runs the
# service there. Needs root, systemd, dpkg and a cgroup v2 mount (hybrid is
# enough). Touches nothing of the host but one control group and one directory
# below TMPDIR, and removes both.
set -euo pipefail
cd "$(dirname "$0")/../.."

miss() { echo "make systemd-test cannot run here: $1" >&2; exit 1; }
[ "$(id -u)" = 0 ] || miss 'it makes namespaces and mounts as root'
[ -x /lib/systemd/systemd ] || miss 'there is no systemd to boot'
for tool in dpkg unshare nsenter pivot_root ip; do
    command -v "$tool" >/dev/null || miss "$tool is missing"
done
grep -q ' cgroup2 ' /proc/mounts || miss 'no cgroup v2 hierarchy is mounted'

rm -f dist/cjmd[_-]*.deb dist/cjmd-*.rpm
make --no-print-directory deb
exec env CJMD_DEB="$(ls "$PWD"/dist/cjmd_*.deb)" "${GO:-go}" test -count=1 -timeout 10m -tags systemd -v ./test/systemd/
