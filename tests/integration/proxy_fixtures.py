"""Doubles of the head and of replicas: real gRPC servers in this process, with knobs for what can go wrong."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import httpx
from authority_fixtures import STATE, credentials

from headrace.core import streams as st
from headrace.core import types as t
from headrace.core.route_delta import NOTHING, diff
from headrace.errors import HeadraceError
from headrace.proxy.admission import Patience
from headrace.proxy.app import Proxy, serving
from headrace.proxy.silence import Silence
from headrace.rpc import convert_head, convert_streams
from headrace.rpc.channel import bind, new_server, rpc_errors
from headrace.rpc.roles import Role
from headrace.rpc.v1 import head_pb2, replica_pb2
from headrace.rpc.v1.head_pb2_grpc import RouteServiceServicer, add_RouteServiceServicer_to_server
from headrace.rpc.v1.replica_pb2_grpc import ReplicaServiceServicer, add_ReplicaServiceServicer_to_server
from headrace.settings import ProxySettings

# A patience for tests: long enough for a busy machine, short enough to wait for.
PATIENCE = Patience(model_s=30.0, replica_s=5.0, head_s=0.3, better_s=0.3, first_word_s=0.05, next_word_s=0.05)
WAIT_S = 20.0


async def eventually(what: Any, why: str = "") -> Any:
    """Wait until `what()` is true."""
    async with asyncio.timeout(WAIT_S):
        while not (value := what()):  # noqa: ASYNC110 - any condition of any part
            await asyncio.sleep(0.005)
    return value


def word(i: int) -> str:
    """The text of token i."""
    return f"w{i} "


def answer(n: int, first: int = 0) -> str:
    return "".join(word(i) for i in range(first, n))


@dataclass
class Live:
    submit: st.Submit
    position: int = 0


async def all_of(messages: Any) -> AsyncIterator[replica_pb2.SessionRequest]:
    """Also those that came in one message with another."""
    async for first in messages:
        for message in (first, *first.more):
            yield message


class Replica(ReplicaServiceServicer):
    """Makes word(0), word(1), … for every stream. Knobs may be turned at any time.

    step_s: time between steps; tokens: length without max_tokens; hold: makes nothing while set; silent: sends no
    frame at all; computes: it uses CPU time, steps or not; reject: the failure that new streams get; die_at: the
    server stops when a stream has come to this position; crash_on: it stops at once at a prompt with this in it;
    max_running: works on so many of a session's streams at once (0: on all); cut: all its streams end with this;
    lose_at: a token is left out there; texts: the text of each token; result: what it brings instead of tokens.
    """

    def __init__(self, name: str, **knobs: Any) -> None:
        self.name = name
        self.address = ""
        self.step_s = 0.0
        self.tokens = 8
        self.hold = False
        self.silent = False
        self.computes = False
        self.draining = False
        self.reject: st.Failure | None = None
        self.finish_error: st.Failure | None = None
        self.die_at: int | None = None
        self.lose_at: int | None = None
        self.cut: st.Failure | None = None
        self.crash_on = ""
        self.died = False
        self.fingerprint = "same"
        self.steps = 0
        self.texts: Sequence[str] | None = None
        self.result: st.Result | None = None
        self.waiting = 0
        self.max_running = 0
        self.dying: asyncio.Future[None] | None = None
        self.submits: list[st.Submit] = []
        self.aborts: list[int] = []
        self.sessions = 0
        self.live: dict[tuple[int, int], Live] = {}
        self._server: grpc.aio.Server | None = None
        for key, value in knobs.items():
            assert hasattr(self, key), key
            setattr(self, key, value)

    async def start(self, port: int = 0) -> Replica:
        self._server = new_server()
        add_ReplicaServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{bind(self._server, '127.0.0.1', port, credentials(Role.NODE), '--port')}"
        await self._server.start()
        return self

    async def die(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(None)
            self.live.clear()

    @property
    def endpoint(self) -> t.Endpoint:
        return t.Endpoint(t.ReplicaId(self.name), self.address)

    @rpc_errors
    async def Session(self, request_iterator: Any, context: Any) -> AsyncIterator[replica_pb2.Frame]:
        first = await anext(aiter(request_iterator))
        if first.hello.replica_id != self.name:
            raise HeadraceError(f"this is {self.name}")
        self.sessions += 1
        number = self.sessions
        news = st.Frame()
        rejected: list[st.Rejected] = []
        started: list[st.Started] = []

        async def listen() -> None:
            async for request in all_of(request_iterator):
                if request.HasField("abort"):
                    self.aborts.append(request.abort.stream)
                    self.live.pop((number, request.abort.stream), None)
                    continue
                submit = convert_streams.submit_from_pb(request.submit)
                self.submits.append(submit)
                if self.reject is not None:
                    rejected.append(st.Rejected(submit.stream, self.reject))
                else:
                    started.append(st.Started(submit.stream, 5))
                    had = submit.resume.token_ids if submit.resume else ()
                    assert list(had) == list(range(len(had)))
                    self.live[number, submit.stream] = Live(submit, len(had))
                    if self.crash_on and isinstance(submit.prompt, st.ChatPrompt):
                        self.died = self.died or self.crash_on.encode() in submit.prompt.messages_json

        async with asyncio.TaskGroup() as tasks:
            listener = tasks.create_task(listen())
            try:
                while True:
                    news = st.Frame(started=tuple(started), rejected=tuple(rejected), draining=self.draining)
                    news.fingerprint = self.fingerprint
                    started.clear()
                    rejected.clear()
                    if not self.hold:
                        self.steps += 1
                        self._step(number, news)
                    mine = sum(1 for s, _ in self.live if s == number)
                    news.load = t.Load(
                        running=min(mine, self.max_running or mine),
                        waiting=self.waiting,
                        kv_usage=0.5,
                        step=self.steps,
                        max_running=self.max_running,
                        cpu_s=1.0 + time.monotonic() if self.computes else 1.0,
                    )
                    if not self.silent:
                        yield convert_streams.frame_to_pb(news)
                    if self.died or (
                        self.die_at is not None and any(x.position >= self.die_at for x in self.live.values())
                    ):
                        self.dying = asyncio.ensure_future(self.die())  # not our child: it ends us
                        await asyncio.sleep(WAIT_S)
                    await asyncio.sleep(max(self.step_s, 0.001) if mine else 0.005)
            finally:
                listener.cancel()
                for key in [k for k in self.live if k[0] == number]:
                    del self.live[key]

    def _step(self, session: int, news: st.Frame) -> None:
        streams: list[int] = []
        positions: list[int] = []
        texts: list[str] = []
        logprobs: list[tuple[int, tuple[st.TokenLogprob, ...]]] = []
        finished: list[st.Finished] = []
        mine = [(key, live) for key, live in self.live.items() if key[0] == session]
        for (owner, stream), live in mine[: self.max_running or None]:
            if self.cut:
                finished.append(st.Finished(stream, "error", 0, self.cut))
                del self.live[owner, stream]
                continue
            if self.result is not None:
                news.results = [*news.results, replace(self.result, stream=stream)]
                finished.append(st.Finished(stream, "stop", 0, self.finish_error))
                del self.live[owner, stream]
                continue
            i = live.position
            limit = live.submit.max_tokens if live.submit.max_tokens is not None else self.tokens
            streams.append(stream)
            positions.append(i + 1 if self.lose_at is not None and i >= self.lose_at else i)
            text = self.texts[i % len(self.texts)] if self.texts else word(i)
            texts.append(text)
            wanted = live.submit.sampling.logprobs
            if wanted is not None:
                top = tuple(st.TokenLogprob(100 + k, f"a{k}".encode(), -2.0 - k) for k in range(wanted))
                logprobs.append((stream, (st.TokenLogprob(i, text.encode(), -0.5, top),)))
            live.position += 1
            if live.position >= min(limit, self.tokens):
                reason = "length" if live.submit.max_tokens is not None and limit <= self.tokens else "stop"
                if self.finish_error:
                    reason = "error"
                finished.append(st.Finished(stream, reason, 3, self.finish_error))
                del self.live[owner, stream]
        news.streams, news.positions, news.texts = streams, positions, texts
        news.counts, news.token_ids = [1] * len(streams), list(positions)
        news.logprobs, news.finished = logprobs, finished

    async def Watch(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def Drain(self, request: Any, context: Any) -> Any:
        raise NotImplementedError


@dataclass
class Head(RouteServiceServicer):
    """Pushes whatever `show` was told. `on_ensure` is called with a model's name."""

    address: str = ""
    table: t.RouteTable = field(default_factory=lambda: t.RouteTable(1, 0, {}))
    ensured: list[str] = field(default_factory=list)
    on_ensure: Any = None
    fail_ensure: HeadraceError | None = None
    watchers: int = 0
    lost_deltas: int = 0  # so many of the next ones are not sent
    _server: grpc.aio.Server | None = None
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self, port: int = 0) -> Head:
        self._server = new_server()
        add_RouteServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{bind(self._server, '127.0.0.1', port, credentials(Role.HEAD), '--grpc_port')}"
        await self._server.start()
        return self

    async def die(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(None)

    async def revive(self) -> None:
        await self.start(int(self.address.rpartition(":")[2]))

    def show(self, *routes: t.Route, epoch: int | None = None) -> None:
        """Push a table of these routes; the others stay as they are."""
        merged = dict(self.table.routes) | {r.name: r for r in routes}
        self.table = t.RouteTable(self.table.epoch if epoch is None else epoch, self.table.version + 1, merged)
        self._news.set()
        self._news = asyncio.Event()

    def ready(self, name: str, *replicas: Replica, **more: Any) -> None:
        endpoints = tuple(replace(r.endpoint, lost=r.name in more.get("lost", ())) for r in replicas)
        self.show(t.Route(name, t.RouteState.READY, "", endpoints, 1_700_000_000, 2048))

    def state(self, name: str, state: t.RouteState, reason: str = "") -> None:
        self.show(t.Route(name, state, reason))

    @rpc_errors
    async def Watch(self, request: Any, context: Any) -> AsyncIterator[head_pb2.RouteDelta]:
        self.watchers += 1
        sent = NOTHING
        try:
            while True:
                news, before, sent = self._news, sent, self.table
                if self.lost_deltas:
                    self.lost_deltas -= 1
                else:
                    yield convert_head.route_delta_to_pb(diff(before if before.epoch == sent.epoch else NOTHING, sent))
                await news.wait()
        finally:
            self.watchers -= 1

    async def Questions(self, request: Any, context: Any) -> AsyncIterator[head_pb2.Question]:
        await asyncio.Event().wait()  # it has none
        yield head_pb2.Question()

    @rpc_errors
    async def Ensure(self, request: Any, context: Any) -> head_pb2.EnsureResponse:
        self.ensured.append(request.model)
        if self.fail_ensure is not None:
            raise self.fail_ensure
        if self.on_ensure is not None:
            self.on_ensure(request.model)
        return head_pb2.EnsureResponse()


@dataclass
class World:
    """A head, replicas, a proxy and a client of it."""

    head: Head
    replicas: list[Replica]
    proxy: Proxy
    client: httpx.AsyncClient
    url: str

    async def reachable(self, *names: str) -> None:
        """Wait until the proxy has sessions with these replicas."""
        await eventually(lambda: {s.endpoint.replica_id for s in self.proxy.sessions if s.ready} >= set(names))

    async def clean(self) -> None:
        """Wait until nothing runs any more, and see that all load was released."""
        await eventually(lambda: not self.proxy.serving.active)
        assert self.proxy.serving.moves.running == 0
        assert all(s.in_flight == 0 for s in self.proxy.sessions)
        await eventually(lambda: not any(r.live for r in self.replicas))


@asynccontextmanager
async def world(
    replicas: int = 1,
    *,
    model: str = "demo",
    patience: Patience = PATIENCE,
    silence: Silence | None = None,
    settings: dict[str, Any] | None = None,
    **knobs: Any,
) -> AsyncIterator[World]:
    """`replicas` replicas of a ready model behind a proxy that has sessions with all of them."""
    async with AsyncExitStack() as stack:
        head = await Head().start()
        stack.push_async_callback(head.die)
        made: list[Replica] = []
        for i in range(replicas):
            made.append(await Replica(f"{model}-1-{i}", **knobs).start())
            stack.push_async_callback(made[-1].die)
        if made:
            head.ready(model, *made)
        s = ProxySettings(http_port=0, head_address=head.address, state_dir=STATE, **(settings or {}))
        proxy = await stack.enter_async_context(serving(s, patience, silence))
        url = f"http://{proxy.address}"
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=WAIT_S))
        w = World(head, made, proxy, client, url)
        await eventually(lambda: proxy.routes.table)
        await w.reachable(*(r.name for r in made))
        yield w


async def raw_request(address: str, head: str, body: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send an HTTP request byte by byte, as no client library would."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
    await writer.drain()
    return reader, writer


def free_port() -> tuple[int, socket.socket]:
    """A port that stays ours (while the socket lives) for processes that share it with SO_REUSEPORT."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", 0))
    return sock.getsockname()[1], sock
