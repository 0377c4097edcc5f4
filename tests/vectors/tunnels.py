"""What tunnels have beyond what every mode has (matrix.py): errors about the packet around, and the segment size that fits."""

import functools

from scapy.layers.inet import ICMP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, ICMPv6ParamProblem, ICMPv6TimeExceeded
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from matrix import MODES, Tunnel, begin, errors, flags, packet
from vector import LAN, SIX, Vector, ip, mac


def is_told(error):
    """Whether a client hears of it (RFC 2003, section 4; RFC 2473, section 8): what is too long, and what does not arrive for another reason than
    how the packet around was made."""
    if isinstance(error, ICMP):
        return (error.type, error.code) == (11, 0) or error.type == 3 and error.code != 5
    if isinstance(error, ICMPv6TimeExceeded):
        return error.code == 0
    # Nobody there takes packets out of others.
    return isinstance(error, (ICMPv6DestUnreach, ICMPv6PacketTooBig)) or isinstance(error, ICMPv6ParamProblem) and error.code == 1


def outer_errors(mode):
    """From between the router and the server. The client is told of its own packet by the control thread, which no capture shows; the verdict is
    `tunnel_error`. All others are Linux', as are those about no packet of a connection, and those that do not quote enough of it."""
    vector = Vector(f"{mode.name}-outer-errors")
    own, server, reporter = [("10.0.0.1", "10.0.0.11", "10.0.0.99"), ("2001:db8:a::1", "2001:db8:a::11", "2001:db8:a::99")][mode.over is SIX]

    def reported(quote, error, verdict, by=reporter):
        report = ip(by, own) / error / Raw(quote)
        vector.punt("lan", Ether(dst=LAN, src=mac(by)) / report, verdict)

    for layer in [UDP, TCP]:
        sent = functools.cache(lambda client_port=40112: bytes(mode.outside(packet(
            layer, (mode.family.client, client_port), mode.near(layer)[1], 63, b"a question, quoted", **flags(layer, "S")), layer)))
        begin(mode, vector, layer)
        # All, and as much as has the ports and the eight bytes that they are in.
        headers = len(sent()) - len(b"a question, quoted") - (20 if layer is TCP else 8)
        for error in errors(mode.over):
            for length in [headers + 8, 1000]:
                for by in [reporter, server]:
                    reported(sent()[:length], error, "tunnel_error" if is_told(error) else "icmp", by)
        unreachable = ICMPv6DestUnreach(code=0) if mode.over is SIX else ICMP(type=3, code=1)
        reported(sent()[:headers + 7], unreachable, "icmp")
        reported(sent(7), unreachable, "icmp")
        # Damaged on its way, or made up.
        damaged = unreachable.copy()
        damaged.setfieldval("cksum" if mode.over is SIX else "chksum", 0x1234)
        reported(sent(), damaged, "icmp")
    return vector


# Services whose SYNs tell no more than this: the link without TCP, IP and the IP around.
CLAMPED = [
    (Tunnel("", "192.0.2.20"), 1500 - 20 - 40),
    (Tunnel("", "2001:db8::25", inside=SIX, outside=SIX), 1500 - 40 - 60),
    (Tunnel("", "192.0.2.21", outside=SIX), 1500 - 40 - 40),
    (Tunnel("", "2001:db8::26", inside=SIX), 1300),
]


def mss():
    """`mss_clamp`: a client's SYN tells no larger segment than fits into the tunnel (RFC 9293, section 3.7.1), or than the file says."""
    vector = Vector("tunnel-mss-clamp")
    for mode, limit in CLAMPED:
        def segment(flags, come, leave):
            build = lambda options: lambda *ends: packet(TCP, *ends, b"", flags=flags, options=options)
            ends, (name, router) = (mode.near(TCP)), mode.near_port
            came = Ether(dst=router, src=mode.near_hop) / build(come)(*ends, 64)
            left = Ether(dst=mode.far_hop, src=LAN) / mode.outside(build(leave)(*ends, 63), TCP)
            vector.forward(name, came, "lan", left)
        tells = lambda size: [("SAckOK", b""), ("MSS", size), ("Timestamp", (7, 0))]
        odd = lambda size: [("NOP", None), ("MSS", size), ("NOP", None), ("NOP", None), ("NOP", None)]
        for options in [tells, odd]:
            for size in [limit + 1, 1460, 9000]:
                segment("S", options(size), options(min(size, limit)))
            for size in [limit, 536]:
                segment("S", options(size), options(size))
        segment("S", [("SAckOK", b"")], [("SAckOK", b"")])
        # Of what does not begin a connection it is nothing that anybody heeds.
        segment("A", tells(9000), tells(9000))
    return vector


def vectors():
    yield from (outer_errors(mode) for mode in MODES if isinstance(mode, Tunnel))
    yield mss()
