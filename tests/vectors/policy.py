"""Whom a service takes, and to which server: all ports, marks, datagrams on their own, lists, limits, FTP, QUIC's connection ids, IPsec, connections
without an entry; the PROXY protocol."""

import ipaddress

from scapy.layers.inet import ICMP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig
from scapy.layers.ipsec import AH, ESP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from matrix import Tunnel, spread_by
from vector import FOUR, LAN, SIX, Vector, at_lan, at_wan, ip, mac, to_client, to_server


# They have services of their own beside the one of all ports.
OWN_PORTS = {8443, 91, 94}


class Service:
    """A service of a family by NAT, and its packets one by one."""

    mode, has_replies = "", True

    def __init__(self, vector, family, number=0):
        """`number` is how far its address is from that of all the others of its kind."""
        self.vector, self.family = vector, family
        self.vip = str(ipaddress.ip_address(self.address(family)) + number)

    def address(self, family):
        return family.vip

    def port_of(self, virtual, real):
        """That at the server of what is for the service's, if it may be another one."""
        return real

    def arrives(self, build, client, virtual, server):
        return to_server(build(*server, 63))

    def forward(self, build, client, virtual, server):
        """build(address, port, hops) is what this client sends to this port of the service, and what the server gets."""
        came = at_wan(build(self.vip, virtual, 64), self.family.gateway)
        self.vector.forward("wan", came, "lan", self.arrives(build, client, virtual, server))

    def request(self, layer, client, virtual, server, payload=b"data", flags="S"):
        self.forward(lambda to, port, hops: self._packet(layer, client, (to, port), hops, payload, flags), client, virtual, server)

    def reply(self, layer, client, virtual, server, payload=b"data", flags="SA", heard=None):
        """`heard` is what the client gets, if it is something else."""
        if self.has_replies:
            came = self._packet(layer, server, client, 64, payload, flags)
            left = self._packet(layer, (self.vip, virtual), client, 63, heard or payload, flags)
            self.vector.forward("lan", at_lan(came, server[0]), "wan", to_client(left, self.family.gateway))

    def refuse(self, layer, client, virtual, reason, how="drop", flags="S"):
        frame = at_wan(self._packet(layer, client, (self.vip, virtual), 64, b"data", flags), self.family.gateway)
        getattr(self.vector, how)("wan", frame, reason)

    def _packet(self, layer, source, to, hops, payload, flags):
        more = {"flags": flags} if layer is TCP else {}
        return ip(source[0], to[0], hops) / layer(sport=source[1], dport=to[1], **more) / Raw(payload)


class Direct(Service):
    """By direct routing: the server gets what was sent to the service, and answers without the router."""

    mode, has_replies = "-dr", False

    def address(self, family):
        return "192.0.2.30" if family is FOUR else "2001:db8::30"

    def port_of(self, virtual, real):
        return virtual

    def arrives(self, build, client, virtual, server):
        return Ether(dst=mac(server[0]), src=LAN) / build(self.vip, virtual, 63)


class Tunnelled(Direct):
    """The same in another packet of its family, by IP in IP."""

    mode = "-tunnel"

    def address(self, family):
        return "192.0.2.40" if family is FOUR else "2001:db8::50"

    def arrives(self, build, client, virtual, server):
        tunnel = Tunnel("", self.vip, inside=self.family, outside=self.family, server=server[0])
        spread = spread_by(*client, 0 if virtual in OWN_PORTS else virtual)
        return Ether(dst=mac(server[0]), src=LAN) / tunnel.around(build(self.vip, virtual, 63), spread)


def named(by, family, what):
    return Vector(f"policy{by.mode}{'' if family is FOUR else '-ipv6'}-{what}")


def all_ports(by, family):
    """To any port goes to the same port of a server, but for ports with a service of their own. Of one client's port each virtual port is a
    connection."""
    vector = named(by, family, "all-ports")
    service, client = by(vector, family), (family.client, 40112)
    for number, port in enumerate([22, 443, 65535, 1]):
        server = ([family.other, family.server][number % 2], port)
        service.request(TCP, client, port, server)
        service.reply(TCP, client, port, server)
        service.request(TCP, client, port, server, flags="A")
    service.request(TCP, client, 8443, (family.server, service.port_of(8443, 443)))
    # Of a connection that there is not.
    service.refuse(TCP, (family.client, 40113), 22, "no_connection", "punt", "A")
    return vector


