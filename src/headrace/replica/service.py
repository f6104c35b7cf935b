"""ReplicaService: the frame sessions of the proxies, and the watch and drain of the scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import structlog

from headrace import errors
from headrace.core.phase import Phase
from headrace.core.streams import Failure
from headrace.replica.adapters import Adapters
from headrace.replica.presence import Presence
from headrace.replica.session import Session
from headrace.replica.status import StatusBoard
from headrace.replica.streams import Streams
from headrace.rpc import convert, convert_streams, wire
from headrace.rpc.channel import rpc_errors
from headrace.rpc.v1 import replica_pb2, replica_pb2_grpc, types_pb2

log = structlog.get_logger()

_WATCH_S = 1.0
_FLUSH_S = 1.0
_AT_ONCE_S = 0.01

Context = grpc.aio.ServicerContext[Any, Any]


class ReplicaServicer(replica_pb2_grpc.ReplicaServiceServicer):
    """`streams` and `adapters` are set once the model is loaded; `drained` is set when the process is to end."""

    def __init__(self, board: StatusBoard) -> None:
        self._board = board
        self.streams: Streams | None = None
        self.adapters: Adapters | None = None
        self.drained = asyncio.Event()
        self.presence = Presence()

    @rpc_errors
    async def Watch(
        self, request: replica_pb2.WatchReplicaRequest, context: Context
    ) -> AsyncIterator[types_pb2.ReplicaStatus]:
        self._check_identity(request.replica_id)
        with self.presence.somebody():
            async for status in self._board.follow(_WATCH_S):
                yield convert.replica_status_to_pb(status)

    @rpc_errors
    async def Drain(self, request: replica_pb2.DrainRequest, context: Context) -> replica_pb2.DrainResponse:
        self._check_identity(request.replica_id)
        await self.drain(wire.seconds(request.timeout_s, "timeout_s"))
        self.drained.set()
        return replica_pb2.DrainResponse()

    @rpc_errors
    async def SetAdapters(
        self, request: replica_pb2.SetAdaptersRequest, context: Context
    ) -> replica_pb2.SetAdaptersResponse:
        self._check_identity(request.replica_id)
        if self.adapters is None:
            raise errors.Unavailable("This replica is still loading its model.")
        self.adapters.set(list(convert.adapters_from_pb(request.adapters)))
        return replica_pb2.SetAdaptersResponse()

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new; return when all streams have ended. Those that have not in time end with an error."""
        if self._board.now.phase not in (Phase.DRAINING, Phase.FAILED):
            self._board.change(Phase.DRAINING)
        streams = self.streams
        if streams is None:
            return
        streams.drain()
        try:
            async with asyncio.timeout(timeout_s):
                await streams.wait_empty()
        except TimeoutError:
            streams.fail_all(Failure(errors.Draining.kind, "The replica was stopped before the answer was complete."))
        await streams.flush(_FLUSH_S)

    @rpc_errors
    async def Session(  # pyright: ignore[reportIncompatibleMethodOverride]  # writes instead of yielding
        self, request_iterator: AsyncIterator[replica_pb2.SessionRequest], context: Context
    ) -> None:
        hello = await anext(request_iterator, None)
        if hello is None or hello.WhichOneof("message") != "hello":
            raise errors.InvalidRequest("A session begins with a hello.")
        self._check_identity(hello.hello.replica_id)
        streams = self.streams
        if streams is None:
            raise errors.Unavailable("This replica is still loading its model.")
        session = streams.open(wire.name(hello.hello.proxy_id, "proxy id"))
        try:
            with self.presence.somebody():
                async with asyncio.TaskGroup() as tasks:
                    both = [
                        tasks.create_task(self._read(streams, session, request_iterator)),
                        tasks.create_task(self._write(session, context)),
                    ]
                    await session.ended.wait()
                    for task in both:
                        task.cancel()
        finally:
            streams.close(session)
        if session.why_ended:
            log.warning("session_ended", proxy=session.proxy_id, why=session.why_ended)
            raise errors.Overloaded(session.why_ended)

    def _check_identity(self, expected: str) -> None:
        own = self._board.now.replica_id
        if expected != own:
            raise errors.Conflict(f"This is replica {own}, not {expected[:100]}.")

    async def _read(
        self, streams: Streams, session: Session, requests: AsyncIterator[replica_pb2.SessionRequest]
    ) -> None:
        """Do what the proxy says, until it ends the session."""
        clock = asyncio.get_running_loop().time
        async with asyncio.TaskGroup() as beside:
            try:
                async for first in requests:
                    begin = clock()
                    for message in (first, *first.more):
                        match message.WhichOneof("message"):
                            case "submit":
                                try:
                                    submit = convert_streams.submit_from_pb(message.submit)
                                except errors.InvalidRequest as e:
                                    streams.refuse(session, message.submit.stream, e)
                                    continue
                                if submit.take_over is not None:
                                    await streams.take_over(session, submit)
                                # One message may bring a thousand prompts: what comes first is read at once.
                                elif work := streams.submit(session, submit, at_once=clock() - begin < _AT_ONCE_S):
                                    beside.create_task(work)
                            case "abort":
                                streams.abort(session, message.abort.stream)
                            case _:
                                session.end("A session has one hello.")
                                return
                    if clock() - begin >= _AT_ONCE_S:
                        await asyncio.sleep(0)  # the next one may be there already
            except grpc.RpcError:
                pass
            session.end()

    async def _write(self, session: Session, context: Context) -> None:
        try:
            while True:
                await context.write(convert_streams.frame_to_pb(await session.next()))
        except (grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
            session.end()  # the proxy is gone
