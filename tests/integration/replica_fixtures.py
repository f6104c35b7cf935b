"""A replica as a process, and a proxy's side of a session, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from authority_fixtures import credentials, replica_env

from headrace.core.phase import Phase
from headrace.core.specfile import dump_spec
from headrace.core.streams import (
    ChatPrompt,
    Finished,
    Frame,
    Guide,
    Prompt,
    Rejected,
    Result,
    Resume,
    Sampling,
    Submit,
    Task,
    TextPrompt,
    TokenLogprob,
    TokenPrompt,
)
from headrace.core.types import Load, ModelSpec, ReplicaId, ReplicaSpec, ReplicaStatus, Resources
from headrace.process import Child, child_env
from headrace.rpc import convert, convert_streams
from headrace.rpc.channel import open_channel
from headrace.rpc.roles import Role
from headrace.rpc.v1 import replica_pb2, replica_pb2_grpc

WAIT_S = 60.0


def chat(text: str) -> ChatPrompt:
    return ChatPrompt(json.dumps([{"role": "user", "content": text}]).encode())


@dataclass
class StreamSeen:
    """Everything a client was told about one stream."""

    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    started: int | None = None
    finished: Finished | None = None
    rejected: Rejected | None = None
    result: Result | None = None
    begin: int = 0  # the first position

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def over(self) -> bool:
        return self.finished is not None or self.rejected is not None


class ProxySide:
    """Reads frames, checks that they are contiguous, and keeps what they said."""

    def __init__(self, call: grpc.aio.StreamStreamCall) -> None:
        self.call = call
        self.seen: dict[int, StreamSeen] = {}
        self.frames: list[Frame] = []
        self.load = Load()
        self.draining = False
        self.error: grpc.aio.AioRpcError | None = None
        self.closed = False
        self._news = asyncio.Condition()
        self._next = 1

    async def read(self) -> None:
        try:
            async for message in self.call:
                async with self._news:
                    self._take(convert_streams.frame_from_pb(message))
                    self._news.notify_all()
        except grpc.aio.AioRpcError as e:
            self.error = e
        except asyncio.CancelledError:
            pass
        async with self._news:
            self.closed = True
            self._news.notify_all()

    def _take(self, f: Frame) -> None:
        self.frames.append(f)
        assert f.load is not None
        assert len(set(f.streams)) == len(f.streams), "a stream has one row in a frame"
        self.load, self.draining = f.load, f.draining
        at = 0
        for number, position, count, text in zip(f.streams, f.positions, f.counts, f.texts, strict=True):
            s = self.seen[number]
            assert not s.over
            if not s.tokens and not s.pieces:
                s.begin = position
            assert position == s.begin + len(s.tokens), "tokens must be contiguous"
            s.tokens += f.token_ids[at : at + count]
            s.pieces.append(text)
            at += count
        assert at == len(f.token_ids)
        for number, logprobs in f.logprobs:
            self.seen[number].logprobs += logprobs
        for started in f.started:
            assert self.seen[started.stream].started is None
            self.seen[started.stream].started = started.prompt_tokens
        for result in f.results:
            assert self.seen[result.stream].result is None
            self.seen[result.stream].result = result
        for finished in f.finished:
            assert not self.seen[finished.stream].over, "one end per stream"
            self.seen[finished.stream].finished = finished
        for rejected in f.rejected:
            assert not self.seen[rejected.stream].over, "one end per stream"
            self.seen[rejected.stream].rejected = rejected

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until `condition` holds, looking at every frame."""
        async with asyncio.timeout(WAIT_S), self._news:
            await self._news.wait_for(lambda: condition() or self.closed)
        assert condition(), f"the session ended: {self.error}"

    async def start(self, prompt: Prompt | str, **how: Any) -> int:
        number, message = self._submission(prompt, **how)
        await self.call.write(message)
        return number

    async def start_together(self, prompts: Sequence[Prompt | str], **how: Any) -> list[int]:
        """In one message, so that no thread of either side can come between them."""
        numbers, (first, *others) = zip(*[self._submission(p, **how) for p in prompts], strict=True)
        first.more.extend(others)
        await self.call.write(first)
        return list(numbers)

    def _submission(
        self,
        prompt: Prompt | str,
        *,
        sampling: Sampling | None = None,
        max_tokens: int | None = None,
        stop: tuple[str, ...] = (),
        resume: Resume | None = None,
        adapter: str = "",
        guide: Guide | None = None,
        task: Task = Task.GENERATE,
        document: str = "",
        dimensions: int = 0,
    ) -> tuple[int, replica_pb2.SessionRequest]:
        number, self._next = self._next, self._next + 1
        self.seen[number] = StreamSeen()
        prompt = TextPrompt(prompt) if isinstance(prompt, str) else prompt
        sampling = sampling or Sampling(temperature=0.0)
        submit = Submit(
            number, f"r{number}", prompt, sampling, max_tokens, stop, resume, task,
            guide=guide, document=document, dimensions=dimensions, adapter=adapter,
        )  # fmt: skip
        return number, convert_streams.submit_to_pb(submit)

    async def abort(self, number: int) -> None:
        await self.call.write(replica_pb2.SessionRequest(abort=replica_pb2.Abort(stream=number)))

    async def end_of(self, number: int) -> StreamSeen:
        await self.until(lambda: self.seen[number].over)
        return self.seen[number]

    async def ask(self, prompt: Prompt | str, **how: Any) -> StreamSeen:
        return await self.end_of(await self.start(prompt, **how))


