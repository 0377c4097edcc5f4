"""What a switch with a link aggregation group is to a router with a bond: several wires to one machine, one to all others.

With LACP (IEEE 802.1AX) a frame goes by any of the members upon which both ends agree; without, by the one that its receiver was
heard on last, as switches learn, or else by all. A member named in the file OUT is taken out of the group, as by its administrator: the other end
is told, and what comes by it all the same is "astray".

    lag.py OUT lacp|learn WIRE MEMBER...
"""

import os
import select
import socket
import struct
import sys
import time
import zlib

ETH_P_ALL = 3
SO_RCVBUFFORCE = 33
SOL_PACKET, PACKET_AUXDATA, TP_STATUS_VLAN_VALID = 263, 8, 1 << 4
LONGEST = 2048

SLOW_PROTOCOLS = 0x8809
GROUP = bytes.fromhex("0180c2000002")
OURS = bytes.fromhex("02000000005a")
ACTIVE, SHORT_TIMEOUT, AGGREGATION, SYNCHRONISED, COLLECTING, DISTRIBUTING = (1 << bit for bit in range(6))
WILLING = ACTIVE | SHORT_TIMEOUT | AGGREGATION
# How long one is heard of after its last word, and how often one says it.
SILENCE, PERIOD = 3, 0.5


class Member:
    def __init__(self, number, name):
        self.number, self.name, self.socket = number, name, open_wire(name)
        # What the other end says of itself, and when it has said so.
        self.partner, self.heard, self.is_out = bytes(15), 0.0, False

    def hear(self, frame):
        self.partner, self.heard = frame[18:33], time.monotonic()

    def is_usable(self):
        agreed = self.partner[14] & (SYNCHRONISED | COLLECTING) == SYNCHRONISED | COLLECTING
        return agreed and not self.is_out and time.monotonic() - self.heard < SILENCE

    def tell(self):
        state = WILLING if self.is_out else WILLING | SYNCHRONISED | COLLECTING | DISTRIBUTING
        actor = struct.pack("!H6sHHHB", 1, OURS, 1, 1, self.number, state)
        body = b"\x01\x01" + b"\x01\x14" + actor + bytes(3) + b"\x02\x14" + self.partner + bytes(3)
        body += b"\x03\x10" + bytes(14) + bytes(52)
        self.send(GROUP + OURS + struct.pack("!H", SLOW_PROTOCOLS) + body)

    def send(self, frame):
        try:
            self.socket.send(frame)
        except OSError:
            # Its link is down.
            pass


def open_wire(name):
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    wire.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    wire.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
    wire.bind((name, 0))
    return wire


def receive(wire):
    try:
        frame, notes, _, address = wire.recvmsg(LONGEST, 64)
    except OSError:
        return None
    if address[2] == socket.PACKET_OUTGOING:
        return None
    # Linux takes the tag out of the frame, and tells it beside.
    for _, _, note in notes:
        status, tag, kind = struct.unpack_from("I12x2H", note)
        if status & TP_STATUS_VLAN_VALID:
            frame = frame[:12] + struct.pack("!HH", kind, tag) + frame[12:]
    return frame


def main():
    out, has_lacp, wire = sys.argv[1], sys.argv[2] == "lacp", open_wire(sys.argv[3])
    members = [Member(number, name) for number, name in enumerate(sys.argv[4:], 1)]
    by_socket = {member.socket: member for member in members}
    by_mac, next_word = {}, 0.0
    print("ready", flush=True)
    while True:
        for ready in select.select([wire, *by_socket], [], [], PERIOD)[0]:
            frame = receive(ready)
            member = by_socket.get(ready)
            if frame is None:
                continue
            if member is None:
                if has_lacp:
                    usable = [member for member in members if member.is_usable()]
                    chosen = usable and [usable[zlib.crc32(frame[14:38]) % len(usable)]]
                else:
                    chosen = [by_mac[frame[:6]]] if frame[:6] in by_mac else members
                for member in chosen:
                    member.send(frame)
            elif frame[12:14] == struct.pack("!H", SLOW_PROTOCOLS):
                member.hear(frame)
            elif not has_lacp or member.is_usable():
                by_mac[frame[6:12]] = member
                wire.send(frame)
            else:
                print("astray", member.name, frame[:14].hex(), flush=True)
        if has_lacp and time.monotonic() >= next_word:
            next_word = time.monotonic() + PERIOD
            taken_out = open(out).read().split() if os.path.exists(out) else []
            for member in members:
                member.is_out = member.name in taken_out
                member.tell()


main()
