#!/usr/bin/env bash
# Runs the tests of the isolation tiers in a virtual machine whose kernel has all
# controllers of cgroup v2: memory, processes, processor and I/O are limited for
# real there. Needs qemu-system-x86_64, busybox-static, and a Debian kernel package,
# which is downloaded. What is missing is said, and the run is skipped. Stops by
# itself after VM_MINUTES (default 10). VM_ACCEL=kvm is faster where it works.
set -euo pipefail
cd "$(dirname "$0")/../.."

skip() { echo "make vm-test: skipped: $1" >&2; exit 0; }
[ "$(uname -m)" = x86_64 ] || skip 'written for x86_64'
for tool in qemu-system-x86_64 cpio dpkg-deb; do
    command -v "$tool" >/dev/null || skip "$tool is missing (apt-get install qemu-system-x86 cpio)"
done
busybox=$(command -v busybox || true)
[ -n "$busybox" ] && ! ldd "$busybox" >/dev/null 2>&1 || skip 'a static busybox is missing (apt-get install busybox-static)'

work=dist/vm
rm -rf "$work/root"
mkdir -p "$work/root"/{bin,proc,sys,dev,tmp,var/tmp,run,root,home,etc,tests}

# A kernel of the distribution; VM_KERNEL names another one.
kernel=${VM_KERNEL:-}
if [ -z "$kernel" ]; then
    kernel=$(ls "$work"/kernel/boot/vmlinuz-* 2>/dev/null | head -n 1 || true)
    if [ -z "$kernel" ]; then
        package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | awk '/Depends: linux-image/ {print $2; exit}')
        [ -n "$package" ] || skip 'no kernel package is known here (apt-get update?)'
        (cd "$work" && apt-get download "$package" >/dev/null 2>&1) || skip "$package cannot be downloaded"
        dpkg-deb -x "$work/$package"_*.deb "$work/kernel"
        kernel=$(ls "$work"/kernel/boot/vmlinuz-*)
    fi
fi

# Static test binaries: none of this needs C.
for pkg in contained sandboxed tiertest; do
    CGO_ENABLED=0 "${GO:-go}" test -c -o "$work/root/tests/$pkg" "./internal/isolation/$pkg"
done
cp "$busybox" "$work/root/bin/busybox"
for name in $("$busybox" --list); do
    [ "$name" = busybox ] || ln -sf busybox "$work/root/bin/$name"
done
mkdir -p "$work/root/usr"
ln -s /bin "$work/root/sbin"
ln -s /bin "$work/root/usr/bin"
printf 'root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >"$work/root/etc/passwd"
cp test/vm/init.sh "$work/root/init"
(cd "$work/root" && find . -print0 | cpio --null -o -H newc --quiet) | gzip -1 >"$work/initrd.gz"

# In software everywhere: a /dev/kvm may be there and hang in the firmware.
timeout --kill-after=10s "${VM_MINUTES:-10}m" qemu-system-x86_64 -accel "${VM_ACCEL:-tcg}" -m 1536 -smp 2 -nographic -no-reboot -nic none \
    -kernel "$kernel" -initrd "$work/initrd.gz" -append 'console=ttyS0 loglevel=3 no_timer_check panic=-1 rdinit=/init' </dev/null |
    tee "$work/console.log"
grep -q '^VM-TESTS-PASSED' "$work/console.log" || { echo 'make vm-test: failed' >&2; exit 1; }
