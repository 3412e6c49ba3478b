#!/bin/sh
# Process 1 of the virtual machine. First as the initial file system: it makes a
# root that can be left for a user namespace, as machines have, and goes there.
# Then as that: mounts, a delegated control group for each test as systemd gives
# one to a service, the tests, the end.
export PATH=/bin HOME=/root
if [ ! -e /etc/booted ]; then
    mkdir /newroot
    mount -t tmpfs -o size=600m tmpfs /newroot
    cp -a /bin /sbin /usr /etc /root /home /tests /var /init /newroot/
    mkdir /newroot/proc /newroot/sys /newroot/dev /newroot/run /newroot/tmp
    touch /newroot/etc/booted
    exec switch_root /newroot /init
fi
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
echo '+memory +pids +cpu +io' >/sys/fs/cgroup/cgroup.subtree_control
echo "kernel $(uname -r), controllers: $(cat /sys/fs/cgroup/cgroup.controllers)"

failed=0
# What depends on the controllers; the other tests have everything they need on
# any machine.
for test in contained sandboxed 'tiertest -test.run=TestTiers/(contained|sandboxed)/cgroup'; do
    group=/sys/fs/cgroup/service-${test%% *}
    mkdir $group
    echo "=== $test"
    sh -c "echo \$\$ >$group/cgroup.procs && cd /tmp && exec /tests/\"\$0\" -test.v -test.timeout=6m \$1" ${test} >/tmp/out 2>&1 || failed=1
    grep -E '^ *--- (PASS|FAIL|SKIP)|^(PASS|FAIL|panic|ok)|\.go:[0-9]+:' /tmp/out
done
[ $failed = 0 ] && echo VM-TESTS-PASSED
poweroff -f
