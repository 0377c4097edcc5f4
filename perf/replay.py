#!/usr/bin/env python3
"""How many packets `rvs replay` takes a second of CPU time.

    perf/replay.py target/release/rvs [PACKETS]

Makes a capture of a million packets of 60 bytes: 1000 established TCP connections through NAT, requests only, in random order; and
replays it three times in each way of telling.
"""

import random
import resource
import struct
import subprocess
import sys
import tempfile

CONFIG = """
[workers]
cores = [1]
[[port]]
name = "wan"
device = "net_null"
addresses = ["192.0.2.1/24"]
[[port]]
name = "lan"
device = "net_null"
addresses = ["10.0.0.1/24"]
[[service]]
address = "192.0.2.10:80"
mode = "nat"
"""
SERVERS = "".join(f'[[service.server]]\naddress = "10.0.0.{n}:8080"\n' for n in range(11, 21))
FLOWS = 1000


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def frame(flow, flags):
    addresses = bytes([198, 51, 100, flow % 250, 192, 0, 2, 10])
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 46, 1, 0x4000, 64, 6, 0) + addresses
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    tcp = struct.pack("!HHIIBBHHH", 10_000 + flow, 80, 1, 1, 0x50, flags, 1000, 0, 0) + bytes(6)
    pseudo = addresses + struct.pack("!HH", 6, len(tcp))
    tcp = tcp[:16] + struct.pack("!H", checksum(pseudo + tcp)) + tcp[18:]
    return bytes.fromhex("020000000001 0200000000fe 0800") + ip + tcp


def capture(path, packets):
    chance = random.Random(1)
    begin = [frame(flow, 2) for flow in range(FLOWS)] + [frame(flow, 16) for flow in range(FLOWS)]
    later = begin[FLOWS:]
    with open(path, "wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1))
        for number in range(packets):
            data = begin[number] if number < len(begin) else later[chance.randrange(FLOWS)]
            file.write(struct.pack("<IIII", 1000 + number // 1_000_000, number % 1_000_000 * 1000, len(data), len(data)))
            file.write(data)


def seconds(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    packets = int(sys.argv[2]) if len(sys.argv) > 2 else 1_000_000
    with tempfile.TemporaryDirectory() as directory:
        config, wan = f"{directory}/rvs.toml", f"{directory}/wan.pcap"
        with open(config, "w") as file:
            file.write(CONFIG + SERVERS)
        capture(wan, packets)
        command = [sys.argv[1], "replay", "-c", config, "--in", f"wan={wan}"]
        for way in [["--summary"], ["--summary", "--out", f"lan={directory}/lan.pcap"], ["--json"], []]:
            rates = sorted(packets / seconds(command + way) / 1e6 for _ in range(3))
            print(f"{' '.join(way[:2]) or 'text':<16} {rates[1]:.2f} Mpps ({rates[0]:.2f}-{rates[2]:.2f})")


if __name__ == "__main__":
    main()
