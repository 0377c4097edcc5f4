"""A client and a server of SCTP by usrsctp's library, a stack in user space, whose own programs take no address of IPv6.

With no port for UDP its packets are SCTP's own; bound to one address, each end tells the other of no more.

    sctp.py serve ADDRESS PORT
    sctp.py send ADDRESS TO PORT COUNT LENGTH

The server says how many bytes have come when the client has ended an association, and sends that back before it does the same.
"""

import ctypes
import ipaddress
import socket
import struct
import sys

SCTP, SHUT_WR = 132, 1

library = ctypes.CDLL("libusrsctp.so.2")
for name in ["usrsctp_socket", "usrsctp_accept"]:
    getattr(library, name).restype = ctypes.c_void_p
for name in ["usrsctp_sendv", "usrsctp_recvv"]:
    getattr(library, name).restype = ctypes.c_ssize_t


def checked(result):
    if result is None or result == ctypes.c_void_p(0).value or result == -1:
        sys.exit("it is refused")
    return result


def address(text, port):
    """As the C library has it (ip(7), ipv6(7)), and its length."""
    ip = ipaddress.ip_address(text)
    if ip.version == 4:
        name = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, ip.packed)
    else:
        name = struct.pack("=H", socket.AF_INET6) + struct.pack("!HI16sI", port, 0, ip.packed, 0)
    return name, len(name)


def bound(text, port):
    family = socket.AF_INET if ipaddress.ip_address(text).version == 4 else socket.AF_INET6
    end = ctypes.c_void_p(
        checked(library.usrsctp_socket(family, socket.SOCK_STREAM, SCTP, None, None, 0, None)))
    checked(library.usrsctp_bind(end, *address(text, port)))
    return end


def send(end, data):
    checked(library.usrsctp_sendv(end, data, len(data), None, 0, None, 0, 0, 0))


def receive(end):
    """Nothing once the other end has shut down."""
    buffer = ctypes.create_string_buffer(65536)
    lengths, kind, flags = [ctypes.c_uint32(0), ctypes.c_uint32(0)], ctypes.c_uint(0), ctypes.c_int(0)
    length = library.usrsctp_recvv(end, buffer, len(buffer), None, ctypes.byref(lengths[0]), None,
                                   ctypes.byref(lengths[1]), ctypes.byref(kind), ctypes.byref(flags))
    return buffer.raw[: checked(length)]


def serve(own, port):
    end = bound(own, int(port))
    checked(library.usrsctp_listen(end, 1))
    print("ready", flush=True)
    while True:
        one = ctypes.c_void_p(checked(library.usrsctp_accept(end, None, None)))
        total = sum(len(data) for data in iter(lambda: receive(one), b""))
        print(f"{total} bytes", flush=True)
        library.usrsctp_close(one)


def client(own, to, port, count, length):
    end = bound(own, 0)
    checked(library.usrsctp_connect(end, *address(to, int(port))))
    for number in range(int(count)):
        send(end, bytes([number % 256]) * int(length))
    checked(library.usrsctp_shutdown(end, SHUT_WR))
    while receive(end):
        pass
    library.usrsctp_close(end)


library.usrsctp_init(0, None, None)
{"serve": serve, "send": client}[sys.argv[1]](*sys.argv[2:])
