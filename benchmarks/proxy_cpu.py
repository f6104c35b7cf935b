"""CPU time of one proxy per streamed token: a real system with the simulated engine, beside the kernel's floor.

    python benchmarks/proxy_cpu.py [--streams 256] [--tokens 300] [--rounds 5] [--step_s 0.02]

Each round: `streams` clients each get an answer of `tokens` tokens over HTTP as server-sent events; the figure is the
proxy process's user + system time over tokens delivered. The floor is a process that does nothing but one send() of
such an event per token per stream. Rounds of both take turns, so that the machine's moods fall on both. CPU time is
not wall time: it does not depend on how fast the clients, which share the machine, can read.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from headrace import __version__
from headrace.cli.client import open_admin
from headrace.cli.endpoint import HeadEndpoint, read_endpoint
from headrace.process import child_env

STEP_S = 0.02
# Every token of it is a word, so that every token has text.
TEXT = " the head of water turns every wheel of the model"
EVENT = b"x" * 200  # about one token's event


@dataclass(frozen=True)
class Cost:
    """CPU seconds over tokens."""

    user_s: float
    system_s: float
    tokens: int

    @property
    def user_us(self) -> float:
        return self.user_s / self.tokens * 1e6

    @property
    def system_us(self) -> float:
        return self.system_s / self.tokens * 1e6

    @property
    def us(self) -> float:
        return self.user_us + self.system_us


@dataclass(frozen=True)
class System:
    host: str
    port: int
    proxy: psutil.Process
    replica: psutil.Process


@asynccontextmanager
async def part(folder: Path, *args: str) -> AsyncIterator[None]:
    with (folder / f"{args[0]}.log").open("wb") as log:
        argv = [sys.executable, "-m", "headrace", *args, f"--state_dir={folder}/state"]
        given = {k: v for k, v in os.environ.items() if k.startswith("HEADRACE_")}
        process = await asyncio.create_subprocess_exec(*argv, stdout=log, stderr=log, env=child_env(given))
    try:
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def listening(state_dir: Path) -> HeadEndpoint:
    """Where the head is, once one of its proxies takes connections."""
    while (endpoint := read_endpoint(state_dir)) is None:  # noqa: ASYNC110 - a file tells nobody that it is there
        await asyncio.sleep(0.05)
    host, _, port = endpoint.http.rpartition(":")
    while True:
        try:
            (await asyncio.open_connection(host, int(port)))[1].close()
            return endpoint
        except ConnectionRefusedError:
            await asyncio.sleep(0.05)


@asynccontextmanager
async def system(folder: Path, streams: int, options: Mapping[str, object] | None = None) -> AsyncIterator[System]:
    """Head, one proxy, scheduler, and one replica of the simulated engine."""
    usual = {"step_s": STEP_S, "text": TEXT, "max_running": streams, "kv_tokens": 10**9, "prefill_chunk": 10**6}
    options = usual | dict(options or {})
    model = {"source": "builtin:demo", "engine": "simulated", "engine_args": options, "resources": {"cpus": 0.1}}
    catalog = folder / "catalog.yaml"
    catalog.write_text(json.dumps({"models": {"sim": model}}))
    ports = ("--http_port=0", "--node_port=0", "--grpc_port=0")
    async with part(folder, "head", *ports, "--num_proxies=1", f"--catalog={catalog}"):
        endpoint = await asyncio.wait_for(listening(folder / "state"), 60)
        host, _, port = endpoint.http.rpartition(":")
        async with (
            part(folder, "scheduler", "--num_cpus=2", "--num_gpus=0", f"--port={endpoint.node.rpartition(':')[2]}"),
            open_admin(endpoint.grpc, folder / "state") as admin,
        ):
            await answer(host, int(port), 1)  # deploys the model, and waits for it
            status = await admin.status()
            proxy, replica = status.proxies[0].pid, status.replicas[0].status.pid
            yield System(host, int(port), psutil.Process(proxy), psutil.Process(replica))


async def answer(host: str, port: int, tokens: int) -> int:
    """One streamed answer; how many tokens it had."""
    request = {
        "model": "sim",
        "messages": [{"role": "user", "content": "Go on."}],
        "max_tokens": tokens,
        "min_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    body = json.dumps(request).encode()
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    tail = b""
    while data := await reader.read(65536):
        tail = (tail + data)[-4096:]
    writer.close()
    if b"data: [DONE]" not in tail:
        raise RuntimeError(f"an answer was cut: {tail[-300:]!r}")
    usage = next(line for line in reversed(tail.splitlines()) if b'"completion_tokens"' in line)
    return int(json.loads(usage.removeprefix(b"data: "))["usage"]["completion_tokens"])


async def round_of_proxy(s: System, streams: int, tokens: int) -> tuple[Cost, Cost]:
    """What the proxy and the replica (with its engine) spent."""
    processes = (s.proxy, s.replica)
    before = [p.cpu_times() for p in processes]
    done = sum(await asyncio.gather(*(answer(s.host, s.port, tokens) for _ in range(streams))))
    after = [p.cpu_times() for p in processes]
    if done != streams * tokens:
        raise RuntimeError(f"{done} tokens came instead of {streams * tokens}")
    proxy, replica = (Cost(a.user - b.user, a.system - b.system, done) for a, b in zip(after, before, strict=True))
    return proxy, replica


def send_all(streams: int, tokens: int, tell: Connection) -> None:
    """The floor's process. Tells its port, then what it spent."""
    with socket.create_server(("127.0.0.1", 0), backlog=streams) as listener:
        tell.send(listener.getsockname()[1])
        clients = [listener.accept()[0] for _ in range(streams)]
    before = os.times()
    for _ in range(tokens):
        due = time.monotonic() + STEP_S
        for client in clients:
            client.send(EVENT)
        time.sleep(max(0.0, due - time.monotonic()))
    after = os.times()
    tell.send(Cost(after.user - before.user, after.system - before.system, streams * tokens))


