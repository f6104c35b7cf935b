"""The floor: a process that does nothing but one send() of a prebuilt event per token per stream.

Orders are those of upstream.py.

python benchmarks/peers/floor.py STEP_S
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

from peers.upstream import BEGIN, DONE, END, EVENTS


class Stream:
    """It sends, and its request is read for nothing but how many tokens it wants."""

    def __init__(self, client: socket.socket) -> None:
        self.send = client.send
        self.client, self.asked, self.index, self.tokens = client, b"", 0, 0

    def read(self) -> bool:
        """False when the client has gone."""
        data = self.client.recv(65536)
        self.asked += data
        if not self.tokens and self.asked.endswith(b"}"):
            self.tokens = int(json.loads(self.asked.partition(b"\r\n\r\n")[2])["max_tokens"])
        return bool(data)


def serve(step_s: float) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(json.dumps([listener.getsockname()[1]]), flush=True)
    orders, ears = sys.stdin.fileno(), listener.fileno()
    poll = select.epoll()
    poll.register(orders, select.EPOLLIN)
    poll.register(ears, select.EPOLLIN)
    streams: dict[int, Stream] = {}
    running: list[Stream] = []
    due = time.monotonic()
    while True:
        for fd, _ in poll.poll(max(0.0, due - time.monotonic()) if running else 1.0):
            if fd == orders:
                if not (line := sys.stdin.readline()):
                    return
                step_s = float(line)
                print("ok", flush=True)
            elif fd == ears:
                client = listener.accept()[0]
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                streams[client.fileno()] = Stream(client)
                poll.register(client, select.EPOLLIN)
            elif not streams[fd].read():
                streams.pop(fd).client.close()
            elif streams[fd].tokens:
                if not running:
                    due = time.monotonic() + step_s
                running.append(streams[fd])
        if not running or time.monotonic() < due:
            continue
        for s in running:
            data = EVENTS[s.index % len(EVENTS)]
            s.index += 1
            if s.index == 1:
                data = BEGIN + data
            if s.index == s.tokens:
                data += END + DONE
            s.send(data)
        running = [s for s in running if s.index < s.tokens]
        due = time.monotonic() + step_s


if __name__ == "__main__":
    serve(float(sys.argv[1]))
