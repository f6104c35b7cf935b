"""Reads every packet of an interface until its input ends, then says what each TCP flow carried: INTERFACE WORD…

A JSON list: of each direction of a connection its length, whether it is whole TLS records, and which words stand in it.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import struct
import sys
from collections import defaultdict

Flow = tuple[bytes, int, bytes, int]


def take(frame: bytes, flows: dict[Flow, dict[int, bytes]]) -> None:
    """Add the TCP payload of an Ethernet frame, if it has one."""
    if frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_TCP:
        return
    ip = frame[14:]
    head, total = (ip[0] & 15) * 4, struct.unpack("!H", ip[2:4])[0] or len(ip)
    tcp = ip[head:total]
    source, destination, seq = struct.unpack("!HHI", tcp[:8])
    payload = tcp[(tcp[12] >> 4) * 4 :]
    if payload:
        kept = flows[ip[12:16], source, ip[16:20], destination]
        if len(payload) > len(kept.get(seq, b"")):
            kept[seq] = payload


def joined(pieces: dict[int, bytes]) -> bytes:
    """The bytes of a direction in their order; b"" from a gap on."""
    data, at = b"", min(pieces)
    for seq in sorted(pieces):
        if seq > at:
            break
        data += pieces[seq][at - seq :]
        at = max(at, seq + len(pieces[seq]))
    return data


def is_tls(data: bytes) -> bool:
    """Whether this is TLS records, one after another, beginning with a handshake; the last may be cut."""
    if not data.startswith(b"\x16\x03"):
        return False
    while len(data) >= 5:
        kind, major, length = data[0], data[1], struct.unpack("!H", data[3:5])[0]
        if kind not in (20, 21, 22, 23) or major != 3 or length > 2**14 + 256:
            return False
        data = data[5 + length :]
    return True


def main() -> None:
    words = [w.encode() for w in sys.argv[2:]]
    flows: dict[Flow, dict[int, bytes]] = defaultdict(dict)
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sock,
        selectors.DefaultSelector() as ready,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**24)
        sock.bind((sys.argv[1], 0))
        ready.register(sock, selectors.EVENT_READ)
        ready.register(0, selectors.EVENT_READ)
        print("listening", flush=True)
        while True:
            which = [key.fd for key, _ in ready.select()]
            if sock.fileno() in which:
                take(sock.recv(2**17), flows)
            elif 0 in which and not os.read(0, 1):
                break
    said = []
    for flow, pieces in flows.items():
        everything = b"".join(pieces[k] for k in sorted(pieces))
        said.append({
            "to": flow[3], "bytes": len(everything), "tls": is_tls(joined(pieces)),
            "words": [w.decode() for w in words if w in everything],
        })  # fmt: skip
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
