#!/usr/bin/env python3
"""Makes the golden vectors: captures of what comes in, of what has to leave, and the verdict on each packet.

    tests/vectors/make.py DIR        (needs python3-scapy)

What has to leave is not what RVS has sent once: scapy builds it from the RFCs and from what LVS does, every header anew and every
checksum over everything. tests/replay.rs has RVS take the vectors, and sees that the committed ones are what this makes.

A vector is a directory CONFIG-NAME with PORT.in.pcap and PORT.out.pcap for each port of CONFIG.toml that has packets, and
`verdicts` with a line a packet: forward PORT, route PORT, punt REASON or drop REASON, in the order of time; for a fragment that waits, hold first.
In vlan-CONFIG-NAME these ports are tagged networks of one, "trunk".
"""

import sys

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP, IPOption_RR, fragment
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Raw

# Nothing but vectors comes to be in this directory.
sys.dont_write_bytecode = True

import ipv6
import matrix
import policy
import snat
import tunnels
import vlan
from vector import (CLIENT, FOUR, GATEWAY, NEIGHBOUR, OTHER, ROUTER, SERVER, SIX, VIP, WAN, Nat, Vector, at_lan, at_wan, ip, mac,
                    to_client, to_server)


def nat_tcp(name, family):
    vector = Vector(name)
    for client, port in [(family.client, 40112), (family.neighbour, 1)]:
        web = Nat(vector, TCP, 80, 8080, port=port, server=family.server, client=client)
        web.request(flags="S", seq=1000, options=[("MSS", 1460), ("SAckOK", b""), ("Timestamp", (7, 0)), ("WScale", 7)])
        web.reply(flags="SA", seq=5000, ack=1001, options=[("MSS", 1460), ("NOP", None), ("WScale", 7)])
        web.request(flags="A", seq=1001, ack=5001)
        web.request(b"GET / HTTP/1.0\r\n\r\n", flags="PA", seq=1001, ack=5001, options=[("Timestamp", (8, 9))])
        web.reply(b"odd length: " + bytes(range(255)), flags="PA", seq=5001, ack=1019)
        web.request(b"\xff" * 1311, flags="A", seq=1019, ack=5268, ttl=2)
        web.reply(flags="FA", seq=5268, ack=2330, ttl=255)
        web.request(flags="FA", seq=2330, ack=5269)
        web.reply(flags="A", seq=5269, ack=2331)
    # Payloads that make a checksum, before or after, one of the two zeros of one's complement, and its neighbours.
    web = Nat(vector, TCP, 80, 8080, port=2, server=family.server, client=family.client)
    web.request(flags="S", seq=1)
    web.reply(flags="SA", seq=1, ack=2)
    for destination, port in [(family.vip, 80), (family.server, 8080)]:
        segment = TCP(sport=2, dport=port, flags="A", seq=2, ack=2) / Raw(b"\0\0")
        zero = family.packet(bytes(ip(family.client, destination) / segment))[TCP].chksum
        for number in range(zero - 2, zero + 3):
            web.request(bytes([number >> 8, number & 255]), flags="A", seq=2, ack=2)
            web.reply(bytes([number >> 8, number & 255]), flags="A", seq=2, ack=2)
    return vector


def nat_udp(name, family):
    vector = Vector(name)
    dns = Nat(vector, UDP, 53, 5353, server=family.server, client=family.client)
    dns.request(b"a question")
    dns.reply(b"an answer")
    dns.request()
    # RFC 768: no checksum, and none is made.
    dns.request(b"unchecked", chksum=0)
    dns.reply(b"unchecked, too", chksum=0)
    # Payloads that make a checksum, before or after, one of the two zeros of one's complement, and its neighbours.
    for destination, port in [(family.vip, 53), (family.server, 5353)]:
        zero = family.packet(bytes(ip(family.client, destination) / UDP(sport=40112, dport=port) / Raw(b"\0\0")))[UDP].chksum
        for number in range(zero - 2, zero + 3):
            dns.request(bytes([number >> 8, number & 255]))
            # The sum does not know the direction.
            dns.reply(bytes([number >> 8, number & 255]))
    if family is SIX:
        return vector
    # IP options: the header is longer, and the options stay what they are.
    dns.request(b"by way of", ip={"options": [IPOption_NOP(), IPOption_RR(pointer=4, routers=["0.0.0.0"] * 2)]})
    dns.request(b"type of service and no fragments", ip={"tos": 0xB8, "flags": "DF"})
    return vector


