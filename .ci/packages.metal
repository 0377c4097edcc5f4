# What `make test-metal` needs beside .ci/packages.
qemu-system-x86   /usr/bin/qemu-system-x86_64
cpio              /usr/bin/cpio
e2fsprogs         /sbin/debugfs
kmod              /sbin/depmod
