"""A device whose frames or packets are a program's (Linux, Documentation/networking/tuntap.rst)."""

import fcntl
import os
import struct
import subprocess

TUNSETIFF = 0x400454CA
IFF_NO_PI = 0x1000
TUN, TAP = 1, 2


def open_device(name, kind):
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), kind | IFF_NO_PI))
    subprocess.run(["ip", "link", "set", name, "up"], check=True)
    return device