def nat_rr():
    """In turns, and as with IPVS the turns begin with the server that was added last."""
    vector = Vector("nat-rr")
    clients = [Nat(vector, TCP, 81, 8081, port=1000 + n, server=[OTHER, SERVER][n % 2]) for n in range(6)]
    for client in clients:
        client.request(flags="S")
    for client in reversed(clients):
        client.reply(flags="SA", seq=7, ack=1)
        client.request(flags="A", seq=1, ack=8)
    return vector


def nat_time():
    """A flow that is silent for longer than its timeout begins anew, with the next server."""
    vector = Vector("nat-time")
    def flow(server):
        return Nat(vector, UDP, 54, 5454, server=server)
    flow(OTHER).request(b"1")
    vector.wait(2)
    flow(OTHER).request(b"2")
    vector.wait(2)
    flow(OTHER).request(b"3")
    vector.wait(30)
    flow(SERVER).request(b"4")
    flow(SERVER).reply(b"5")
    vector.wait(7200)
    flow(OTHER).request(b"6")
    return vector


def nat_persistent(name, family, client, neighbour):
    """A client comes back to its server as long as it is remembered, whatever its port; another client has its own. By the number of its
    connection the client says its address."""
    vector = Vector(name)
    def begin(client, port, server):
        flow = Nat(vector, TCP, 83, 8083, port=port, server=server, client=client)
        flow.request(flags="S", seq=1)
        flow.reply(flags="SA", seq=1, ack=2)
        flow.request(flags="A", seq=2, ack=2)
        flow.request(flags="R", seq=2, ack=2)
    begin(client(1000), 1000, family.other)
    begin(client(1001), 1001, family.other)
    begin(neighbour(1000), 1000, family.server)
    begin(client(1002), 1002, family.other)
    vector.wait(240)
    begin(client(1003), 1003, family.other)
    vector.wait(7200)
    begin(neighbour(1001), 1001, family.other)
    begin(client(1004), 1004, family.server)
    return vector


def nat_fragments():
    """Fragments go where the first one goes, each on its own, and those that come before it wait for it."""
    vector = Vector("nat-fragments")
    payload = bytes(range(256)) * 12
    def pieces(source, destination, sport, dport, ttl, number):
        datagram = IP(src=source, dst=destination, ttl=ttl, id=number) / UDP(sport=sport, dport=dport) / Raw(payload)
        return fragment(datagram, fragsize=1200)
    def request(number):
        came = [at_wan(piece) for piece in pieces(CLIENT, VIP, 40112, 53, 64, number)]
        return came, [to_server(piece) for piece in pieces(CLIENT, SERVER, 40112, 5353, 63, number)]
    def reply(number):
        came = [at_lan(piece) for piece in pieces(SERVER, CLIENT, 5353, 40112, 64, number)]
        return came, [to_client(piece) for piece in pieces(VIP, CLIENT, 53, 40112, 63, number)]
    for came, left in zip(*request(1)):
        vector.forward("wan", came, "lan", left)
    for came, left in zip(*reply(2)):
        vector.forward("lan", came, "wan", left)
    came, left = request(3)
    vector.hold("wan", came[2])
    vector.hold("wan", came[1])
    vector.forward("wan", came[0], "lan", left[0])
    vector.release(came[2], "lan", left[2])
    vector.release(came[1], "lan", left[1])
    # One whose first never comes is nobody's, a second later.
    came, _ = request(4)
    vector.hold("wan", came[1])
    vector.wait(5)
    Nat(vector, UDP, 53, 5353).request(b"another one")
    vector.verdicts.append("drop fragment_expired")
    return vector


def error(source, destination, kind, code, quote, ttl=64, **more):
    return ip(source, destination, ttl) / ICMP(type=kind, code=code, **more) / Raw(quote)


