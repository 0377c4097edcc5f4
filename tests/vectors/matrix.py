"""What every mode has to do alike: flows, options and extension headers, fragments, ICMP errors, SCTP; a vector for each, mode by mode.

A mode is two pairs of ends, one on each side of the router; all that is sent is built once with the one pair and once with the other. That the router
changes nothing else is so checked of all modes by the same packets.
"""

import functools
import ipaddress

from scapy.layers.inet import GRE, ICMP, IP, TCP, UDP, IPOption_NOP, IPOption_RR
from scapy.layers.inet6 import (ICMPv6DestUnreach, ICMPv6PacketTooBig, ICMPv6ParamProblem, ICMPv6TimeExceeded, IPv6, IPv6ExtHdrDestOpt,
                                IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, PadN)
from scapy.layers.l2 import Ether
from scapy.layers.sctp import (SCTP, SCTPChunkAbort, SCTPChunkCookieAck, SCTPChunkCookieEcho, SCTPChunkData, SCTPChunkHeartbeatReq,
                                SCTPChunkInit, SCTPChunkInitAck, SCTPChunkSACK, SCTPChunkShutdown, SCTPChunkShutdownAck,
                                SCTPChunkShutdownComplete)
from scapy.packet import Raw

from vector import FOUR, LAN, SIX, WAN, Vector, ip, mac

# Ports of the service and, where they may be others, of its servers; pings are asked of nobody's.
PORTS = {TCP: (80, 8080), UDP: (53, 5353), SCTP: (3868, 13868), ICMP: (None, None)}
CLIENT_PORT = 40112


class Mode:
    """Who a connection is between where its first packets come from, `near`, and where they go, `far`: client and service, with ports."""

    verdict = "forward"
    # Replies come by the router; an error's sender is to the far side a local address, to the near side the service.
    has_replies, reports_as_local, hides_reporters = True, False, True
    # Ports where packets come in, and where they go.
    near_port, far_port = ("wan", WAN), ("lan", LAN)
    # What is only routed is Linux' with options for routers.
    takes_options = True
    # It goes on from here, and needs a hop for that.
    routes = True

    def __init__(self, name, family):
        self.name, self.family = name + ("" if family is FOUR else "-ipv6"), family
        self.near_hop, self.far_hop = family.gateway, mac(family.server)
        # Routers on the way, on either side.
        self.near_router, self.far_router = family.router, "10.0.0.99" if family is FOUR else "2001:db8:a::99"

    def near(self, layer):
        return (self.family.client, CLIENT_PORT), (self.family.vip, PORTS[layer][0])

    def far(self, layer):
        return (self.family.client, CLIENT_PORT), (self.family.server, PORTS[layer][1])

    def to_server(self, layer):
        """The MAC of the next hop on the far side."""
        return self.far_hop

    def outside(self, packet, layer):
        """What is around a packet that goes to a server."""
        return packet

    def request(self, vector, layer, build, send=None):
        """build(from, to, hops) is what comes and what leaves."""
        (near_name, near_mac), (far_name, far_mac) = self.near_port, self.far_port
        came = Ether(dst=near_mac, src=self.near_hop) / build(*self.near(layer), 64)
        left = Ether(dst=self.to_server(layer), src=far_mac) / self.outside(build(*self.far(layer), 63), layer)
        return (send or vector.forward)(near_name, came, far_name, left, self.verdict)

    def reply(self, vector, layer, build, send=None):
        (near_name, near_mac), (far_name, far_mac) = self.near_port, self.far_port
        came = Ether(dst=far_mac, src=self.far_hop) / build(*reversed(self.far(layer)), 64)
        left = Ether(dst=self.near_hop, src=near_mac) / build(*reversed(self.near(layer)), 63)
        return (send or vector.forward)(far_name, came, near_name, left, self.verdict)


