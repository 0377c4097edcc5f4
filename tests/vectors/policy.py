"""Whom a service takes, and to which server: all ports, marks, datagrams on their own, lists, limits, QUIC's connection ids, the PROXY protocol."""

import ipaddress

from scapy.layers.inet import ICMP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig
from scapy.layers.ipsec import AH, ESP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from vector import FOUR, LAN, SIX, Vector, at_lan, at_wan, ip, mac, to_client, to_server


class Service:
    """A service by NAT of a family, and its packets one by one."""

    def __init__(self, vector, family, vip=None):
        self.vector, self.family, self.vip = vector, family, vip or family.vip

    def _packet(self, layer, source, to, hops, payload, flags):
        more = {"flags": flags} if layer is TCP else {}
        return ip(source[0], to[0], hops) / layer(sport=source[1], dport=to[1], **more) / Raw(payload)

    def request(self, layer, client, virtual, server, payload=b"data", flags="S"):
        packet = lambda to, hops: self._packet(layer, client, to, hops, payload, flags)
        self.vector.forward("wan", at_wan(packet((self.vip, virtual), 64), self.family.gateway),
                            "lan", to_server(packet(server, 63)))

    def reply(self, layer, client, virtual, server, payload=b"data", flags="SA"):
        packet = lambda source, hops: self._packet(layer, source, client, hops, payload, flags)
        self.vector.forward("lan", at_lan(packet(server, 64), server[0]),
                            "wan", to_client(packet((self.vip, virtual), 63), self.family.gateway))

    def refuse(self, layer, client, virtual, reason, how="drop", flags="S"):
        frame = at_wan(self._packet(layer, client, (self.vip, virtual), 64, b"data", flags), self.family.gateway)
        getattr(self.vector, how)("wan", frame, reason)


def all_ports(name, family):
    """To any port goes to the same port of a server, but for ports with a service of their own. Of one client's port each virtual port is a
    connection."""
    vector = Vector(name)
    service, client = Service(vector, family), (family.client, 40112)
    for number, port in enumerate([22, 443, 65535, 1]):
        server = ([family.other, family.server][number % 2], port)
        service.request(TCP, client, port, server)
        service.reply(TCP, client, port, server)
        service.request(TCP, client, port, server, flags="A")
    service.request(TCP, client, 8443, (family.server, 443))
    # Of a connection that there is not.
    service.refuse(TCP, (family.client, 40113), 22, "no_connection", "punt", "A")
    return vector


def marks(name, family):
    """What a mark has is one service: two addresses, several ports, TCP and UDP. Its servers take turns over all of it, and a client stays with its own
    (IPVS' firewall marks). What a rule before gives to a mark of which there is no service is nobody's, as are the ports that no rule has."""
    vector = Vector(name)
    one, two = (Service(vector, family, str(ipaddress.ip_address(family.vip) + number)) for number in (16, 17))
    hosts = [str(ipaddress.ip_address(family.client) + number) for number in range(2)]
    for host, server in zip(hosts, [family.other, family.server]):
        ends = [(one, TCP, 80), (two, TCP, 8080), (one, UDP, 8085), (two, UDP, 8090), (two, TCP, 8085)]
        for client_port, (service, layer, port) in enumerate(ends, 40112):
            service.request(layer, (host, client_port), port, (server, port))
            service.reply(layer, (host, client_port), port, (server, port))
    for service, layer, port in [(one, TCP, 8085), (one, TCP, 79), (two, TCP, 8091), (two, UDP, 443)]:
        service.refuse(layer, (hosts[0], 40120), port, "no_service", "punt")
    return vector


def one_packet(name, family):
    """Each datagram is scheduled on its own; a reply has the service's address, whoever asked."""
    vector = Vector(name)
    service, client = Service(vector, family), (family.client, 40112)
    for number in range(6):
        server = ([family.other, family.server][number % 2], 514)
        service.request(UDP, client, 514, server)
        service.reply(UDP, client, 514, server)
    return vector


def sources(name, family, denied, allowed):
    """The longest prefix decides; who is denied begins nothing, and has an answer to nothing."""
    vector = Vector(name)
    service = Service(vector, family)
    for number, address in enumerate(denied):
        service.refuse(TCP, (address, 1000 + number), 91, "source_denied")
    for number, address in enumerate(allowed):
        client = (address, 1000 + number)
        service.request(TCP, client, 91, (family.server, 91))
        service.reply(TCP, client, 91, (family.server, 91))
        service.request(TCP, client, 91, (family.server, 91), flags="A")
    return vector


