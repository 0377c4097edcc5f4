"""What source NAT has beyond what every mode has (matrix.py): pings, hosts inside that meet at the pool's addresses, and errors about both."""

import functools

from scapy.layers.inet import ICMP, TCP, UDP
from scapy.packet import Raw

from matrix import errors, flags, packet
from vector import CLIENT, FOUR, ROUTER, Vector, at_lan, at_wan, ip, to_client, to_server

# Of each pool in snat.toml a host inside, with the address that everybody else sees, and the port that it has there.
HERE, HERE_OUTSIDE = ("10.0.0.50", 40112), ("192.0.2.50", 5000)
THERE, THERE_OUTSIDE = ("10.0.0.150", 40112), ("192.0.2.51", 6000)
# A router further inside.
INSIDE = "10.0.0.99"


def echo(kind, source, to, hops, identifier, payload):
    return ip(source, to, hops) / ICMP(type=kind, id=identifier, seq=7) / Raw(payload)


def pings():
    """A ping goes by its identifier, both ways (RFC 5508, section 3), and so does an error about one (section 4)."""
    vector = Vector("snat-pings")
    out = lambda packet: vector.forward("lan", at_lan(packet(HERE, 64), HERE[0]), "wan", to_client(packet(HERE_OUTSIDE, 63)), "route")
    back = lambda packet: vector.forward("wan", at_wan(packet(HERE_OUTSIDE, 64)), "lan", to_server(packet(HERE, 63)), "route")
    asks = lambda end, hops, payload=b"ping": echo(8, end[0], CLIENT, hops, end[1], payload)
    answers = lambda end, hops, payload=b"ping": echo(0, CLIENT, end[0], hops, end[1], payload)
    quoted = functools.cache(lambda what, end: bytes(what(end, 63)))
    for payload in [b"ping", b"", b"odd", b"\xff" * 1400]:
        out(lambda end, hops: asks(end, hops, payload))
        back(lambda end, hops: answers(end, hops, payload))
    for error in errors(FOUR):
        for length in [28, 1000]:
            # About the question, by a router on the way or by who was asked; about the answer, by who has asked or by a router before it.
            for reporter in [ROUTER, CLIENT]:
                back(lambda end, hops: ip(reporter, end[0], hops) / error / Raw(quoted(asks, end)[:length]))
            for reporter in [HERE[0], INSIDE]:
                out(lambda end, hops: ip(reporter if end == HERE else end[0], CLIENT, hops) / error / Raw(quoted(answers, end)[:length]))
    # Nobody inside has asked, and nobody outside can have.
    vector.punt("wan", at_wan(echo(0, CLIENT, HERE_OUTSIDE[0], 64, 7, b"ping")), "icmp")
    vector.punt("wan", at_wan(echo(8, CLIENT, HERE_OUTSIDE[0], 64, HERE_OUTSIDE[1], b"ping")), "icmp")
    vector.drop("lan", at_lan(echo(0, HERE[0], CLIENT, 64, 7, b"ping"), HERE[0]), "snat_none")
    return vector


def hairpins():
    """Two hosts inside see each other as everybody sees them (RFC 4787, REQ-9), in errors as well (RFC 5508, REQ-7)."""
    vector = Vector("snat-hairpins")

    def between(build, sender, outside, to, outside_of_to):
        """build(source, destination, hops) of what is sent inside is, on its arrival, of the sender as it is outside and the receiver as it is inside."""
        vector.forward("lan", at_lan(build(sender, outside_of_to, 64), sender[0]), "lan", to_server(build(outside, to, 63)), "route")

    there = lambda build: between(build, HERE, HERE_OUTSIDE, THERE, THERE_OUTSIDE)
    here = lambda build: between(build, THERE, THERE_OUTSIDE, HERE, HERE_OUTSIDE)
    for layer in [UDP, TCP]:
        made = lambda text, value: lambda *ends: packet(layer, *ends, text, **flags(layer, value))
        # Nobody has the port before somebody there has sent from it.
        vector.punt("wan", at_wan(made(b"early", "S")((CLIENT, 53), THERE_OUTSIDE, 64)), "no_service")
        first = made(b"to anybody", "S")
        vector.forward("lan", at_lan(first(THERE, (CLIENT, 53), 64), THERE[0]), "wan", to_client(first(THERE_OUTSIDE, (CLIENT, 53), 63)), "route")
        there(made(b"a question, quoted", "S"))
        here(made(b"an answer, quoted", "SA"))
        there(made(b"", "A"))
        for body in [b"x", b"odd length: " + bytes(range(255))]:
            there(made(body, "PA"))
            here(made(body, "PA"))
        quoted = functools.cache(lambda text, value, source, to: bytes(made(text, value)(source, to, 63)))
        for error in errors(FOUR):
            for length in [28, 1000]:
                def about(text, value, of):
                    """By the one of these two who has got it, or by a router before it."""
                    def build(source, to, hops, reporter):
                        return ip(reporter or source[0], to[0], hops) / error / Raw(quoted(text, value, to, source)[:length])
                    of(lambda *ends: build(*ends, None))
                    of(lambda *ends: build(*ends, INSIDE if ends[2] == 64 else None))
                about(b"a question, quoted", "S", here)
                about(b"an answer, quoted", "SA", there)
    return vector


def vectors():
    return [pings(), hairpins()]
