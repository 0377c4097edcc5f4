"""Vectors of IPv6 (RFC 8200, RFC 4443) that IPv4 has no like of: extension headers, fragments, ICMPv6."""

from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import (ICMPv6DestUnreach, ICMPv6EchoRequest, ICMPv6MLReport2, ICMPv6ND_NS, ICMPv6PacketTooBig, ICMPv6ParamProblem,
                                ICMPv6TimeExceeded, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop,
                                IPv6ExtHdrRouting, PadN)
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from vector import SIX, WAN, Nat, Vector, at_lan, at_wan, ip, mac, to_client, to_server

VIP, SERVER, CLIENT, ROUTER, GATEWAY = SIX.vip, SIX.server, SIX.client, SIX.router, SIX.gateway
# Behind the lan, but no real server.
INSIDE = "2001:db8:a::99"
PORTS = {TCP: (80, 8080), UDP: (53, 5353)}


def segment(layer, sport, dport, payload, flags="S"):
    return layer(sport=sport, dport=dport, **({"flags": flags} if layer is TCP else {})) / Raw(payload)


class ByNat:
    """What is sent is made by build(address, port, hops): of the service where clients are, of the real server where it is."""

    name = "nat"

    def inside(self, layer):
        return SERVER, PORTS[layer][1]

    def request(self, layer, build):
        came, left = at_wan(build(VIP, PORTS[layer][0], 64), GATEWAY), to_server(build(*self.inside(layer), 63))
        return ("wan", came, "lan", left)

    def reply(self, layer, build):
        came = at_lan(build(*self.inside(layer), 64), SERVER)
        return ("lan", came, "wan", to_client(build(VIP, PORTS[layer][0], 63), GATEWAY))


class ByDr:
    """The same where only MACs and hops change; replies do not come this way."""

    name = "dr"

    def request(self, layer, build):
        port = PORTS[layer][0]
        left = Ether(dst=mac("2001:db8::11"), src=WAN) / build(VIP, port, 63)
        return ("wan", at_wan(build(VIP, port, 64), GATEWAY), "wan", left)


def both(what):
    """What these make of a vector by NAT and of one by direct routing."""
    for way in [ByNat, ByDr]:
        vector = Vector(f"{way.name}-ipv6-{what.__name__}")
        what(vector, way())
        yield vector


def flows(vector, way):
    """Connections of TCP and UDP, as simple as they are."""
    for flags in ["S", "A", "PA", "FA"]:
        vector.forward(*way.request(TCP, lambda to, port, hops: ip(CLIENT, to, hops) / segment(TCP, 40112, port, b"data", flags)))
    for payload in [b"a question", b"another one"]:
        vector.forward(*way.request(UDP, lambda to, port, hops: ip(CLIENT, to, hops) / segment(UDP, 40112, port, payload)))
    # A checksum that is wrong is the server's affair.
    if way.name == "dr":
        garbled = lambda to, port, hops: ip(CLIENT, to, hops) / UDP(sport=40112, dport=port, chksum=0x1234) / Raw(b"garbled")
        vector.forward(*way.request(UDP, garbled))
    # As long as the links are, and longer.
    longest = 1400 if way.name == "nat" else 1500
    long = lambda length: lambda to, port, hops: ip(CLIENT, to, hops) / segment(UDP, 40112, port, b"x" * (length - 48))
    vector.forward(*way.request(UDP, long(longest)))
    vector.drop("wan", way.request(UDP, long(longest + 1))[1], "too_big")
    vector.drop("wan", at_wan(ip(CLIENT, VIP, 1) / segment(UDP, 40112, 53, b"x"), GATEWAY), "ttl_expired")
    vector.drop("wan", at_wan(ip(CLIENT, VIP, 0) / segment(UDP, 40112, 53, b"x"), GATEWAY), "ttl_expired")
    vector.forward(*way.request(UDP, lambda to, port, hops: ip(CLIENT, to, hops - 62) / segment(UDP, 40112, port, b"x")))


def hop_by_hop():
    return IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)])


def options():
    return IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 12)])


def routing(left):
    return IPv6ExtHdrRouting(type=0, segleft=left, addresses=["2001:db8:f::1"])


def extensions(vector, way):
    """Extension headers go along as they are. One that is to go by other hosts first is not for the service."""
    chains = [hop_by_hop(), options(), routing(0), hop_by_hop() / options() / routing(0) / options()]
    # All of a datagram in one fragment is none (RFC 6946).
    chains.append(IPv6ExtHdrFragment(offset=0, m=0, id=7))
    for layer in [TCP, UDP]:
        for chain in chains:
            request = lambda to, port, hops: ip(CLIENT, to, hops) / chain / segment(layer, 40112, port, b"data")
            vector.forward(*way.request(layer, request))
            if way.name == "nat":
                reply = lambda source, port, hops: ip(source, CLIENT, hops) / chain / segment(layer, port, 40112, b"data", "SA")
                vector.forward(*way.reply(layer, reply))
        port = PORTS[layer][0]
        for chain in [routing(1), hop_by_hop() / routing(1)]:
            vector.punt("wan", at_wan(ip(CLIENT, VIP) / chain / segment(layer, 9, port, b""), GATEWAY), "other_protocol")
    # More of them than there are kinds.
    chain = options()
    for _ in range(6):
        chain = chain / options()
    vector.drop("wan", at_wan(ip(CLIENT, VIP) / chain / segment(TCP, 9, 80, b""), GATEWAY), "bad_ip_header")
    # One that says that it is longer than the packet.
    vector.drop("wan", at_wan(ip(CLIENT, VIP, nh=60) / Raw(b"\x06\x07" + b"\0" * 30), GATEWAY), "bad_ip_header")