class Dr(Mode):
    has_replies = False
    far_port = ("wan", WAN)

    def to_server(self, layer):
        # In turns, which begin with the server that was added last.
        if self.family is SIX:
            return mac("2001:db8::11")
        return mac("192.0.2.12" if layer is UDP else "192.0.2.11")

    def far(self, layer):
        return self.near(layer)


class Tunnel(Mode):
    """As direct routing, but in another packet: RFC 2003, RFC 2473, RFC 4213, RFC 2784, draft-ietf-intarea-gue."""

    has_replies = False

    def __init__(self, name, vip, protocol=None, headers=None, inside=FOUR, outside=FOUR, server=None):
        super().__init__(name, inside)
        self.name, self.vip, self.headers, self.over = name, vip, headers, outside
        self.protocol = protocol or {IP: 4, IPv6: 41}[inside.packet]
        self.server = server or outside.server
        self.far_hop = mac(self.server)

    def near(self, layer):
        return (self.family.client, CLIENT_PORT), (self.vip, PORTS[layer][0])

    def far(self, layer):
        return self.near(layer)

    def outside(self, packet, layer):
        return self.around(packet, spread_by(self.family.client, CLIENT_PORT))

    def around(self, packet, who):
        """A packet to the server, of a client of these twenty bits (spread_by)."""
        # RFC 6040, section 4.1, normal mode.
        traffic_class = packet.tos if self.family is FOUR else packet.tc
        if self.over is SIX:
            outer = IPv6(src="2001:db8:a::1", dst=self.server, hlim=64, nh=self.protocol, tc=traffic_class, fl=who)
        else:
            # RFC 2003, section 3.1; RFC 4213, section 3.2.1: all that is sent here is short enough.
            outer = IP(src="10.0.0.1", dst=self.server, ttl=64, id=max(self.number(packet, who >> 4), 1), proto=self.protocol,
                       tos=traffic_class, flags="DF" if self.family is FOUR and packet.flags.DF else 0)
        inside = Raw(bytes(packet))
        return outer / self.headers(self.family, 0xC000 | who >> 4) / inside if self.headers else outer / inside

    def number(self, packet, who):
        """RFC 6864 leaves it to us, unless two packets at a time have the same one."""
        if self.family is FOUR:
            return packet.id ^ who ^ (packet.frag * 0x9E37 & 0xFFFF)
        hashed, begins = 0, bytes(packet)[:64]
        for at in range(0, len(begins), 8):
            hashed = folded(hashed ^ int.from_bytes(begins[at:at + 8].ljust(8, b"\0")), FACTOR)
        return hashed >> 32 & 0xFFFF


FACTOR, WORD = 0x9E3779B97F4A7C15, (1 << 64) - 1
# Of the table's hash in `rvs replay`: SipHash-1-3 of nothing, with the keys (0, 0) and (0, 1).
BLIND, KEYED_FACTOR = 0xD1FBA762150C532C, 0x72214E94C57FB49A | 1


def folded(one, other):
    product = one * other
    return (product ^ product >> 64) & WORD


def spread_by(client, port, virtual_port=0):
    """Twenty bits for source ports and flow labels, by which routers on the way spread what goes through a tunnel (RFC 6438). They are ours to choose,
    if those of a connection stay the same: a multiplicative hash of the client's address and port, and of the virtual port in a service of all ports, so
    that all routers choose alike; an address of IPv6 is hashed under the table's key before."""
    parsed = ipaddress.ip_address(client)
    address, more = int(parsed), virtual_port
    if parsed.version == 6:
        lower, upper = address & WORD, address >> 64
        hashed = folded(folded(lower ^ BLIND, KEYED_FACTOR) ^ upper, FACTOR)
        address, more = hashed & 0xFFFFFFFF, more ^ hashed >> 32 & 0xFFFF
    return ((address | port << 32 | more << 48) * FACTOR & WORD) >> 44


