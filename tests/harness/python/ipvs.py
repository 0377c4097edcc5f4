"""A director of Linux IPVS, as far as its sync daemon goes: messages of version 1, by their documented layout.

    ipvs.py tell ADDRESS < MESSAGES     multicasts from this address; an object a line, see message()
    ipvs.py hear ADDRESS                prints what comes in, an object a message
"""

import json
import socket
import struct
import sys

GROUP, PORT = "224.0.0.81", 8848

# 0, syncid, bytes, connections, version, 0
HEADER = struct.Struct("!BBHBbH")
# type, protocol, bytes, flags, state, ports of client, service and server, fwmark, timeout, the addresses
CONNECTION = struct.Struct("!BBHIHHHHII4s4s4s")
FIELDS = ("client", "service", "server")


def ends(connection):
    pairs = [connection[field].rsplit(":", 1) for field in FIELDS]
    return [int(port) for _, port in pairs], [socket.inet_aton(address) for address, _ in pairs]


def connection(given):
    if given.get("ipv6"):
        return struct.pack("!BBH", 1, 6, 72) + bytes(68)
    ports, addresses = ends(given)
    options = bytes.fromhex(given.get("options", ""))
    size = CONNECTION.size + len(options)
    flags, state = given.get("flags", 0), given.get("state", 1)
    fwmark, timeout = given.get("fwmark", 0), given.get("timeout", 900)
    protocol = given.get("protocol", 6)
    return CONNECTION.pack(0, protocol, size, flags, state, *ports, fwmark, timeout, *addresses) + options


def message(given):
    body = b""
    for each in given["connections"]:
        body += bytes(-len(body) % 4) + connection(each)
    header = HEADER.pack(0, given["syncid"], HEADER.size + len(body), len(given["connections"]), 1, 0)
    return (header + body)[: given.get("cut")]


def tell(address):
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
    # Not to a listener beside it, as Linux' own daemons do not hear themselves.
    sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
    for line in sys.stdin:
        sender.sendto(message(json.loads(line)), (GROUP, PORT))


def parsed(bytes_):
    zero, syncid, size, count, version, spare = HEADER.unpack_from(bytes_)
    assert (zero, size, version, spare) == (0, len(bytes_), 1, 0), bytes_.hex()
    assert size == HEADER.size + count * CONNECTION.size, bytes_.hex()
    connections = []
    for each in CONNECTION.iter_unpack(bytes_[HEADER.size :]):
        kind, protocol, size, flags, state, *ports, fwmark, timeout, client, service, server = each
        assert (kind, size) == (0, CONNECTION.size), bytes_.hex()
        told = {"protocol": protocol, "flags": flags, "state": state, "fwmark": fwmark, "timeout": timeout}
        for field, port, address in zip(FIELDS, ports, (client, service, server)):
            told[field] = f"{socket.inet_ntoa(address)}:{port}"
        connections.append(told)
    return {"syncid": syncid, "connections": connections}


def hear(address):
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind((GROUP, PORT))
    membership = socket.inet_aton(GROUP) + socket.inet_aton(address)
    receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
    print(json.dumps({"hears": address}), flush=True)
    while True:
        print(json.dumps(parsed(receiver.recv(65536))), flush=True)


{"tell": tell, "hear": hear}[sys.argv[1]](sys.argv[2])
