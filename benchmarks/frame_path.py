"""CPU time of the proxy's own code per streamed token, without the kernel: from a frame's bytes to an event's bytes.

    python benchmarks/frame_path.py [--streams 256] [--frames 400] [--rounds 5]

Everything between is the proxy's: the parsed frame, its session, its streams, their events, the server's response. Only
gRPC before it and the socket after it are left out; `proxy_cpu.py` has those. `--profile` prints where the time goes.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import logging
import pstats
import socket
import statistics
import time
from typing import Any

import uvicorn
import uvloop

from headrace.core.streams import Submit, TextPrompt
from headrace.core.types import Endpoint, ReplicaId
from headrace.metrics import Metrics, Tally
from headrace.proxy.changed import Changed
from headrace.proxy.chat_shape import ChatShape
from headrace.proxy.clients import Clients, Limits
from headrace.proxy.connection import CONNECTION
from headrace.proxy.server import new_server
from headrace.proxy.session import Session
from headrace.proxy.silence import Silence
from headrace.proxy.sinks import Events
from headrace.proxy.stream import Stream
from headrace.proxy.writer import Writer
from headrace.rpc.v1 import replica_pb2

NOBODY: Any = None  # no connection, so no certificate
WORDS = (" the", " head", " of", " water", " turns", " every", " wheel", "\n", ' "quoted"', " é", " model", ".")


class Nowhere(asyncio.Transport):
    """A connection that takes everything."""

    def __init__(self) -> None:
        super().__init__()
        self.written = 0
        self._socket = socket.socket()  # nothing is sent through it

    def write(self, data: Any) -> None:
        self.written += len(data)

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2), "socket": self._socket}.get(name, default)

    def close(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


async def connect(server: uvicorn.Server, got: asyncio.Queue[Any]) -> None:
    """A client's request, up to the application's call."""
    config = server.config
    if not config.loaded:
        config.load()
    protocol: Any = config.http_protocol_class(config=config, server_state=server.server_state, app_state={})
    protocol.connection_made(Nowhere())
    protocol.data_received(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")


async def round_of(streams: int, frames: int) -> float:
    """Microseconds of this process per token."""
    got: asyncio.Queue[Any] = asyncio.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        got.put_nowait((scope, send))
        await receive()
        await receive()  # there is no more

    server = new_server(app, Clients(Limits(), Metrics()))
    session = Session(Endpoint(ReplicaId("r"), ""), "p", Changed(), Silence(), NOBODY)
    session._on_frame(replica_pb2.Frame(fingerprint="f"))
    tally = Tally()
    for _ in range(streams):
        await connect(server, got)
        scope, send = await got.get()
        writer = Writer(send, scope[CONNECTION], limit_bytes=2**18)
        sink = Events(writer, ChatShape("chatcmpl-0123456789abcdef", "sim", 1, 1, True), 1, True, [])
        stream = Stream(0, Submit(0, "r", TextPrompt("x"), keep_s=10.0), sink, tally, lambda: None)
        stream.place(session)
    numbers = list(range(1, streams + 1))
    made = [
        replica_pb2.Frame(
            stream=numbers,
            position=[f] * streams,
            count=[1] * streams,
            token_id=[(f * 7 + i) % 30_000 for i in numbers],
            text=[WORDS[(f + i) % len(WORDS)] for i in numbers],
        ).SerializeToString()
        for f in range(frames)
    ]
    begun = time.thread_time()
    for f in made:
        session._on_frame(replica_pb2.Frame.FromString(f))
    spent = time.thread_time() - begun
    return spent / frames / streams * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("streams", 256), ("frames", 400), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it has a traceback for each answer that we leave
    if args.profile:
        profile = cProfile.Profile()
        profile.enable()
    found = [uvloop.run(round_of(args.streams, args.frames)) for _ in range(args.rounds)]
    if args.profile:
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    print(
        f"{args.streams} streams, {args.frames} frames, {args.rounds} rounds: {statistics.median(found):.2f} µs a token"
    )
    print(f"(range {min(found):.2f}–{max(found):.2f}), from the frame's bytes to the event's, without the kernel")


if __name__ == "__main__":
    main()
