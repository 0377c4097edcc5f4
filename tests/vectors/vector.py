"""A vector, and who sends the packets in it and to whom."""

import ipaddress
import logging
import os
import struct

from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

# A runt is no frame of Ethernet, which scapy would say each time.
logging.getLogger("scapy").setLevel(logging.ERROR)

# The rules of `rvs replay`: ports are numbered from 1, and neighbours have the MAC 02:00 and their address.
WAN, LAN = "02:00:00:00:00:01", "02:00:00:00:00:02"


def mac(address):
    """Of a neighbour: of IPv6 by the last four bytes of its address."""
    parsed = ipaddress.ip_address(address)
    return f"02:0{0 if parsed.version == 4 else 6}:" + parsed.packed[-4:].hex(":")


class Family:
    """Who there is, of a family."""

    def __init__(self, packet, gateway, vip, server, other, client, neighbour, router):
        self.packet, self.gateway, self.vip, self.server, self.other = packet, mac(gateway), vip, server, other
        self.client, self.neighbour, self.router = client, neighbour, router

    def next_hop(self, client):
        return mac(client) if client == self.neighbour else self.gateway


FOUR = Family(IP, "0.0.0.254", "192.0.2.10", "10.0.0.11", "10.0.0.12", "198.51.100.7", "192.0.2.77", "203.0.113.9")
SIX = Family(IPv6, "fe80::fe", "2001:db8::10", "2001:db8:a::11", "2001:db8:a::12", "2001:db8:c::7", "2001:db8::77", "2001:db8:f::9")
GATEWAY, VIP, SERVER, OTHER = FOUR.gateway, FOUR.vip, FOUR.server, FOUR.other
CLIENT, NEIGHBOUR, ROUTER = FOUR.client, FOUR.neighbour, FOUR.router


def family_of(address):
    return SIX if ":" in address else FOUR


class Vector:
    """Packets that come in one after the other, and what becomes of them."""

    def __init__(self, name):
        self.name, self.now = name, 1_000_000_000_000_000  # microseconds
        # Port, time in microseconds and bytes of each frame, in the order in which they come and leave.
        self.came, self.left, self.verdicts = [], [], []

    def wait(self, seconds):
        self.now += seconds * 1_000_000

    def forward(self, port, frame, to, rewritten, verdict="forward"):
        self.come(port, frame)
        self.release(frame, to, rewritten, verdict)

    def punt(self, port, frame, reason):
        self.come(port, frame)
        self.verdicts.append(f"punt {reason}")

    def drop(self, port, frame, reason):
        self.come(port, frame)
        self.verdicts.append(f"drop {reason}")

    def hold(self, port, frame):
        self.come(port, frame)
        self.verdicts.append("hold")

    def release(self, came, to, rewritten, verdict="forward"):
        """To a port; of what is Linux', which nothing leaves for, under a name."""
        if rewritten:
            self.left.append((to, came.time, bytes(rewritten)))
        self.verdicts.append(f"{verdict} {to}")

    def come(self, port, frame):
        self.now += 1_000
        frame.time = self.now
        self.came.append((port, self.now, bytes(frame)))

    def write(self, directory):
        directory = os.path.join(directory, self.name)
        os.makedirs(directory, exist_ok=True)
        for way, passed in [("in", self.came), ("out", self.left)]:
            for port in {port for port, _, _ in passed}:
                with open(os.path.join(directory, f"{port}.{way}.pcap"), "wb") as file:
                    # Ethernet, and microseconds.
                    file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
                    for time, frame in [(time, frame) for at, time, frame in passed if at == port]:
                        file.write(struct.pack("<IIII", *divmod(time, 1_000_000), len(frame), len(frame)) + frame)
        with open(os.path.join(directory, "verdicts"), "w") as file:
            file.writelines(line + "\n" for line in self.verdicts)


def at_wan(packet, source=GATEWAY):
    return Ether(dst=WAN, src=source) / packet


def at_lan(packet, source=SERVER):
    return Ether(dst=LAN, src=mac(source)) / packet


def to_server(packet):
    return Ether(dst=mac(packet.dst), src=LAN) / packet


def to_client(packet, neighbour=GATEWAY):
    return Ether(dst=neighbour, src=WAN) / packet


def ip(source, destination, ttl=64, **more):
    if family_of(destination) is SIX:
        return IPv6(src=source, dst=destination, hlim=ttl, tc=0x12, fl=0x34567, **more)
    return IP(src=source, dst=destination, ttl=ttl, id=0x1234, **more)


class Nat:
    """A client's connection by NAT: each packet as it comes in and as it has to leave."""

    def __init__(self, vector, layer, virtual, real, port=40112, server=SERVER, client=CLIENT):
        self.vector, self.layer, self.virtual, self.real = vector, layer, virtual, real
        self.port, self.server, self.client = port, server, client
        self.vip, self.next_hop = family_of(client).vip, family_of(client).next_hop(client)

    def request(self, payload=b"", ttl=64, **more):
        come, leave = more.pop("ip", {}), more.pop("ip_left", more.get("ip", {}))
        data = Raw(payload) if payload else None
        def packet(destination, port, ttl, options):
            headers = ip(self.client, destination, ttl, **options) / self.layer(sport=self.port, dport=port, **more)
            return headers / data if data else headers
        self.vector.forward(
            "wan", at_wan(packet(self.vip, self.virtual, ttl, come), self.next_hop),
            "lan", to_server(packet(self.server, self.real, ttl - 1, leave or come)))

    def reply(self, payload=b"", ttl=64, **more):
        data = Raw(payload) if payload else None
        def packet(source, port, ttl):
            headers = ip(source, self.client, ttl) / self.layer(sport=port, dport=self.port, **more)
            return headers / data if data else headers
        self.vector.forward(
            "lan", at_lan(packet(self.server, self.real, ttl), self.server),
            "wan", to_client(packet(self.vip, self.virtual, ttl - 1), self.next_hop))
