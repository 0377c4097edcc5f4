"""What tunl0, gre0 and a port of fou are to a real server: takes packets out of packets and gives them to Linux.

A kernel may have been built without these. Here Linux puts outer fragments together and checks outer UDP checksums, then this
program takes the headers off by the RFCs, and a TUN device is where the packets inside come in. What is wrong is counted, not passed.

    untunnel.py ipip|gre|gue PORT DEVICE
"""

import os
import socket
import struct
import sys

from tuntap import TUN, open_device

SO_RCVBUFFORCE = 33


def sum_of(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def from_ipip(packet):
    """A raw socket gives the outer IP header, too."""
    return packet[(packet[0] & 15) * 4 :]


def from_gre(packet):
    payload = from_ipip(packet)
    flags, protocol = struct.unpack_from("!HH", payload)
    if protocol != 0x0800 or flags & ~0x8000:
        return None
    if flags & 0x8000:
        return payload[8:] if sum_of(payload) == 0xFFFF else None
    return payload[4:]


def from_gue(payload):
    """Variant 0, no control, no options, IPv4 inside, no flags."""
    return payload[4:] if payload[:4] == b"\0\4\0\0" else None


def main():
    kind, port, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    if kind == "gue":
        outer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        outer.bind(("0.0.0.0", port))
    else:
        outer = socket.socket(socket.AF_INET, socket.SOCK_RAW, {"ipip": 4, "gre": 47}[kind])
    outer.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    take_out = {"ipip": from_ipip, "gre": from_gre, "gue": from_gue}[kind]
    tun = open_device(name, TUN)
    print("ready", flush=True)
    while True:
        inside = take_out(outer.recv(65535))
        if inside and sum_of(inside[: (inside[0] & 15) * 4]) == 0xFFFF:
            os.write(tun, inside)
        else:
            print("not understood", flush=True)


main()