def gue(checksum):
    """UDP, and GUE's first word: variant 0, no flags, IPv4 or IPv6 inside. Without a checksum, as a tunnel's UDP may be."""
    word = {FOUR: b"\0\x04\0\0", SIX: b"\0\x29\0\0"}
    return lambda family, port: UDP(sport=port, dport=6080, **({} if checksum else {"chksum": 0})) / Raw(word[family])


def gre(checksum):
    return lambda family, _: GRE(proto={FOUR: 0x0800, SIX: 0x86DD}[family], chksum_present=int(checksum))


class Local(Mode):
    """The server is the router itself: all of it is Linux' as it came, and Linux answers on its own."""

    has_replies, routes = False, False

    def far(self, layer):
        return self.near(layer)

    def request(self, vector, layer, build, send=None):
        name, router = self.near_port
        came = Ether(dst=router, src=self.near_hop) / build(*self.near(layer), 64)
        return (send or vector.forward)(name, came, "local", None, "punt")


class Fullnat(Mode):
    """The server's client is the router. Its pool has one port, so which one is taken is no question."""

    reports_as_local = True

    def far(self, layer):
        local = "10.0.0.100" if self.family is FOUR else "2001:db8:a::100"
        return (local, 5000), (self.family.server, PORTS[layer][1])


class Routed(Mode):
    """Between two hosts that no service knows."""

    verdict, hides_reporters, takes_options = "route", False, False

    def __init__(self, name, family):
        super().__init__(name, family)
        self.host = "10.0.0.50" if family is FOUR else "2001:db8:a::50"
        self.far_hop = mac(self.host)

    def near(self, layer):
        return (self.family.client, CLIENT_PORT), (self.host, PORTS[layer][0])

    def far(self, layer):
        return self.near(layer)


class Snat(Mode):
    """From inside to anywhere: the pool has two ports, one of each parity (RFC 4787, REQ-4)."""

    verdict, reports_as_local, hides_reporters, takes_options = "route", True, False, False
    near_port, far_port = ("lan", LAN), ("wan", WAN)

    def __init__(self, name, family):
        super().__init__(name, family)
        self.near_hop, self.far_hop = mac("10.0.0.50"), family.gateway
        self.near_router, self.far_router = "10.0.0.99", family.router

    def near(self, layer):
        return ("10.0.0.50", CLIENT_PORT), (self.family.client, PORTS[layer][0])

    def far(self, layer):
        return ("192.0.2.50", 5000), (self.family.client, PORTS[layer][0])


MODES = [
    Mode("nat", FOUR), Dr("dr", FOUR),
    Tunnel("tunnel-ipip", "192.0.2.10"),
    Tunnel("tunnel-gre", "192.0.2.11", 47, gre(False)), Tunnel("tunnel-gre-checksum", "192.0.2.12", 47, gre(True)),
    Tunnel("tunnel-gue", "192.0.2.13", 17, gue(False)), Tunnel("tunnel-gue-checksum", "192.0.2.14", 17, gue(True)),
    Tunnel("tunnel-4in6-ipip", "192.0.2.15", outside=SIX),
    Tunnel("tunnel-4in6-gre", "192.0.2.16", 47, gre(False), outside=SIX),
    Tunnel("tunnel-4in6-gre-checksum", "192.0.2.17", 47, gre(True), outside=SIX),
    Tunnel("tunnel-4in6-gue", "192.0.2.18", 17, gue(False), outside=SIX),
    Tunnel("tunnel-4in6-gue-checksum", "192.0.2.19", 17, gue(True), outside=SIX),
    Tunnel("tunnel-6in4-ipip", "2001:db8::15", inside=SIX),
    Tunnel("tunnel-6in4-gre", "2001:db8::16", 47, gre(False), inside=SIX),
    Tunnel("tunnel-6in4-gre-checksum", "2001:db8::17", 47, gre(True), inside=SIX),
    Tunnel("tunnel-6in4-gue", "2001:db8::18", 17, gue(False), inside=SIX),
    Tunnel("tunnel-6in4-gue-checksum", "2001:db8::19", 17, gue(True), inside=SIX),
    Tunnel("tunnel-6in6-ipip", "2001:db8::20", inside=SIX, outside=SIX),
    Tunnel("tunnel-6in6-gre", "2001:db8::21", 47, gre(False), inside=SIX, outside=SIX),
    Tunnel("tunnel-6in6-gre-checksum", "2001:db8::22", 47, gre(True), inside=SIX, outside=SIX),
    Tunnel("tunnel-6in6-gue", "2001:db8::23", 17, gue(False), inside=SIX, outside=SIX),
    Tunnel("tunnel-6in6-gue-checksum", "2001:db8::24", 17, gue(True), inside=SIX, outside=SIX),
    Fullnat("fullnat", FOUR), Fullnat("fullnat", SIX),
    Local("local", FOUR), Local("local", SIX),
    Routed("routed", FOUR), Routed("routed", SIX),
    Snat("snat", FOUR),
]