def nat_icmp():
    vector = Vector("nat-icmp")
    kinds = [(3, 3, {}), (3, 4, {"nexthopmtu": 1280}), (3, 1, {}), (3, 13, {}), (11, 0, {}), (4, 0, {}), (12, 0, {"ptr": 8})]
    for layer, virtual, real in [(TCP, 80, 8080), (UDP, 53, 5353)]:
        flow = Nat(vector, layer, virtual, real)
        flow.request(b"a request, quoted", **({"flags": "S"} if layer is TCP else {}))
        flow.reply(b"a reply, quoted", **({"flags": "SA"} if layer is TCP else {}))
        request = lambda to, port: bytes(ip(CLIENT, to, 63) / layer(sport=40112, dport=port) / Raw(b"a request, quoted"))
        reply = lambda source, port: bytes(ip(source, CLIENT, 63) / layer(sport=port, dport=40112) / Raw(b"a reply, quoted"))
        for kind, code, more in kinds:
            for length in [28, 1000]:
                # About a request, by the server or by a router before it: to the client it is the service that says so.
                for reporter in [SERVER, "10.0.0.99"]:
                    quote = lambda to, port: request(to, port)[:length]
                    vector.forward(
                        "lan", at_lan(error(reporter, CLIENT, kind, code, quote(SERVER, real), **more), reporter),
                        "wan", to_client(error(VIP, CLIENT, kind, code, quote(VIP, virtual), 63, **more)))
                # About a reply, by the client or a router on the way to it.
                for reporter in [CLIENT, ROUTER]:
                    quote = lambda source, port: reply(source, port)[:length]
                    vector.forward(
                        "wan", at_wan(error(reporter, VIP, kind, code, quote(VIP, virtual), **more)),
                        "lan", to_server(error(reporter, SERVER, kind, code, quote(SERVER, real), 63, **more)))
    nobody = bytes(ip(CLIENT, SERVER) / UDP(sport=7, dport=5353))
    vector.drop("lan", at_lan(error(SERVER, CLIENT, 3, 3, nobody)), "icmp_error")
    vector.punt("wan", at_wan(error(ROUTER, VIP, 3, 3, bytes(ip(VIP, CLIENT) / UDP(sport=53, dport=7)))), "icmp")
    vector.punt("wan", at_wan(error(ROUTER, VIP, 5, 1, bytes(ip(VIP, CLIENT) / UDP(sport=53, dport=40112)))), "icmp")
    vector.punt("wan", at_wan(ip(CLIENT, VIP) / ICMP(type=8, id=1, seq=1) / Raw(b"ping")), "icmp")
    vector.drop("lan", at_lan(error(SERVER, CLIENT, 3, 3, bytes(ip(CLIENT, SERVER) / UDP(sport=40112, dport=5353)), 1)), "ttl_expired")
    return vector


def nat_odd():
    """What is Linux', and what nobody gets."""
    vector = Vector("nat-odd")
    syn = ip(CLIENT, VIP) / TCP(sport=40112, dport=80, flags="S")
    vector.punt("wan", Ether(dst=WAN, src=GATEWAY) / Dot1Q(vlan=7) / syn, "vlan")
    vector.punt("wan", Ether(dst=WAN, src=GATEWAY, type=0x88A8) / Dot1AD(vlan=7) / Dot1Q(vlan=8) / syn, "vlan")
    vector.punt("wan", Ether(dst="ff:ff:ff:ff:ff:ff", src=GATEWAY) / ARP(psrc="192.0.2.254", pdst=VIP, hwsrc=GATEWAY), "not_ip")
    vector.punt("wan", Ether(dst=WAN, src=GATEWAY) / IPv6(src="2001:db8::1", dst="2001:db8::2") / TCP(dport=80), "no_service")
    vector.punt("wan", Ether(dst="01:00:5e:00:00:12", src=GATEWAY) / ip("192.0.2.2", "224.0.0.18", 255, proto=112), "multicast")
    vector.punt("wan", at_wan(ip(CLIENT, VIP, proto=47) / Raw(b"GRE")), "other_protocol")
    vector.punt("wan", at_wan(ip(CLIENT, VIP) / TCP(sport=40112, dport=22, flags="S")), "no_service")
    vector.punt("wan", at_wan(ip(CLIENT, VIP) / TCP(sport=40112, dport=80, flags="A")), "no_connection")
    vector.punt("lan", at_lan(ip(SERVER, CLIENT) / TCP(sport=8080, dport=40112, flags="SA")), "no_service")
    vector.drop("wan", Ether(dst="02:00:00:00:00:99", src=GATEWAY) / syn, "other_host")
    vector.drop("wan", Raw(bytes(at_wan(syn))[:13]), "runt")
    vector.drop("wan", at_wan(ip(CLIENT, VIP, chksum=0x1234) / TCP(sport=40112, dport=80, flags="S")), "bad_ip_checksum")
    vector.drop("wan", at_wan(ip(CLIENT, VIP, len=2000) / TCP(sport=40112, dport=80, flags="S")), "bad_ip_header")
    vector.drop("wan", at_wan(ip(CLIENT, VIP) / UDP(sport=9, dport=53, len=7) / Raw(b"data")), "bad_transport_header")
    vector.drop("wan", at_wan(ip(CLIENT, VIP, 1) / TCP(sport=40112, dport=80, flags="S")), "ttl_expired")
    vector.drop("wan", at_wan(ip(CLIENT, VIP) / TCP(sport=40112, dport=82, flags="S")), "no_server")
    vector.drop("wan", at_wan(ip(CLIENT, VIP, flags="DF") / UDP(sport=9, dport=53) / Raw(b"\0" * 1400)), "too_big")
    # Ethernet's padding is not the packet's, and goes on as it is.
    dns = Nat(vector, UDP, 53, 5353, port=9)
    frame = lambda at, to, port, ttl: at(ip(CLIENT, to, ttl) / UDP(sport=9, dport=port) / Raw(b"short"))
    padded = lambda frame: Ether(bytes(frame) + b"\xee" * 13)
    vector.forward("wan", padded(frame(at_wan, VIP, 53, 64)), "lan", padded(frame(to_server, SERVER, 5353, 63)))
    dns.reply(b"after all that")
    return vector


