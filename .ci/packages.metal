# What `make test-metal` needs beside .ci/packages.
qemu-system-x86   /usr/bin/qemu-system-x86_64
cpio              /usr/bin/cpio
e2fsprogs         /sbin/debugfs
kmod              /sbin/depmod
# The guest's userland is this machine's.
systemd-sysv      /sbin/init
udev              /usr/bin/udevadm
procps            /sbin/sysctl