def pieces(header, protocol, data, number, size=1024):
    """The fragments of a packet with this header and this data of a protocol (RFC 8200, section 4.5)."""
    for begin in range(0, len(data), size):
        more = begin + size < len(data)
        yield header / IPv6ExtHdrFragment(nh=protocol, offset=begin // 8, m=int(more), id=number) / Raw(data[begin:begin + size])


class Datagram:
    """A datagram, or a segment, in four fragments, as they come and as they leave."""

    def __init__(self, vector, way, is_request, number, layer=UDP):
        def build(index):
            def of(other, port, hops):
                ends, ports = ((CLIENT, other), (40112, port)) if is_request else ((other, CLIENT), (port, 40112))
                whole = ip(*ends, hops) / segment(layer, *ports, bytes(range(250)) * 13, "PA")
                return list(pieces(ip(*ends, hops), {TCP: 6, UDP: 17}[layer], bytes(whole)[40:], number))[index]
            return of
        send = way.request if is_request else way.reply
        self.vector, self.sent = vector, [send(layer, build(index)) for index in range(4)]

    def forward(self, index):
        self.vector.forward(*self.sent[index])

    def hold(self, index):
        port, came, _, _ = self.sent[index]
        self.vector.hold(port, came)

    def release(self, index):
        _, came, port, left = self.sent[index]
        self.vector.release(came, port, left)


def shuffled(datagram):
    """In order, backwards, and two datagrams at once."""
    in_order = datagram()
    for index in range(4):
        in_order.forward(index)
    backwards = datagram()
    for index in [3, 2, 1]:
        backwards.hold(index)
    backwards.forward(0)
    for index in [3, 2, 1]:
        backwards.release(index)
    # Of two at once each has its own way.
    one, other = datagram(), datagram()
    other.hold(1)
    one.forward(0)
    one.forward(2)
    other.hold(3)
    other.forward(0)
    other.release(1)
    other.release(3)
    one.forward(1)
    other.forward(2)
    one.forward(3)


def fragments(vector, way):
    """Fragments go where the first one goes, each on its own, and those that come before it wait for it."""
    number = iter(range(0x10001, 0x10100))
    vector.forward(*way.request(TCP, lambda to, port, hops: ip(CLIENT, to, hops) / segment(TCP, 40112, port, b"")))
    for layer in [UDP, TCP]:
        for is_request in [True, False] if way.name == "nat" else [True]:
            shuffled(lambda: Datagram(vector, way, is_request, next(number), layer))
    # One whose first never comes is nobody's, a second later.
    lost = Datagram(vector, way, True, next(number))
    lost.hold(1)
    vector.wait(5)
    vector.forward(*way.request(UDP, lambda to, port, hops: ip(CLIENT, to, hops) / segment(UDP, 40112, port, b"another one")))
    vector.verdicts.append("drop fragment_expired")
    # A first one that has no room for the ports.
    tiny = ip(CLIENT, VIP) / IPv6ExtHdrFragment(nh=17, offset=0, m=1, id=next(number)) / Raw(b"")
    vector.drop("wan", at_wan(tiny, GATEWAY), "fragment_tiny")
    others = ip(CLIENT, "2001:db8::12") / IPv6ExtHdrFragment(nh=17, offset=0, m=1, id=next(number)) / Raw(b"12345678")
    vector.punt("wan", at_wan(others, GATEWAY), "fragment")


def kinds():
    """Errors of each type."""
    yield from [ICMPv6DestUnreach(code=code) for code in range(7)]
    yield ICMPv6PacketTooBig(mtu=1280)
    yield from [ICMPv6TimeExceeded(code=code) for code in range(2)]
    yield from [ICMPv6ParamProblem(code=code, ptr=40) for code in range(3)]


def icmp(vector, way):
    """Errors about a connection's packets follow it; what they quote is as it was there."""
    for layer in [TCP, UDP]:
        asked = lambda to, port, hops, *between: chained(ip(CLIENT, to, hops), *between) / segment(layer, 40112, port, b"a question")
        answered = lambda source, port, hops: ip(source, CLIENT, hops) / segment(layer, port, 40112, b"an answer", "SA")
        vector.forward(*way.request(layer, asked))
        if way.name == "nat":
            vector.forward(*way.reply(layer, answered))
        for kind in kinds():
            for length in [48, 1000]:
                # About a reply, by the client or by a router on the way to it.
                for reporter in [CLIENT, ROUTER]:
                    error = lambda to, port, hops: ip(reporter, to, hops) / kind / Raw(bytes(answered(to, port, 63))[:length])
                    vector.forward(*way.request(layer, error))
                # About a request, by the server or a router before it: to the client it is the service that says so.
                for reporter in [SERVER, INSIDE] if way.name == "nat" else []:
                    def error(to, port, hops):
                        source = reporter if to == SERVER else to
                        return ip(source, CLIENT, hops) / kind / Raw(bytes(asked(to, port, 63))[:length])
                    vector.forward(*way.reply(layer, error))
        if way.name == "nat":
            # Extension headers in what is quoted, and before the error.
            error = lambda to, port, hops: (ip(to, CLIENT, hops) / options()
                                            / ICMPv6ParamProblem(code=1, ptr=40) / Raw(bytes(asked(to, port, 63, hop_by_hop()))))
            vector.forward(*way.reply(layer, error))
    if way.name == "nat":
        nobody = bytes(ip(CLIENT, SERVER) / UDP(sport=7, dport=5353))
        vector.drop("lan", at_lan(ip(SERVER, CLIENT) / ICMPv6DestUnreach(code=4) / Raw(nobody), SERVER), "icmp_error")
        last = bytes(ip(CLIENT, SERVER) / UDP(sport=40112, dport=5353))
        vector.drop("lan", at_lan(ip(SERVER, CLIENT, 1) / ICMPv6DestUnreach(code=4) / Raw(last), SERVER), "ttl_expired")
    quote = bytes(ip(VIP, CLIENT) / UDP(sport=53, dport=7))
    vector.punt("wan", at_wan(ip(ROUTER, VIP) / ICMPv6DestUnreach(code=4) / Raw(quote), GATEWAY), "icmp")
    # Seven bytes behind the header are too few to tell.
    vector.punt("wan", at_wan(ip(ROUTER, VIP) / ICMPv6DestUnreach(code=4) / Raw(quote[:47]), GATEWAY), "icmp")


def chained(header, *between):
    for extension in between:
        header = header / extension
    return header


def odd():
    """What is Linux', and what nobody gets."""
    vector = Vector("nat-ipv6-odd")
    syn = ip(CLIENT, VIP) / TCP(sport=40112, dport=80, flags="S")
    wan = lambda packet: at_wan(packet, GATEWAY)
    vector.punt("wan", Ether(dst=WAN, src=GATEWAY) / Dot1Q(vlan=7) / syn, "vlan")
    solicited = IPv6(src="2001:db8::fe", dst="ff02::1:ff00:10", hlim=255) / ICMPv6ND_NS(tgt=VIP)
    vector.punt("wan", Ether(dst="33:33:ff:00:00:10", src=GATEWAY) / solicited, "neighbour")
    report = IPv6(src="fe80::fe", dst="ff02::16", hlim=1) / ICMPv6MLReport2()
    vector.punt("wan", Ether(dst="33:33:00:00:00:16", src=GATEWAY) / report, "multicast")
    vector.punt("wan", wan(ip(CLIENT, VIP) / ICMPv6EchoRequest(id=1, seq=1, data=b"ping")), "icmp")
    vector.punt("wan", wan(ip(CLIENT, VIP, nh=47) / Raw(b"GRE")), "other_protocol")
    vector.punt("wan", wan(ip(CLIENT, VIP) / TCP(sport=40112, dport=22, flags="S")), "no_service")
    vector.punt("wan", wan(ip(CLIENT, VIP) / TCP(sport=40112, dport=80, flags="A")), "no_connection")
    vector.punt("lan", at_lan(ip(SERVER, CLIENT) / TCP(sport=8080, dport=40112, flags="SA"), SERVER), "no_service")
    vector.drop("wan", Ether(dst="02:00:00:00:00:99", src=GATEWAY) / syn, "other_host")
    vector.drop("wan", wan(ip(CLIENT, VIP, plen=2000) / TCP(sport=40112, dport=80, flags="S")), "bad_ip_header")
    vector.drop("wan", wan(ip(CLIENT, VIP, version=5) / TCP(sport=40112, dport=80, flags="S")), "bad_ip_header")
    vector.drop("wan", wan(ip(CLIENT, VIP) / UDP(sport=9, dport=53, len=7) / Raw(b"data")), "bad_transport_header")
    vector.drop("wan", wan(ip(CLIENT, VIP) / TCP(sport=40112, dport=82, flags="S")), "no_server")
    vector.drop("wan", wan(ip(VIP, VIP) / TCP(sport=40112, dport=80, flags="S")), "martian")
    # Ethernet's padding is not the packet's, and goes on as it is.
    frame = lambda at, to, port, hops: Ether(bytes(at(ip(CLIENT, to, hops) / UDP(sport=9, dport=port) / Raw(b"short"))) + b"\xee" * 13)
    vector.forward("wan", frame(wan, VIP, 53, 64), "lan", frame(to_server, SERVER, 5353, 63))
    Nat(vector, UDP, 53, 5353, port=9, server=SERVER, client=CLIENT).reply(b"after all that")
    return vector


def vectors():
    for what in [flows, extensions, fragments, icmp]:
        yield from both(what)
    yield odd()