@dataclass
class RunningReplica:
    child: Child
    directory: Path
    replica_id: str
    address: str
    channel: grpc.aio.Channel  # as its scheduler
    proxy_channel: grpc.aio.Channel

    @property
    def stub(self) -> replica_pb2_grpc.ReplicaServiceStub:
        return replica_pb2_grpc.ReplicaServiceStub(self.channel)

    @property
    def proxy_stub(self) -> replica_pb2_grpc.ReplicaServiceStub:
        return replica_pb2_grpc.ReplicaServiceStub(self.proxy_channel)

    async def statuses(self, replica_id: str | None = None) -> AsyncIterator[ReplicaStatus]:
        request = replica_pb2.WatchReplicaRequest(replica_id=replica_id or self.replica_id)
        call = self.stub.Watch(request, wait_for_ready=True)
        try:
            async for message in call:
                yield convert.replica_status_from_pb(message)
        finally:
            call.cancel()

    def log_tail(self) -> str:
        return (self.directory / "replica.log").read_text(errors="replace")[-4000:]

    async def status_when(self, condition: Callable[[ReplicaStatus], object], wait_s: float = WAIT_S) -> ReplicaStatus:
        try:
            async with asyncio.timeout(wait_s), contextlib.aclosing(self.statuses()) as statuses:
                async for status in statuses:
                    if condition(status):
                        return status
        except grpc.aio.AioRpcError as e:
            raise AssertionError(f"the replica went away: {e.details()}; its log ends:\n{self.log_tail()}") from e
        raise AssertionError("the watch ended")

    async def ready(self) -> ReplicaStatus:
        status = await self.status_when(lambda s: s.phase in (Phase.READY, Phase.FAILED))
        assert status.phase is Phase.READY, status.reason
        return status

    @contextlib.asynccontextmanager
    async def session(self, proxy_id: str = "p1", replica_id: str | None = None) -> AsyncIterator[ProxySide]:
        call = self.proxy_stub.Session()
        hello = replica_pb2.SessionHello(proxy_id=proxy_id, replica_id=replica_id or self.replica_id)
        await call.write(replica_pb2.SessionRequest(hello=hello))
        side = ProxySide(call)
        async with asyncio.TaskGroup() as tasks:
            reader = tasks.create_task(side.read())
            try:
                yield side
            finally:
                call.cancel()
                reader.cancel()

    async def exit_code(self) -> int | None:
        async with asyncio.timeout(WAIT_S):
            return await self.child.wait()


def a_spec(
    *,
    engine: str = "simulated",
    source: str = "builtin:demo",
    options: dict[str, object] | None = None,
    cpus: float = 1,
    **model: object,
) -> ReplicaSpec:
    spec = ModelSpec(source=source, engine=engine, engine_args_json=json.dumps(options or {}), **model)  # type: ignore[arg-type]
    return ReplicaSpec(ReplicaId("demo-1-abcdef"), "demo", 1, spec, Resources(cpus=cpus))


@contextlib.asynccontextmanager
async def spawned(spec: ReplicaSpec, directory: Path, cache_dir: Path | None = None) -> AsyncIterator[Child]:
    """The process alone, ended at the end."""
    directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240
    text = dump_spec(spec, host="127.0.0.1", cache_dir=str(cache_dir or directory / "cache"))
    (directory / "spec.json").write_text(text)
    child = Child.spawn(
        [sys.executable, "-m", "headrace.replica", str(directory)],
        env=child_env(replica_env(directory), sources=True),
        output=directory / "replica.log",
    )
    try:
        yield child
    finally:
        await child.stop(term_s=5.0)


@contextlib.asynccontextmanager
async def running(spec: ReplicaSpec, directory: Path, cache_dir: Path | None = None) -> AsyncIterator[RunningReplica]:
    """A replica that listens; wait for `ready` yourself."""
    async with spawned(spec, directory, cache_dir) as child:
        endpoint = await _endpoint(directory, child)
        at = endpoint["address"]
        async with (
            open_channel(at, credentials(Role.NODE), Role.NODE) as channel,
            open_channel(at, credentials(Role.PROXY), Role.NODE) as proxy,
        ):
            yield RunningReplica(child, directory, spec.replica_id, at, channel, proxy)


async def _endpoint(directory: Path, child: Child) -> dict[str, str]:
    path = directory / "endpoint.json"
    async with asyncio.timeout(WAIT_S):
        while not path.exists():
            assert child.alive(), (directory / "replica.log").read_text()
            await asyncio.sleep(0.02)
    return json.loads(path.read_text())


__all__ = ["Phase", "ProxySide", "RunningReplica", "TokenPrompt", "a_spec", "chat", "running", "spawned"]