def limits(name, family):
    """A source has two connections; a third is for another source, or another day."""
    vector = Vector(name)
    service, client = Service(vector, family), family.client
    for port in [1, 2]:
        service.request(TCP, (client, port), 92, (family.server, 92))
    for port in [3, 4]:
        service.refuse(TCP, (client, port), 92, "source_limited")
    # What there is goes on.
    service.request(TCP, (client, 1), 92, (family.server, 92), flags="A")
    service.request(TCP, (family.neighbour if family is SIX else "198.51.100.8", 3), 92, (family.server, 92))
    # The service's own: three at once.
    for port in range(3):
        service.request(TCP, (client, 100 + port), 93, (family.server, 93))
    for port in [103, 104]:
        service.refuse(TCP, (client, port), 93, "rate_limited")
    vector.wait(10)
    service.request(TCP, (client, 104), 93, (family.server, 93))
    return vector


def quic(name, family):
    """A datagram goes to the server that its connection id names (draft-ietf-quic-load-balancers-21, section 5.2, plaintext), from wherever it comes."""
    vector = Vector(name)
    service = Service(vector, family)
    ids = {family.server: "ed793a", family.other: "51dc0e"}
    for round in range(2):
        for number, (server, identity) in enumerate(ids.items()):
            # The first octet: three bits of the configuration, five of anything; the server's id; the nonce.
            connection = bytes([0x1F]) + bytes.fromhex(identity) + bytes(range(5))
            client = (str(ipaddress.ip_address(family.client) + 10 * round + number), 40000 + round)
            # A short header (RFC 9000, section 17.3.1): fixed bit, and the id at once.
            service.request(UDP, client, 443, (server, 443), b"\x41" + connection + b"protected payload, and more")
            # A long one (RFC 8999, section 5.1).
            long = b"\xe0\0\0\0\x01" + bytes([len(connection)]) + connection + b"\0" + b"protected"
            service.request(UDP, client, 443, (server, 443), long)
    return vector


def ipsec(name, family):
    """ESP has no ports: it goes with the connection of IKE of the same two, whose keys protect it (RFC 4303; RFC 7296). NAT changes the addresses alone; AH protects
    those, and is nobody's."""
    vector = Vector(name)
    service = Service(vector, family)
    protected = lambda number: ESP(spi=0xC0FFEE00, seq=number, data=bytes(range(64)))

    def request(client, server, number):
        packet = lambda to, hops: ip(client, to, hops) / protected(number)
        vector.forward("wan", at_wan(packet(family.vip, 64), family.gateway), "lan", to_server(packet(server, 63)))

    def reply(client, server, number):
        packet = lambda source, hops: ip(source, client, hops) / protected(number)
        vector.forward("lan", at_lan(packet(server, 64), server), "wan", to_client(packet(family.vip, 63), family.gateway))

    hosts = [str(ipaddress.ip_address(family.client) + number) for number in range(3)]
    stranger = hosts.pop()
    early = lambda client, what: vector.punt("wan", at_wan(ip(client, family.vip) / what, family.gateway), "other_protocol")
    early(hosts[0], protected(1))
    # Two clients, a server each, in turn.
    pairs = list(zip(hosts, [family.other, family.server]))
    for client, server in pairs:
        service.request(UDP, (client, 500), 500, (server, 500), b"a proposal")
        service.reply(UDP, (client, 500), 500, (server, 500), b"an answer")
    for number in range(1, 4):
        for client, server in pairs:
            request(client, server, number)
            reply(client, server, number)
    early(stranger, protected(1))
    early(hosts[0], AH(spi=7, seq=1, icv=b"twelve bytes", nh=59))
    # They keep the connection, which would be forgotten after five minutes.
    for number in range(4, 8):
        vector.wait(200)
        request(*pairs[0], number)
    early(hosts[1], protected(4))
    return vector


def at_risk(name, family):
    """By direct routing, with track = "at-risk": whatever a packet is of goes where its hash says, also one whose connection's beginning went by another
    router, and an error about a reply with it. A source that stands for nobody is nobody's."""
    vector = Vector(name)
    client, virtual = (family.client, 40112), (family.vip, 94)

    def passes(packet):
        come, leave = packet(64), packet(63)
        vector.forward("wan", at_wan(come, family.gateway), "lan", Ether(dst=mac(family.server), src=LAN) / leave)

    segment = lambda source, to, hops, flags: ip(source[0], to[0], hops) / TCP(sport=source[1], dport=to[1], flags=flags) / Raw(b"data")
    for port in [40112, 40113]:
        for flags in ["A", "S", "A", "PA", "FA", "A", "R"]:
            passes(lambda hops: segment((family.client, port), virtual, hops, flags))
    vector.wait(2000)
    passes(lambda hops: segment(client, virtual, hops, "A"))
    told = ICMP(type=3, code=4, nexthopmtu=1400) if family is FOUR else ICMPv6PacketTooBig(mtu=1400)
    passes(lambda hops: ip(family.router, family.vip, hops) / told / segment(virtual, client, 60, "A"))
    nobody = "127.0.0.1" if family is FOUR else "::1"
    vector.drop("wan", at_wan(segment((nobody, 40112), virtual, 64, "A"), family.gateway), "martian")
    return vector