def marks(by, family):
    """What a mark has is one service: two addresses, several ports, TCP and UDP. Its servers take turns over all of it, and a client stays with its own
    (IPVS' firewall marks). What a rule before gives to a mark of which there is no service is nobody's, as are the ports that no rule has."""
    vector = named(by, family, "marks")
    one, two = (by(vector, family, number) for number in (16, 17))
    hosts = [str(ipaddress.ip_address(family.client) + number) for number in range(2)]
    for host, server in zip(hosts, [family.other, family.server]):
        ends = [(one, TCP, 80), (two, TCP, 8080), (one, UDP, 8085), (two, UDP, 8090), (two, TCP, 8085)]
        for client_port, (service, layer, port) in enumerate(ends, 40112):
            service.request(layer, (host, client_port), port, (server, port))
            service.reply(layer, (host, client_port), port, (server, port))
    for service, layer, port in [(one, TCP, 8085), (one, TCP, 79), (two, TCP, 8091), (two, UDP, 443)]:
        service.refuse(layer, (hosts[0], 40120), port, "no_service", "punt")
    return vector


def one_packet(by, family):
    """Each datagram is scheduled on its own; a reply has the service's address, whoever asked."""
    vector = named(by, family, "one-packet")
    service, client = by(vector, family), (family.client, 40112)
    for number in range(6):
        server = ([family.other, family.server][number % 2], 514)
        service.request(UDP, client, 514, server)
        service.reply(UDP, client, 514, server)
    return vector


# Whom the services at port 91 refuse, and whom they let in.
SOURCES = {
    FOUR: (["198.51.100.7", "198.51.100.255", "203.0.113.9"], ["198.51.100.64", "198.51.100.127"]),
    SIX: (["2001:db8:c::7", "2001:db8:f::9"], ["2001:db8:c:1::1", "2001:db8:c:1:ffff::"]),
}


def sources(by, family):
    """The longest prefix decides; who is denied begins nothing, and has an answer to nothing."""
    vector = named(by, family, "sources")
    service, (denied, allowed) = by(vector, family), SOURCES[family]
    for number, address in enumerate(denied):
        service.refuse(TCP, (address, 1000 + number), 91, "source_denied")
    for number, address in enumerate(allowed):
        client = (address, 1000 + number)
        service.request(TCP, client, 91, (family.server, 91))
        service.reply(TCP, client, 91, (family.server, 91))
        service.request(TCP, client, 91, (family.server, 91), flags="A")
    return vector


def limits(by, family):
    """A source has two connections; a third is for another source, or another day."""
    vector = named(by, family, "limits")
    service, client = by(vector, family), family.client
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


def thresholds(by, family):
    """A server with as many connections as it may have (upper_threshold) gets no more until it has fewer than it should (lower_threshold); when all are full
    there is none. What there is goes on, and counts also when it is over, until it is forgotten."""
    vector = named(by, family, "thresholds")
    service = by(vector, family)
    begin = lambda port, server: service.request(TCP, (family.client, port), 95, (server, 95))
    full = lambda port: service.refuse(TCP, (family.client, port), 95, "no_server")
    # Two and three.
    for port, server in enumerate([family.other, family.server, family.other, family.server, family.server], 1000):
        begin(port, server)
    full(1005)
    service.reply(TCP, (family.client, 1000), 95, (family.other, 95))
    service.request(TCP, (family.client, 1000), 95, (family.other, 95), flags="A")
    full(1006)
    # SYN_RECV lasts for a minute. One has one left, which is not fewer than one; the other is empty.
    vector.wait(100)
    for port in range(1010, 1013):
        begin(port, family.server)
    full(1013)
    # CLOSE lasts for ten seconds.
    service.request(TCP, (family.client, 1000), 95, (family.other, 95), flags="R")
    full(1014)
    vector.wait(30)
    for port in [1020, 1021]:
        begin(port, family.other)
    full(1022)
    return vector