def packet(layer, source, to, hops, payload, header={}, **more):
    return ip(source[0], to[0], hops, **header) / layer(sport=source[1], dport=to[1], **more) / Raw(payload)


def flags(layer, value):
    return {"flags": value} if layer is TCP else {}


def begin(mode, vector, layer):
    mode.request(vector, layer, lambda *ends: packet(layer, *ends, b"a question, quoted", **flags(layer, "S")))
    if mode.has_replies:
        mode.reply(vector, layer, lambda *ends: packet(layer, *ends, b"an answer, quoted", **flags(layer, "SA")))


def flows(mode, vector):
    """A connection as it begins, is, and ends; class, no checksum, and sums that are one of the two zeros of one's complement."""
    for layer in [TCP, UDP]:
        begin(mode, vector, layer)
        bodies = [b"x", b"odd length: " + bytes(range(255)), b"\xff" * 1200]
        for body in bodies:
            mode.request(vector, layer, lambda *ends: packet(layer, *ends, body, **flags(layer, "PA")))
            if mode.has_replies:
                mode.reply(vector, layer, lambda *ends: packet(layer, *ends, body, **flags(layer, "PA")))
    for ends in [mode.near(UDP), mode.far(UDP)]:
        zero = mode.family.packet(bytes(packet(UDP, *ends, 64, b"\0\0")))[UDP].chksum
        for number in range(zero - 2, zero + 3):
            body = bytes([number >> 8 & 255, number & 255])
            mode.request(vector, UDP, lambda *ends: packet(UDP, *ends, body))
            if mode.has_replies:
                mode.reply(vector, UDP, lambda *ends: packet(UDP, *ends, body))
    if mode.family is FOUR:
        mode.request(vector, UDP, lambda *ends: packet(UDP, *ends, b"unchecked", chksum=0))
        for tos in [0xB8, 1, 2, 3]:
            mode.request(vector, UDP, lambda *ends: packet(UDP, *ends, b"class", header={"tos": tos, "flags": "DF"}))
    for last in [0, 1]:
        (name, router), (source, to) = mode.near_port, mode.near(UDP)
        frame = Ether(dst=router, src=mode.near_hop) / packet(UDP, source, to, last, b"x")
        if mode.routes:
            vector.drop(name, frame, "ttl_expired")
        else:
            vector.punt(name, frame, "local")
    for layer in [TCP, UDP]:
        mode.request(vector, layer, lambda *ends: packet(layer, *ends, b"", **flags(layer, "FA")))