def proxy(name, family):
    """In front of the stream the server hears who its client is (the PROXY protocol, version 2, section 2.2), in the acknowledgement that ends the
    handshake; behind it all numbers are moved."""
    vector = Vector(name)
    four = family is FOUR
    local = ("10.0.0.100" if four else "2001:db8:a::100", 5001)
    client, virtual, server = (family.client, 40112), (family.vip, 81), (family.server, 8081)
    octets = lambda end: ipaddress.ip_address(end[0]).packed
    ports = client[1].to_bytes(2, "big") + virtual[1].to_bytes(2, "big")
    # Version 2, PROXY; IPv4 or IPv6 over a stream; the length of what follows.
    header = (b"\r\n\r\n\0\r\nQUIT\n" + bytes([0x21, 0x11 if four else 0x21]) + (12 if four else 36).to_bytes(2, "big")
              + octets(client) + octets(virtual) + ports)
    moved = len(header)

    def segment(source, to, hops, payload, **tcp):
        return ip(source[0], to[0], hops) / TCP(sport=source[1], dport=to[1], **tcp) / Raw(payload)

    def request(flags, seq, ack, payload=b"", by=moved, front=b"", **more):
        tcp = {"flags": flags, "ack": ack, **more}
        vector.forward("wan", at_wan(segment(client, virtual, 64, payload, seq=seq, **tcp), family.gateway),
                       "lan", to_server(segment(local, server, 63, front + payload, seq=seq + by, **tcp)))

    def reply(flags, seq, ack, payload=b"", by=moved, come=[], leave=[]):
        vector.forward("lan", at_lan(segment(server, local, 64, payload, flags=flags, seq=seq, ack=ack + by, options=come), server[0]),
                       "wan", to_client(segment(virtual, client, 63, payload, flags=flags, seq=seq, ack=ack, options=leave), family.gateway))

    request("S", 1000, 0, by=0, options=[("MSS", 1400)])
    reply("SA", 5000, 1001, by=0, come=[("MSS", 1400)], leave=[("MSS", 1400 - moved)])
    request("A", 1001, 5001, by=0, front=header)
    # Whether it has arrived is not known yet, and the client would not repeat a bare acknowledgement: it is in front of the first data
    # once more, of which the server drops what it has (RFC 9293, section 3.10.7.4). Once it has acknowledged it, no more.
    request("PA", 1001, 5001, b"GET / HTTP/1.0\r\n\r\n", by=0, front=header)
    reply("A", 5001, 1019)
    request("PA", 1001, 5001, b"GET / HTTP/1.0\r\n\r\n")
    # Of what follows something was lost: the blocks of SACK (RFC 2018) are moved as well.
    request("A", 1119, 5001, b"later")
    sack = lambda by: [("NOP", None), ("NOP", None), ("SAck", (1119 + by, 1124 + by))]
    reply("A", 5001, 1019, come=sack(moved), leave=sack(0))
    request("A", 1019, 5001, b"x" * 100)
    reply("PA", 5001, 1124, b"an answer")
    request("FA", 1124, 5010)
    reply("FA", 5010, 1125)
    request("A", 1125, 5011)
    return vector


def vectors():
    yield proxy("fullnat-proxy", FOUR)
    yield proxy("fullnat-ipv6-proxy", SIX)
    for suffix, family in [("", FOUR), ("-ipv6", SIX)]:
        yield all_ports(f"policy{suffix}-all-ports", family)
        yield marks(f"policy{suffix}-marks", family)
        yield one_packet(f"policy{suffix}-one-packet", family)
        yield limits(f"policy{suffix}-limits", family)
        yield quic(f"policy{suffix}-quic", family)
        yield ipsec(f"policy{suffix}-ipsec", family)
        yield at_risk(f"policy{suffix}-at-risk", family)
    yield sources("policy-sources", FOUR, ["198.51.100.7", "198.51.100.255", "203.0.113.9"], ["198.51.100.64", "198.51.100.127"])
    yield sources("policy-ipv6-sources", SIX, ["2001:db8:c::7", "2001:db8:f::9"], ["2001:db8:c:1::1", "2001:db8:c:1:ffff::"])
