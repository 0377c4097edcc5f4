"""What tunl0, sit0, ip6tnl0, gre0 and a port of fou are to a real server: takes packets out of packets and gives them to Linux.

A kernel may have been built without these. Here Linux puts outer fragments together and checks outer UDP checksums, then this
program takes the headers off by the RFCs, and a TUN device is where the packets inside come in: IPv4 and IPv6, whichever is around
them. What is wrong is counted, not passed.

    untunnel.py ipip|gre|gue PORT DEVICE
"""

import os
import select
import socket
import struct
import sys

from tuntap import TUN, open_device

SO_RCVBUFFORCE = 33
UDP_NO_CHECK6_RX = 102
IPV4_INSIDE, GRE, IPV6_INSIDE = 4, 47, 41


def sum_of(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def from_gre(payload):
    """Flags and version, then what is inside."""
    flags, protocol = struct.unpack_from("!HH", payload)
    if flags & ~0x8000:
        return None, None
    if flags & 0x8000 and sum_of(payload) != 0xFFFF:
        return None, None
    return {0x0800: 4, 0x86DD: 6}.get(protocol), payload[8 if flags & 0x8000 else 4 :]


def from_gue(payload):
    """Variant 0, no control, no options, IPv4 or IPv6 inside, no flags."""
    return {b"\0\x04\0\0": 4, b"\0\x29\0\0": 6}.get(payload[:4]), payload[4:]


def outer_sockets(kind, port):
    """Each with what takes the packet inside out of what it gives, and says of which version it is to be."""
    for family, version in [(socket.AF_INET, 4), (socket.AF_INET6, 6)]:
        if kind == "gue":
            outer = socket.socket(family, socket.SOCK_DGRAM)
            if version == 6:
                outer.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                outer.setsockopt(socket.IPPROTO_UDP, UDP_NO_CHECK6_RX, 1)
            outer.bind(("", port))
            yield outer, from_gue
            continue
        # A raw socket of IPv4 gives the outer IP header, too.
        skip = (lambda packet: packet[(packet[0] & 15) * 4 :]) if version == 4 else (lambda payload: payload)
        for protocol, inside in {"ipip": [(IPV4_INSIDE, 4), (IPV6_INSIDE, 6)], "gre": [(GRE, None)]}[kind]:
            take_out = (lambda data, skip=skip, inside=inside: (inside, skip(data))) if inside else (
                lambda data, skip=skip: from_gre(skip(data)))
            yield socket.socket(family, socket.SOCK_RAW, protocol), take_out


def is_good(version, packet):
    """Of the version that its number says, and of IPv4 with a right sum."""
    if not packet or packet[0] >> 4 != version:
        return False
    return version == 6 or sum_of(packet[: (packet[0] & 15) * 4]) == 0xFFFF


def main():
    kind, port, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    sockets = dict(outer_sockets(kind, port))
    for outer in sockets:
        outer.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    tun = open_device(name, TUN)
    print("ready", flush=True)
    while True:
        for outer in select.select(list(sockets), [], [])[0]:
            version, packet = sockets[outer](outer.recv(65535))
            if is_good(version, packet):
                os.write(tun, packet)
            else:
                print("not understood", flush=True)


main()
