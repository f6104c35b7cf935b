"""A head of an older epoch at the real one's address: whoever obeys it breaks I6."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from chaos_harness.history import Recorder
from chaos_harness.system import System
from headrace.rpc.channel import bind, new_server
from headrace.rpc.roles import Role
from headrace.rpc.v1 import head_pb2, head_pb2_grpc, node_pb2, node_pb2_grpc


class _Nodes(node_pb2_grpc.NodeServiceServicer):
    """Wants nothing to run. A node that reports after having heard that has accepted it."""

    def __init__(self, recorder: Recorder, epoch: int, highest: int) -> None:
        self._recorder, self._epoch, self._highest = recorder, epoch, highest

    async def Session(self, requests: AsyncIterator[node_pb2.NodeMessage], context: Any) -> None:  # pyright: ignore
        hello = await anext(aiter(requests))
        await context.write(node_pb2.HeadMessage(epoch=self._epoch, welcome=node_pb2.Welcome(lease_s=10)))
        await context.write(node_pb2.HeadMessage(epoch=self._epoch, desired=node_pb2.Desired()))
        accepted = False
        try:
            async with asyncio.timeout(3):
                reports = 0
                async for message in requests:
                    # The first report may have been under way already; the interval is short.
                    reports += message.WhichOneof("message") == "report"
                    if reports > 1:
                        accepted = True
                        break
        except (TimeoutError, grpc.RpcError):
            pass
        who = f"node {hello.hello.node_id}"
        self._recorder.write("commands", "stale", to=who, epoch=self._epoch, seen=self._highest, accepted=accepted)


class _Routes(head_pb2_grpc.RouteServiceServicer):
    """Tells proxies that there is no model. One that keeps listening has accepted it."""

    def __init__(self, recorder: Recorder, epoch: int, highest: int) -> None:
        self._recorder, self._epoch, self._highest = recorder, epoch, highest

    async def Watch(self, request: head_pb2.WatchRoutesRequest, context: Any) -> AsyncIterator[head_pb2.RouteDelta]:  # pyright: ignore
        yield head_pb2.RouteDelta(epoch=self._epoch, version=1)
        accepted = True
        try:
            await asyncio.sleep(1.5)
        except asyncio.CancelledError:
            accepted = False
            raise
        finally:
            self._recorder.write(
                "commands", "stale", to=request.proxy_id, epoch=self._epoch, seen=self._highest, accepted=accepted
            )


async def impostor(system: System, recorder: Recorder, highest: int, seconds: float) -> None:
    """Speak for so long with an epoch one below the highest there was."""
    epoch = highest - 1
    nodes, others = new_server(), new_server()
    credentials = system.credentials(Role.HEAD)
    node_pb2_grpc.add_NodeServiceServicer_to_server(_Nodes(recorder, epoch, highest), nodes)
    head_pb2_grpc.add_RouteServiceServicer_to_server(_Routes(recorder, epoch, highest), others)
    bind(nodes, "127.0.0.1", system.node, credentials, "")
    bind(others, "127.0.0.1", system.grpc, credentials, "")
    try:
        await nodes.start()
        await others.start()
        await asyncio.sleep(seconds)
    finally:
        await nodes.stop(0)
        await others.stop(0)