def dr():
    """Of a frame only the MACs and the TTL change; replies do not come this way."""
    vector = Vector("dr-both")
    def to_real(packet, server):
        return Ether(dst=mac(server), src=WAN) / packet
    def request(layer, port, server, payload=b"", **more):
        packet = lambda ttl: ip(CLIENT, VIP, ttl) / layer(sport=40112, dport=port, **more) / Raw(payload)
        vector.forward("wan", at_wan(packet(64)), "wan", to_real(packet(63), server))
    request(TCP, 80, "192.0.2.11", flags="S", options=[("MSS", 1460)])
    request(TCP, 80, "192.0.2.11", flags="A", seq=1, ack=1)
    request(TCP, 80, "192.0.2.11", b"GET /\r\n", flags="PA", seq=1, ack=1)
    request(TCP, 80, "192.0.2.11", flags="FA", seq=8, ack=1)
    request(UDP, 53, "192.0.2.12", b"a question")
    request(UDP, 53, "192.0.2.12", b"another one", chksum=0)
    # A checksum that is wrong is the server's affair.
    request(UDP, 53, "192.0.2.12", b"garbled", chksum=0x1234)
    quote = bytes(ip(VIP, CLIENT, 63) / UDP(sport=53, dport=40112) / Raw(b"an answer"))
    for kind, code in [(3, 3), (3, 4), (11, 0)]:
        report = lambda ttl: error(ROUTER, VIP, kind, code, quote[:28], ttl)
        vector.forward("wan", at_wan(report(64)), "wan", to_real(report(63), "192.0.2.12"))
    vector.punt("wan", at_wan(ip(CLIENT, VIP) / TCP(sport=9, dport=80, flags="A")), "no_connection")
    return vector


if __name__ == "__main__":
    vectors = [
        nat_tcp("nat-tcp", FOUR), nat_udp("nat-udp", FOUR), nat_rr(), nat_time(),
        nat_persistent("nat-persistent", FOUR, lambda _: CLIENT, lambda _: NEIGHBOUR),
        nat_fragments(), nat_icmp(), nat_odd(), dr(),
        nat_tcp("nat-ipv6-tcp", SIX), nat_udp("nat-ipv6-udp", SIX),
        # The hosts of a network of 64 bits are one client.
        nat_persistent("nat-ipv6-persistent", SIX, "2001:db8:c::{}".format, "2001:db8:c:1::{}".format),
        *ipv6.vectors(),
        *matrix.vectors(),
        *tunnels.vectors(),
        *snat.vectors(),
        *policy.vectors(),
    ]
    for vector in [*vectors, *vlan.vectors(vectors)]:
        vector.write(sys.argv[1])