def options(mode, vector):
    """IP options and extension headers go along as they are."""
    if mode.family is FOUR:
        headers = [{"options": [IPOption_NOP()] * 4},
                   {"options": [IPOption_NOP(), IPOption_RR(pointer=4, routers=["0.0.0.0"] * 2)]}]
        build = lambda layer, header, flag: lambda *ends: packet(layer, *ends, b"data", header=header, **flags(layer, flag))
    else:
        pad = lambda kind, length: kind(options=[PadN(optdata=b"\0" * length)])
        headers = [pad(IPv6ExtHdrDestOpt, 12), IPv6ExtHdrFragment(offset=0, m=0, id=7)]
        if mode.takes_options:
            headers += [pad(IPv6ExtHdrHopByHop, 4), pad(IPv6ExtHdrHopByHop, 4) / pad(IPv6ExtHdrDestOpt, 4)]
        build = lambda layer, header, flag: lambda source, to, hops: (
            ip(source[0], to[0], hops) / header / layer(sport=source[1], dport=to[1], **flags(layer, flag)) / Raw(b"data"))
    for layer in [TCP, UDP]:
        begin(mode, vector, layer)
        for header in headers:
            if mode.family is FOUR and not mode.takes_options:
                (name, router), (source, to) = mode.near_port, mode.near(layer)
                frame = Ether(dst=router, src=mode.near_hop) / build(layer, header, "A")(source, to, 64)
                vector.punt(name, frame, "no_service")
                continue
            mode.request(vector, layer, build(layer, header, "A"))
            if mode.has_replies:
                mode.reply(vector, layer, build(layer, header, "A"))


# Of four fragments.
LARGE = bytes(range(250)) * 13
NUMBERS = {TCP: 6, UDP: 17, SCTP: 132, ICMP: 1}


def large(layer):
    return lambda *ends: packet(layer, *ends, LARGE, **flags(layer, "PA"))


class Datagram:
    """Four fragments, as they come and as they leave (RFC 791, section 3.2; RFC 8200, section 4.5)."""

    def __init__(self, mode, vector, send, number, layer, whole=None):
        protocol, whole = NUMBERS[layer], functools.cache(whole or large(layer))
        def build(index):
            def of(source, to, hops):
                data = bytes(whole(source, to, hops))[20 if mode.family is FOUR else 40:]
                offset, more = index * 128, int(index < 3)
                part = Raw(data[offset * 8:][:1024])
                if mode.family is FOUR:
                    return IP(src=source[0], dst=to[0], ttl=hops, id=number, proto=protocol, frag=offset, flags=more) / part
                return ip(source[0], to[0], hops) / IPv6ExtHdrFragment(nh=protocol, offset=offset, m=more, id=number) / part
            return of
        self.vector, self.sent = vector, [send(vector, layer, build(index), lambda *sent: sent) for index in range(4)]

    def forward(self, *indices):
        for index in indices:
            self.vector.forward(*self.sent[index])

    def hold(self, *indices):
        for index in indices:
            self.vector.hold(*self.sent[index][:2])

    def release(self, *indices):
        for index in indices:
            _, came, port, left, verdict = self.sent[index]
            self.vector.release(came, port, left, verdict)


def large_ping(source, to, hops):
    return ip(source[0], to[0], hops) / ICMP(type=8, id=source[1], seq=7) / Raw(LARGE)


def large_pong(source, to, hops):
    return ip(source[0], to[0], hops) / ICMP(type=0, id=to[1], seq=7) / Raw(LARGE)


def fragments(mode, vector):
    """In order, backwards, and two datagrams at once: each goes where its first goes, and what comes before that waits."""
    number = iter(range(0x101, 0x200))
    for layer in [UDP, TCP]:
        begin(mode, vector, layer)
        for send in [mode.request, mode.reply] if mode.has_replies else [mode.request]:
            shuffled(mode, vector, send, number, layer)
        if isinstance(mode, Snat) and layer is UDP:
            # Who asks by ping is known by the identifier, in the first fragment.
            shuffled(mode, vector, mode.request, number, ICMP, large_ping)
            shuffled(mode, vector, mode.reply, number, ICMP, large_pong)


