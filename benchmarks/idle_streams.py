"""Ten thousand clients that wait for their first token, at one proxy: how many are refused, and what each costs.

    python benchmarks/idle_streams.py [--streams 10000]

A real system (head, one proxy, scheduler, a replica of the simulated engine that takes one prompt token a step, so that
nearly all wait for their whole lives). The figures are the growth of the proxy's and of the replica's resident memory
over streams, while all are connected; the clients are another process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import tempfile
import time
from pathlib import Path

from proxy_cpu import System, system

from headrace import __version__
from headrace.process import raise_open_files

OPTIONS = {"step_s": 0.5, "prefill_chunk": 1, "max_running": 20_000, "kv_tokens": 10**9, "answer_tokens": 10**6}
BODY = json.dumps({"model": "sim", "messages": [{"role": "user", "content": "Wait."}], "stream": True}).encode()
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)
AT_ONCE = 200


class Client(asyncio.Protocol):
    """Keeps nothing of what comes but its status."""

    def __init__(self) -> None:
        self.status = self.first = b""
        self.events = 0
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.write(REQUEST)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        if not self.status:
            self.status, self.first = data[9:12], data
        self.events += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True


async def connect(s: System, streams: int) -> list[Client]:
    loop = asyncio.get_running_loop()
    clients: list[Client] = []
    while len(clients) < streams:
        some = min(AT_ONCE, streams - len(clients))
        made = await asyncio.gather(*(loop.create_connection(Client, s.host, s.port) for _ in range(some)))
        clients += [client for _, client in made]
    return clients


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=10_000)
    args = parser.parse_args()
    if raise_open_files() < args.streams + 100:
        raise SystemExit(f"This process may not have {args.streams} connections: raise ulimit -n.")
    with tempfile.TemporaryDirectory() as folder:
        async with system(Path(folder), args.streams, OPTIONS) as s:
            before = s.proxy.memory_info().rss, s.replica.memory_info().rss
            begin = time.monotonic()
            clients = await connect(s, args.streams)
            connected_s = time.monotonic() - begin
            async with asyncio.timeout(300):
                while not all(c.events or c.lost for c in clients):  # noqa: ASYNC110 - each is told after ten seconds
                    await asyncio.sleep(0.2)
            after = s.proxy.memory_info().rss, s.replica.memory_info().rss
            s.proxy.cpu_percent(interval=None)
            await asyncio.sleep(10)
            cpu = s.proxy.cpu_percent(interval=None)
            wrong = [c for c in clients if c.status != b"200" or c.lost]
            for c in clients:
                c.transport.close()
            begin = time.monotonic()
            async with asyncio.timeout(300):
                while s.proxy.num_fds() > 200:  # noqa: ASYNC110 - the proxy tells nobody
                    await asyncio.sleep(0.1)
            gone_s = time.monotonic() - begin
    kib = [(a - b) / args.streams / 1024 for a, b in zip(after, before, strict=True)]
    print(
        f"Headrace {__version__}, Python {platform.python_version()}: {args.streams} idle streams, connected in "
        f"{connected_s:.1f} s; refused {len(wrong)}; KiB a stream: proxy {kib[0]:.1f}, replica {kib[1]:.1f}; "
        f"the proxy's CPU while they wait {cpu:.0f} %; all gone {gone_s:.1f} s after they closed"
    )
    if wrong:
        print(f"For example: {wrong[0].first!r}")


if __name__ == "__main__":
    asyncio.run(main())
