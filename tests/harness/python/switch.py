"""What a switch with tagged networks (IEEE 802.1Q) is to a router on a stick: one wire carries the frames of several.

A kernel may have been built without VLANs. So the trunk is a TAP device, which has the frames as they are on the wire. What comes
from the router with no tag, or with another one, is told and goes nowhere.

    switch.py TRUNK INTERFACE=ID...
"""

import os
import select
import socket
import struct
import sys

from tuntap import TAP, open_device

ETH_P_ALL = 3
SO_RCVBUFFORCE = 33
LONGEST = 2048


def open_access(name):
    access = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    access.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    access.bind((name, 0))
    return access


def main():
    tap = open_device(sys.argv[1], TAP)
    pairs = (argument.split("=") for argument in sys.argv[2:])
    by_tag = {struct.pack("!HH", 0x8100, int(number)): open_access(name) for name, number in pairs}
    tags = {access: tag for tag, access in by_tag.items()}
    print("ready", flush=True)
    while True:
        for ready in select.select([tap, *tags], [], [])[0]:
            if ready is tap:
                frame = os.read(tap, LONGEST)
                access = by_tag.get(frame[12:16])
                if access:
                    access.send(frame[:12] + frame[16:])
                else:
                    print("not understood", frame[:18].hex(), flush=True)
            else:
                frame, address = ready.recvfrom(LONGEST)
                if address[2] != socket.PACKET_OUTGOING:
                    os.write(tap, frame[:12] + tags[ready] + frame[12:])


main()
