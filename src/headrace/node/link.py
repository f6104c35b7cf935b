"""The session with the head: one connection after another, for as long as the scheduler runs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import structlog

from headrace import log_reader
from headrace.core.types import NodeInfo, ReplicaId, ReplicaSpec, ReplicaStatus
from headrace.errors import Fenced, HeadraceError
from headrace.node.epoch import EpochFile
from headrace.rpc.channel import Connection, from_rpc
from headrace.rpc.convert import node_info_to_pb, node_report_to_pb, replica_spec_from_pb
from headrace.rpc.credentials import Credentials
from headrace.rpc.roles import Role
from headrace.rpc.v1 import node_pb2, node_pb2_grpc

log = structlog.get_logger()

_RETRY_S, _RETRY_MAX_S = 0.1, 1.0
_COALESCE_S = 0.02  # changes within this travel in one report
_MAX_LOGS = 64
_CallOver = (grpc.RpcError, asyncio.InvalidStateError)


@dataclass(slots=True)
class _Session:
    call: Any
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    report_s: float = 1.0
    logs: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    said: dict[ReplicaId, ReplicaStatus] | None = None  # in the last report; None: there was none

    async def write(self, message: node_pb2.NodeMessage) -> None:
        """One at a time; returns when gRPC has taken it: a slow head slows us down instead of filling memory."""
        async with self.writing:
            await self.call.write(message)


class HeadLink:
    """`statuses` is what to report, `desired` is called with all that is to run, `log_of` names a replica's log."""

    def __init__(
        self,
        address: str,
        credentials: Credentials,
        info: NodeInfo,
        epoch: EpochFile,
        *,
        statuses: Callable[[], Sequence[ReplicaStatus]],
        desired: Callable[[Sequence[ReplicaSpec]], None],
        log_of: Callable[[str], Path | None],
    ) -> None:
        self._address, self._credentials, self._info, self._epoch = address, credentials, info, epoch
        self._statuses, self._desired, self._log_of = statuses, desired, log_of
        self._news = asyncio.Event()
        self._closing = False
        self._joined = False
        self._told = ""  # of being cut off, the last reason that was logged

    def changed(self) -> None:
        """Something is worth a report now."""
        self._news.set()

    def close(self) -> None:
        """Send a last report and end the session; then `run` returns."""
        self._closing = True
        self._news.set()

    async def run(self) -> str:
        """Stay in session until closed (then "") or fenced (then why)."""
        pause_s = _RETRY_S
        async with Connection(self._address, self._credentials, Role.HEAD) as connection:
            while not self._closing:
                self._joined = False
                end = await self._session(node_pb2_grpc.NodeServiceStub(connection.channel()))
                if isinstance(end, Fenced):
                    return end.message
                pause_s = _RETRY_S if self._joined else min(_RETRY_MAX_S, pause_s * 2)
                if self._closing:
                    break
                self._tell(end)
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
        return ""

    def _tell(self, end: HeadraceError | None) -> None:
        """Say once that we are cut off, not at every try."""
        why = end.message if end else "It ended the session."
        if self._joined or why != self._told:
            self._told = why
            log.warning(f"scheduler {self._info.node_id}: no head at {self._address}; replicas go on. {why}")

    async def _session(self, stub: node_pb2_grpc.NodeServiceStub) -> HeadraceError | None:
        """One session, from hello to its end; what ended it."""
        session = _Session(stub.Session())
        try:
            async with asyncio.TaskGroup() as tasks:
                reporting = tasks.create_task(self._report(session))
                try:
                    return await self._listen(session, tasks)
                finally:
                    for task in (reporting, *session.logs.values()):
                        task.cancel()
        finally:
            session.call.cancel()

    async def _report(self, session: _Session) -> None:
        """Hello, then a report at every change and at the interval that the head asked for."""
        try:
            await session.write(node_pb2.NodeMessage(hello=node_info_to_pb(self._info)))
            while True:
                closing = self._closing
                self._news.clear()  # before the state is read: what changes after that is news again
                await session.write(node_pb2.NodeMessage(report=self._news_for(session)))
                if closing:
                    await session.call.done_writing()
                    return
                try:
                    async with asyncio.timeout(session.report_s):
                        await self._news.wait()
                    if not self._closing:
                        await asyncio.sleep(_COALESCE_S)
                except TimeoutError:
                    pass
        except _CallOver:
            return  # the listener says why

    def _news_for(self, session: _Session) -> node_pb2.NodeReport:
        """What this session has yet to say: all at first, then what differs."""
        before, now = session.said, {s.replica_id: s for s in self._statuses()}
        session.said = now
        if before is None:
            return node_report_to_pb([*now.values()], None, self._epoch.highest)
        news = [s for k, s in now.items() if (had := before.get(k)) is not s and had != s]
        return node_report_to_pb(news, [k for k in before if k not in now], self._epoch.highest)

    async def _listen(self, session: _Session, tasks: asyncio.TaskGroup) -> HeadraceError | None:
        try:
            async for message in session.call:
                if not self._epoch.accept(message.epoch):
                    return HeadraceError(
                        f"It has epoch {message.epoch}, but this node has obeyed epoch {self._epoch.highest}: it is an"
                        f" older leader, or its state was deleted (then delete {self._epoch.path} too)."
                    )
                if message.WhichOneof("message") == "fenced":
                    return Fenced(message.fenced.reason)
                self._act(message, session, tasks)
        except grpc.RpcError as e:
            return from_rpc(e, f"the head at {self._address}", self._credentials.expected(Role.HEAD))
        except HeadraceError as e:  # what it wants cannot be: ask again
            return e
        return None

    def _act(self, message: node_pb2.HeadMessage, session: _Session, tasks: asyncio.TaskGroup) -> None:
        match message.WhichOneof("message"):
            case "welcome":
                session.report_s = max(0.05, message.welcome.report_interval_s or session.report_s)
                self._joined, self._told = True, ""
                r = self._info.resources
                log.info(
                    f"scheduler {self._info.node_id}: joined head at {self._address}; {r.cpus:g} CPUs,"
                    f" {r.memory_bytes / 2**30:.0f} GiB, {r.gpus} GPUs"
                )
            case "desired":
                self._desired([replica_spec_from_pb(s) for s in message.desired.replicas])
            case "read_log":
                number = message.read_log.request
                if number not in session.logs:
                    session.logs[number] = tasks.create_task(self._send_log(session, message.read_log))
            case "stop_log":
                if task := session.logs.get(message.stop_log.request):
                    task.cancel()

    async def _send_log(self, session: _Session, ask: node_pb2.ReadLog) -> None:
        path, error = self._log_of(ask.replica_id), ""
        try:
            if path is None:
                error = f"there is none on node {self._info.node_id}"
            elif len(session.logs) > _MAX_LOGS:
                error = f"node {self._info.node_id} is sending {_MAX_LOGS} logs already"
            else:
                async with aclosing(log_reader.read(path, ask.tail_lines, ask.follow)) as pieces:
                    async for piece in pieces:
                        await session.write(_chunk(ask, data=piece))
        except OSError as e:
            error = e.strerror or str(e)
        except _CallOver:
            return
        finally:
            session.logs.pop(ask.request, None)
        try:
            await session.write(_chunk(ask, end=True, error=error))
        except _CallOver:
            return


def _chunk(ask: node_pb2.ReadLog, **fields: Any) -> node_pb2.NodeMessage:
    return node_pb2.NodeMessage(log=node_pb2.LogChunk(request=ask.request, **fields))
