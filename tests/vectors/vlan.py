"""The same on one wire: wan and lan are tagged networks (IEEE 802.1Q) of a port "trunk", whose MAC they have."""

import re

from scapy.layers.inet import UDP
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether

from vector import FOUR, LAN, SIX, WAN, Vector, ip, mac

TAGS = {"wan": 100, "lan": 200}
TRUNK = WAN

# Flows, fragments and errors of each mode and family; of tunnels one kind for each pair of families, among them those with the shortest and
# the longest headers.
MODES = "(nat|dr|fullnat|local|routed)(-ipv6)?|snat|tunnel-(ipip|4in6-gue|6in4-gre|6in6-gue-checksum)"
IS_MEANT = re.compile(f"({MODES})(-every)?-(flows|fragments|icmp)").fullmatch


def on_wire(frame, network, **tag):
    """A frame of a network, with its tag."""
    addresses = frame[:12].replace(mac_bytes(LAN), mac_bytes(TRUNK))
    # Behind the tag stands what was behind the addresses.
    return addresses + b"\x81\0" + bytes(Dot1Q(vlan=TAGS[network], **tag))[:2] + frame[12:]


def mac_bytes(text):
    return bytes.fromhex(text.replace(":", ""))


def tagged(vector):
    """A finished vector there. Priority and drop eligibility of what comes are nobody's affair; what leaves has none."""
    result = Vector(f"vlan-{vector.name}")
    result.verdicts = vector.verdicts
    result.came = [("trunk", time, on_wire(frame, network, prio=number & 7, id=number >> 3 & 1))
                   for number, (network, time, frame) in enumerate(vector.came)]
    result.left = [("trunk", time, on_wire(frame, network)) for network, time, frame in vector.left]
    return result


def odd():
    """Networks that nobody knows, and stacked ones, are Linux', with their tags. A tag of priority only is as none, and what is of no network is the
    port's own, which has services as any port."""
    vector = Vector("vlan-nat-odd")
    for family in [FOUR, SIX]:
        datagram = lambda to, port, hops: ip(family.client, to, hops) / UDP(sport=40112, dport=port) / b"a question"
        came, left = datagram(family.vip, 53, 64), datagram(family.server, 5353, 63)
        from_gateway = Ether(dst=TRUNK, src=family.gateway)
        for tags in [Dot1Q(vlan=101), Dot1Q(vlan=4095), Dot1Q(vlan=300) / Dot1Q(vlan=100), Dot1AD(vlan=100), Dot1AD(vlan=7) / Dot1Q(vlan=100)]:
            vector.punt("trunk", from_gateway / tags / came, "vlan")
        # One tag is taken out, so what is inside of a network is tagged for the network's port.
        vector.punt("trunk", from_gateway / Dot1Q(vlan=100) / Dot1Q(vlan=200) / came, "vlan")
        for tags in [Dot1Q(vlan=100, prio=7, id=1), Dot1Q(vlan=0, prio=5), None]:
            frame = from_gateway / tags / came if tags else from_gateway / came
            vector.forward("trunk", frame, "trunk", Ether(dst=mac(family.server), src=TRUNK) / Dot1Q(vlan=200) / left)
            # Named is the network.
            vector.verdicts[-1] = "forward lan"
        vector.drop("trunk", Ether(dst="02:00:00:00:00:99", src=family.gateway) / Dot1Q(vlan=100) / came, "other_host")
    return vector


def vectors(plain):
    """Of these."""
    yield from (tagged(vector) for vector in plain if IS_MEANT(vector.name))
    yield odd()