def gate(by, family):
    """Two handshakes may be left half done. Then SYNs go on and leave nothing, until the client acknowledges; two such connections begin in a second. With one
    server there is no question where they go."""
    vector = named(by, family, "gate")
    service, server = by(vector, family), (family.server, 96)
    client = lambda port: (family.client, port)
    made_up = lambda port, reason, how: service.refuse(TCP, client(port), 96, reason, how, "A")
    made_up(900, "no_connection", "punt")
    for port in [1000, 1001]:
        service.request(TCP, client(port), 96, server)
        service.reply(TCP, client(port), 96, server)
    for port in [1002, 1003, 1004]:
        service.request(TCP, client(port), 96, server)
        service.reply(TCP, client(port), 96, server)
    for port in [1002, 1003]:
        service.request(TCP, client(port), 96, server, flags="A")
        service.reply(TCP, client(port), 96, server, flags="PA")
        service.request(TCP, client(port), 96, server, flags="PA")
    made_up(1004, "syn_flood", "drop")
    vector.wait(2)
    service.request(TCP, client(1004), 96, server, flags="A")
    # All of it is over.
    vector.wait(60)
    made_up(901, "no_connection", "punt")
    service.request(TCP, client(1005), 96, server)
    return vector


def ftp(by, family):
    """helper = "ftp": with a control connection, data connections go the same way: to ports of the server from 1024 on, and from its port 20 (RFC 959,
    RFC 2428). Of the replies only 227 names the server, and only that is changed, if it names the server itself: the prose gives way, so that the
    stream keeps its length (RFC 1123, section 4.1.2.6: of the reply clients read the numbers alone)."""
    vector = named(by, family, "ftp")
    service = by(vector, family, 50)
    client, server, stranger = family.client, family.other, family.neighbour
    nobodys = lambda who, port: service.refuse(TCP, (who, 40200), port, "no_service", "punt")
    nobodys(client, 40000)
    service.request(TCP, (client, 40112), 21, (server, 21))
    service.reply(TCP, (client, 40112), 21, (server, 21))
    service.request(TCP, (client, 40112), 21, (server, 21), flags="A")
    says = lambda text, heard=None: service.reply(TCP, (client, 40112), 21, (server, 21), text, "PA", heard)
    says(b"220 Welcome\r\n")
    numbers = lambda address: address.replace(".", ",").encode()
    own, instead = (numbers(server), numbers(service.vip)) if family is FOUR else (b"10,0,0,12", b"192,0,2,60")
    passive = b"227 Entering Passive Mode (%s,156,64).\r\n" % own
    says(passive, b"227 Entering Passive Mode(%s,156,64).\r\n" % instead if family is FOUR else passive)
    # Of another host, without room for the address, in two segments, of several lines.
    for text in [b"227 Entering Passive Mode (10,0,0,99,156,64).\r\n", b"227 (%s,156,64)\r\n" % own,
                 b"227 Entering Passive Mode (%s,156,64)." % own, b"200 Switching.\r\n" + passive, b"229 Entering Extended Passive Mode (|||40000|)\r\n"]:
        says(text)
    # Passive.
    for port in [40000, 1024, 65535]:
        service.request(TCP, (client, 40113), port, (server, port))
        service.reply(TCP, (client, 40113), port, (server, port))
        service.request(TCP, (client, 40113), port, (server, port), flags="A")
    # Active.
    service.reply(TCP, (client, 40114), 20, (server, 20), flags="S")
    service.request(TCP, (client, 40114), 20, (server, 20), flags="SA")
    service.reply(TCP, (client, 40114), 20, (server, 20), flags="PA")
    for who, port in [(client, 22), (client, 1023), (stranger, 40000)]:
        nobodys(who, port)
    return vector


def quic(by, family):
    """A datagram goes to the server that its connection id names (draft-ietf-quic-load-balancers-21, section 5.2, plaintext), from wherever it comes."""
    vector = named(by, family, "quic")
    service = by(vector, family)
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


