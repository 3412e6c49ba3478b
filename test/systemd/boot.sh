#!/bin/bash
# Process 1 of the test machine until it execs systemd: boot.sh DIR. It runs in
# fresh mount, PID, cgroup, network, UTS and IPC namespaces, inside a control
# group of its own. The machine's root is this one's, read through an overlay
# whose changes stay in DIR.
set -eu
dir=$1
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$dir"
mkdir "$dir/upper" "$dir/work" "$dir/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" "$dir/root"
cd "$dir/root"

mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
    IFS=: read -r name major minor <<<"$node"
    mknod -m 666 "dev/$name" c "$major" "$minor"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr
mount -t tmpfs -o mode=755 tmpfs run
# A user namespace may mount a /proc of its own only where a whole one is mounted,
# as it is on a machine that needs no read-only /proc/sys.
mkdir -m 700 run/whole-proc
mount -t proc proc run/whole-proc
mount -t tmpfs -o mode=1777 tmpfs tmp
ip link set lo up

# Nothing of the host's services, and nothing of an earlier cjmd.
: >etc/machine-id
: >etc/fstab
rm -rf etc/systemd/system/*.wants lib/systemd/system/{multi-user,sysinit,sockets,timers,local-fs,graphical}.target.wants
rm -rf etc/cjmd var/lib/cjmd var/log/cjmd var/cache/cjmd
for unit in console-getty.service getty@.service systemd-udevd.service systemd-logind.service systemd-networkd.service \
    systemd-resolved.service systemd-timesyncd.service; do
    ln -sf /dev/null "etc/systemd/system/$unit"
done
mkdir -p etc/systemd/system/sockets.target.wants
ln -s /lib/systemd/system/systemd-journald.socket etc/systemd/system/sockets.target.wants/

mkdir -p old
pivot_root . old
umount -l /old
exec env -i container=cjmd-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=journal --show-status=no
