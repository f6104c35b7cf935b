"""A head that records what a node says and tells it what to run, and schedulers to talk to it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from authority_fixtures import credentials, trusted

from headrace.core.phase import Phase
from headrace.core.types import ModelSpec, NodeInfo, ReplicaId, ReplicaSpec, ReplicaStatus, Resources
from headrace.node.agent import serve
from headrace.process import Child, child_env
from headrace.rpc.channel import bind, new_server
from headrace.rpc.convert import node_info_from_pb, node_report_from_pb, replica_spec_to_pb
from headrace.rpc.roles import Role
from headrace.rpc.v1 import node_pb2, node_pb2_grpc
from headrace.settings import SchedulerSettings

HERE = Path(__file__).parent
STAND_IN = (sys.executable, str(HERE / "stand_in_replica.py"))
PATIENCE_S = 60


def spec(name: str, drain_s: float = 5.0, **told: Any) -> ReplicaSpec:
    """A replica whose stand-in does as it is told."""
    model = ModelSpec("builtin:none", engine_args_json=json.dumps(told))
    return ReplicaSpec(ReplicaId(name), "model", 1, model, Resources(1.0), drain_s=drain_s)


class Head(node_pb2_grpc.NodeServiceServicer):
    """A head double: `want` says what is to run, `seen` what the node last reported."""

    def __init__(self) -> None:
        self.epoch = 7
        self.port = 0
        self.hellos: list[NodeInfo] = []
        self.reports: list[dict[str, ReplicaStatus]] = []
        self.epochs: list[int] = []
        self.logs: dict[int, list[node_pb2.LogChunk]] = {}
        self.clean_ends = 0
        self.specs: list[ReplicaSpec] | None = None
        self._outbox: asyncio.Queue[node_pb2.HeadMessage] | None = None
        self._server: grpc.aio.Server | None = None
        self._news = asyncio.Condition()

    # --- what a test does ---

    async def start(self) -> None:
        self._server = new_server()
        node_pb2_grpc.add_NodeServiceServicer_to_server(self, self._server)
        self.port = bind(self._server, "127.0.0.1", self.port, credentials(Role.HEAD), "")
        await self._server.start()

    async def stop(self) -> None:
        if self._server:
            await self._server.stop(0)
        self._server = None

    def want(self, *specs: ReplicaSpec, epoch: int | None = None) -> None:
        self.specs = list(specs)
        self.send(node_pb2.HeadMessage(desired=self._desired()), epoch)

    def send(self, message: node_pb2.HeadMessage, epoch: int | None = None) -> None:
        message.epoch = self.epoch if epoch is None else epoch
        if self._outbox:
            self._outbox.put_nowait(message)

    @property
    def seen(self) -> dict[str, ReplicaStatus]:
        return self.reports[-1] if self.reports else {}

    async def until(self, condition: Callable[[], Any]) -> Any:
        """Wait for news of the node after which `condition` holds; what it answered."""
        async with asyncio.timeout(PATIENCE_S), self._news:
            while not (answer := condition()):
                await self._news.wait()
            return answer

    async def phase(self, name: str, phase: Phase) -> ReplicaStatus:
        await self.until(lambda: name in self.seen and self.seen[name].phase is phase)
        return self.seen[name]

    def story(self, name: str) -> list[Phase]:
        """The phases that were reported of a replica, each change once."""
        phases = [r[name].phase for r in self.reports if name in r]
        return [p for i, p in enumerate(phases) if i == 0 or phases[i - 1] is not p]

    def log_text(self, request: int) -> str:
        return b"".join(c.data for c in self.logs.get(request, [])).decode()

    # --- the service ---

    def _desired(self) -> node_pb2.Desired:
        return node_pb2.Desired(replicas=[replica_spec_to_pb(s) for s in self.specs or ()])

    async def Session(self, request_iterator: Any, context: Any) -> AsyncIterator[node_pb2.HeadMessage]:
        outbox: asyncio.Queue[node_pb2.HeadMessage] = asyncio.Queue()
        self._outbox = outbox
        self.send(node_pb2.HeadMessage(welcome=node_pb2.Welcome(lease_s=10, report_interval_s=0.2)))
        if self.specs is not None:
            self.send(node_pb2.HeadMessage(desired=self._desired()))
        reading = asyncio.create_task(self._read(request_iterator))
        try:
            while True:
                asking = asyncio.create_task(outbox.get())
                await asyncio.wait({asking, reading}, return_when=asyncio.FIRST_COMPLETED)
                if not asking.done():
                    asking.cancel()
                    return
                yield asking.result()
        finally:
            reading.cancel()

    async def _read(self, messages: AsyncIterator[node_pb2.NodeMessage]) -> None:
        said: dict[str, ReplicaStatus] = {}
        async for message in messages:
            kind = message.WhichOneof("message")
            if kind == "hello":
                self.hellos.append(node_info_from_pb(message.hello))
            elif kind == "report":
                news, gone = node_report_from_pb(message.report)
                kept = {} if gone is None else {k: s for k, s in said.items() if k not in gone}
                said = kept | {s.replica_id: s for s in news}
                self.reports.append(said)
                self.epochs.append(message.report.epoch)
            else:
                self.logs.setdefault(message.log.request, []).append(message.log)
            async with self._news:
                self._news.notify_all()
        self.clean_ends += 1


@asynccontextmanager
async def head_double() -> AsyncIterator[Head]:
    head = Head()
    await head.start()
    try:
        yield head
    finally:
        await head.stop()


def settings(head: Head, state_dir: Path, **changes: Any) -> SchedulerSettings:
    given: dict[str, Any] = {
        "head_address": "127.0.0.1",
        "port": head.port,
        "state_dir": trusted(state_dir),
        "cache_dir": state_dir / "cache",
        "num_cpus": 2,
    }
    return SchedulerSettings(**given | changes)


@asynccontextmanager
async def scheduler(
    head: Head, state_dir: Path, command: tuple[str, ...] = STAND_IN, **changes: Any
) -> AsyncIterator[asyncio.Task[None]]:
    """A scheduler in this process; it ends its replicas when the block ends."""
    end = asyncio.Event()

    async def told() -> str:
        await end.wait()
        return "the test is over"

    task = asyncio.create_task(serve(settings(head, state_dir, **changes), told, command))
    try:
        yield task
    finally:
        end.set()
        await task


def spawn_scheduler(head: Head, state_dir: Path, *flags: str, node_id: str = "1") -> Child:
    """A scheduler as a process of its own; its words go to scheduler.log in the state directory."""
    trusted(state_dir)
    argv = [sys.executable, str(HERE / "node_scheduler.py"), str(head.port), str(state_dir), node_id, *flags]
    env = child_env(sources=True)  # its replicas fetch weights
    return Child.spawn(argv, env=env, output=state_dir / "scheduler.log")


def pids(statuses: Iterable[ReplicaStatus]) -> set[int]:
    return {s.pid for s in statuses}