def ipsec(by, family):
    """ESP and AH have no ports: they go with the connection of IKE of the same two, whose keys protect them (RFC 4302, RFC 4303; RFC 7296). NAT
    changes the addresses alone; AH protects those, and is nobody's then."""
    vector = named(by, family, "ipsec")
    service = by(vector, family)
    esp = lambda number: ESP(spi=0xC0FFEE00, seq=number, data=bytes(range(64)))
    ah = lambda number: AH(spi=7, seq=number, icv=b"twelve bytes", nh=59)

    def request(client, server, what):
        service.forward(lambda to, _, hops: ip(client, to, hops) / what, (client, 500), 500, (server, 500))

    def reply(client, server, what):
        if service.has_replies:
            packet = lambda source, hops: ip(source, client, hops) / what
            vector.forward("lan", at_lan(packet(server, 64), server), "wan", to_client(packet(service.vip, 63), family.gateway))

    hosts = [str(ipaddress.ip_address(family.client) + number) for number in range(3)]
    stranger = hosts.pop()
    early = lambda client, what: vector.punt("wan", at_wan(ip(client, service.vip) / what, family.gateway), "other_protocol")
    early(hosts[0], esp(1))
    # Two clients, a server each, in turn.
    pairs = list(zip(hosts, [family.other, family.server]))
    for client, server in pairs:
        service.request(UDP, (client, 500), 500, (server, 500), b"a proposal")
        service.reply(UDP, (client, 500), 500, (server, 500), b"an answer")
    for number in range(1, 4):
        for client, server in pairs:
            request(client, server, esp(number))
            reply(client, server, esp(number))
    early(stranger, esp(1))
    if service.has_replies:
        early(hosts[0], ah(1))
    else:
        for client, server in pairs:
            request(client, server, ah(1))
        early(stranger, ah(1))
    # They keep the connection, which would be forgotten after five minutes.
    for number in range(4, 8):
        vector.wait(200)
        request(*pairs[0], esp(number))
    early(hosts[1], esp(4))
    return vector


def at_risk(by, family):
    """With track = "at-risk": whatever a packet is of goes where its hash says, also one whose connection's beginning went by another
    router, and an error about a reply with it. A source that stands for nobody is nobody's."""
    vector = named(by, family, "at-risk")
    service, client, server = by(vector, family), (family.client, 40112), (family.server, 94)
    for port in [40112, 40113]:
        for flags in ["A", "S", "A", "PA", "FA", "A", "R"]:
            service.request(TCP, (family.client, port), 94, server, flags=flags)
    vector.wait(2000)
    service.request(TCP, client, 94, server, flags="A")
    told = ICMP(type=3, code=4, nexthopmtu=1400) if family is FOUR else ICMPv6PacketTooBig(mtu=1400)
    quote = ip(service.vip, family.client, 60) / TCP(sport=94, dport=40112, flags="A") / Raw(b"data")
    service.forward(lambda to, _, hops: ip(family.router, to, hops) / told / quote, client, 94, server)
    service.refuse(TCP, ("127.0.0.1" if family is FOUR else "::1", 40112), 94, "martian", flags="A")
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
    # The header takes its part of the way's MTU, but nobody is told less than every link takes: he would have to ignore it (RFC 8201, section 4).
    for mtu in [1400, 1280]:
        too_big = lambda mtu: ICMP(type=3, code=4, nexthopmtu=mtu) if four else ICMPv6PacketTooBig(mtu=mtu)
        sent = lambda source, to: segment(source, to, 60, b"x" * 100, flags="A", seq=1019 + moved, ack=5001)
        come = ip(family.other, local[0], 64) / too_big(mtu) / sent(local, server)
        leave = ip(family.vip, family.client, 63) / too_big(mtu - moved if four else max(mtu - moved, 1280)) / sent(client, virtual)
        vector.forward("lan", at_lan(come, family.other), "wan", to_client(leave, family.gateway))
    request("A", 1019, 5001, b"x" * 100)
    reply("PA", 5001, 1124, b"an answer")
    request("FA", 1124, 5010)
    reply("FA", 5010, 1125)
    request("A", 1125, 5011)
    return vector


def vectors():
    yield proxy("fullnat-proxy", FOUR)
    yield proxy("fullnat-ipv6-proxy", SIX)
    for family in [FOUR, SIX]:
        for by, policies in [
            (Service, [all_ports, marks, one_packet, sources, limits, thresholds, gate, ftp, quic, ipsec]),
            (Direct, [all_ports, marks, sources, quic, ipsec, at_risk]),
            (Tunnelled, [all_ports, marks, sources, ipsec, at_risk]),
        ]:
            yield from (policy(by, family) for policy in policies)