def shuffled(mode, vector, send, number, *kind):
    datagram = lambda: Datagram(mode, vector, send, next(number), *kind)
    datagram().forward(0, 1, 2, 3)
    backwards = datagram()
    backwards.hold(3, 2, 1)
    backwards.forward(0)
    backwards.release(3, 2, 1)
    one, other = datagram(), datagram()
    other.hold(1)
    one.forward(0, 2)
    other.hold(3)
    other.forward(0)
    other.release(1, 3)
    one.forward(1)
    other.forward(2)
    one.forward(3)


def routed_fragments(mode, vector):
    """Of what is only routed no fragment waits for another."""
    for layer in [UDP, TCP]:
        for indices in [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2)]:
            for send in [mode.request, mode.reply]:
                Datagram(mode, vector, send, 0x101, layer).forward(*indices)


def errors(family):
    """Errors of each type, to be put in front of a quote."""
    if family is FOUR:
        yield from [ICMP(type=3, code=code) for code in [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]]
        yield from [ICMP(type=3, code=4, nexthopmtu=1280), ICMP(type=4), ICMP(type=11, code=0), ICMP(type=11, code=1)]
        yield from [ICMP(type=12, code=0, ptr=8), ICMP(type=12, code=1), ICMP(type=12, code=2)]
    else:
        yield from [ICMPv6DestUnreach(code=code) for code in range(7)]
        yield from [ICMPv6PacketTooBig(mtu=1280)]
        yield from [ICMPv6TimeExceeded(code=code) for code in range(2)]
        yield from [ICMPv6ParamProblem(code=code, ptr=40) for code in range(3)]


def icmp(mode, vector):
    """Errors about a connection follow it, and what they quote is as it was there (RFC 5508, section 4): 8 bytes of it, and all."""
    header = 20 if mode.family is FOUR else 40
    for layer in [TCP, UDP]:
        begin(mode, vector, layer)
        quoted = functools.cache(lambda source, to, text, flag: bytes(packet(layer, source, to, 63, text, **flags(layer, flag))))
        for error in errors(mode.family):
            for length in [header + 8, 1000]:
                for reporter in [mode.near(layer)[0][0], mode.near_router]:
                    def about_reply(source, to, hops, is_far):
                        sender = reporter
                        if is_far and (mode.reports_as_local or reporter == mode.near(layer)[0][0]):
                            sender = source[0]
                        return ip(sender, to[0], hops) / error / Raw(quoted(to, source, b"an answer, quoted", "SA")[:length])
                    mode.request(vector, layer, lambda *ends: about_reply(*ends, ends[2] == 63))
                for reporter in [mode.far(layer)[1][0], mode.far_router] if mode.has_replies else []:
                    def about_request(source, to, hops, is_near):
                        sender = source[0] if reporter == mode.far(layer)[1][0] or is_near and mode.hides_reporters else reporter
                        return ip(sender, to[0], hops) / error / Raw(quoted(to, source, b"a question, quoted", "S")[:length])
                    mode.reply(vector, layer, lambda *ends: about_request(*ends, ends[2] == 63))


def of_sctp(chunks, damage=0, tag=0x1234ABCD):
    """A packet of these chunks; scapy makes the CRC32c (RFC 9260, appendix A) from all of it. A CRC is linear, so one with some bits flipped stays
    so, whatever else is changed and mended."""
    def build(source, to, hops):
        packet = SCTP(sport=source[1], dport=to[1], tag=tag) / chunks
        if damage:
            packet.chksum = SCTP(bytes(packet)).chksum ^ damage
        return ip(source[0], to[0], hops) / packet
    return build


INIT = SCTPChunkInit(init_tag=0x0A0B0C0D, init_tsn=100)