async def drain(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while await reader.read(65536):
        pass
    writer.close()


async def round_of_floor(streams: int, tokens: int) -> Cost:
    context = multiprocessing.get_context("spawn")
    told, tell = context.Pipe(duplex=False)
    child = context.Process(target=send_all, args=(streams, tokens, tell))
    child.start()
    port = await asyncio.to_thread(told.recv)
    await asyncio.gather(*(drain(port) for _ in range(streams)))
    cost = await asyncio.to_thread(told.recv)
    child.join()
    return cost


def show(what: str, costs: list[Cost]) -> None:
    us = [c.us for c in costs]
    user, kernel = (statistics.median(getattr(c, f) for c in costs) for f in ("user_us", "system_us"))
    low, high = min(us), max(us)
    print(f"| {what} | {statistics.median(us):.1f} | {low:.1f}–{high:.1f} | {user:.1f} | {kernel:.1f} |", flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("streams", 256), ("tokens", 300), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--step_s", type=float, default=STEP_S, help="time between the tokens of a stream")
    args = parser.parse_args()
    floors: list[Cost] = []
    proxies: list[Cost] = []
    replicas: list[Cost] = []
    with tempfile.TemporaryDirectory() as folder:
        async with system(Path(folder), args.streams, {"step_s": args.step_s}) as s:
            await round_of_proxy(s, args.streams, 20)  # warm
            for _ in range(args.rounds):
                floors.append(await round_of_floor(args.streams, args.tokens))
                proxy, replica = await round_of_proxy(s, args.streams, args.tokens)
                proxies.append(proxy)
                replicas.append(replica)
    print(
        f"Headrace {__version__}, Python {platform.python_version()}, {os.cpu_count()} CPUs; {args.streams} streams of"
        f" {args.tokens} tokens, {args.rounds} rounds; CPU µs per token"
    )
    print("| | median | range | user | system |\n|---|---|---|---|---|")
    show("floor: one send() per token", floors)
    show("proxy", proxies)
    show("replica, with the simulated engine", replicas)


if __name__ == "__main__":
    asyncio.run(main())