def sctp(mode, vector):
    """An association as it begins, is, and ends; packets that were damaged on their way, fragments, and errors."""
    if isinstance(mode, Snat):
        # Its ends tell each other their addresses, and have no other port than their own.
        (name, router), ends = mode.near_port, mode.near(SCTP)
        return vector.drop(name, Ether(dst=router, src=mode.near_hop) / of_sctp(INIT, tag=0)(*ends, 64), "snat_none")

    def request(chunks, **more):
        mode.request(vector, SCTP, of_sctp(chunks, **more))

    def reply(chunks, **more):
        if mode.has_replies:
            mode.reply(vector, SCTP, of_sctp(chunks, **more))

    request(INIT, tag=0)
    reply(SCTPChunkInitAck(init_tag=0x01020304, init_tsn=200))
    # With what is to be said at once, in one packet.
    request(SCTPChunkCookieEcho(cookie=b"a cookie, of no whole words") / SCTPChunkData(tsn=100, data=b"hello"))
    reply(SCTPChunkCookieAck() / SCTPChunkSACK(cumul_tsn_ack=100))
    for number, body in enumerate([b"x", b"odd length: " + bytes(range(255)), b"\xff" * 1200]):
        request(SCTPChunkData(tsn=101 + number, data=body))
        reply(SCTPChunkSACK(cumul_tsn_ack=101 + number) / SCTPChunkData(tsn=200 + number, data=body))
    request(SCTPChunkHeartbeatReq())
    for damage in [1, 0x80000000, 0xFFFFFFFF]:
        request(SCTPChunkData(tsn=104, data=b"damaged"), damage=damage)
        reply(SCTPChunkData(tsn=203, data=b"damaged"), damage=damage)
    if isinstance(mode, Routed):
        return
    sctp_fragments(mode, vector)
    sctp_errors(mode, vector)
    request(SCTPChunkSACK(cumul_tsn_ack=202) / SCTPChunkShutdown(cumul_tsn_ack=202))
    reply(SCTPChunkShutdownAck())
    request(SCTPChunkShutdownComplete())
    # Over is over: nothing but an INIT begins another one.
    request(INIT, tag=0)
    reply(SCTPChunkAbort())


def sctp_fragments(mode, vector):
    """They follow their first if the port stays the same: if not, no checksum could be right."""
    whole = of_sctp(SCTPChunkData(tsn=300, data=LARGE))
    number = iter(range(0x301, 0x400))
    for send in [mode.request, mode.reply] if mode.has_replies else [mode.request]:
        datagram = lambda: Datagram(mode, vector, send, next(number), SCTP, whole)
        if mode.near(SCTP)[1][1] == mode.far(SCTP)[1][1]:
            datagram().forward(0, 1, 2, 3)
            backwards = datagram()
            backwards.hold(3, 2, 1)
            backwards.forward(0)
            backwards.release(3, 2, 1)
        else:
            for (port, frame, *_), reason in zip(datagram().sent, ["sctp_fragment"] + ["fragment_orphan"] * 3):
                vector.drop(port, frame, reason)


def sctp_errors(mode, vector):
    """About an association: 8 bytes of it, which are ports and tag, and all, with the checksum as it was there."""
    header = 20 if mode.family is FOUR else 40
    quoted = functools.cache(lambda source, to, text: bytes(of_sctp(SCTPChunkData(tsn=200, data=text))(source, to, 63)))
    for error in errors(mode.family):
        for length in [header + 8, 1000]:
            def about(text):
                return lambda source, to, hops: ip(source[0], to[0], hops) / error / Raw(quoted(to, source, text)[:length])
            mode.request(vector, SCTP, about(b"an answer, quoted"))
            if mode.has_replies:
                mode.reply(vector, SCTP, about(b"a question, quoted"))


def vectors():
    for mode in [*MODES, Mode("nat", SIX), Dr("dr", SIX)]:
        vector = Vector(f"{mode.name}-every-sctp")
        sctp(mode, vector)
        yield vector
    for mode in MODES:
        for what in [flows, options, fragments, icmp]:
            vector = Vector(f"{mode.name}-every-{what.__name__}")
            if what is fragments and isinstance(mode, Routed):
                what = routed_fragments
            what(mode, vector)
            yield vector
