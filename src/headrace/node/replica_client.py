"""What a scheduler says to a replica: watch and drain."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

import grpc
import structlog

from headrace.core.types import Adapter, ReplicaId, ReplicaStatus
from headrace.errors import InvalidRequest
from headrace.rpc.channel import Connection, from_rpc, open_channel
from headrace.rpc.convert import adapter_to_pb, replica_status_from_pb
from headrace.rpc.credentials import Credentials
from headrace.rpc.roles import Role
from headrace.rpc.v1 import replica_pb2, replica_pb2_grpc

log = structlog.get_logger()

_REOPEN_S, _REOPEN_MAX_S = 0.1, 1.0
_TELL_S = 5.0


async def watch(
    address: str, replica_id: ReplicaId, pid: int, credentials: Credentials, seen: Callable[[ReplicaStatus], None]
) -> None:
    """Pass on every status that this replica in this process sends, for as long as it lives: cancel this at its end.

    A stream that breaks is opened again, less and less eagerly while that does not help.
    """
    pause_s, failures = _REOPEN_S, 0
    async with Connection(address, credentials, Role.NODE) as connection:
        while True:
            try:
                stub = replica_pb2_grpc.ReplicaServiceStub(connection.channel())
                async for message in stub.Watch(replica_pb2.WatchReplicaRequest(replica_id=replica_id)):
                    pause_s, failures = _REOPEN_S, 0
                    if (message.replica_id, message.pid) == (replica_id, pid):  # the port may have changed hands
                        seen(replica_status_from_pb(message))
            except grpc.RpcError as e:
                failures += 1
                if failures == 3:  # before, it may just be about to end
                    log.warning("watch_broken", replica=replica_id, error=from_rpc(e, f"replica at {address}").message)
            except InvalidRequest as e:  # such as a phase that we do not know: another version
                log.error("watch_unreadable", replica=replica_id, error=str(e))
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(_REOPEN_MAX_S, pause_s * 2)


async def drain(address: str, replica_id: ReplicaId, credentials: Credentials, timeout_s: float) -> bool:
    """Ask the replica to finish what it has within `timeout_s` and to end. False if it cannot be asked."""
    try:
        async with open_channel(address, credentials, Role.NODE) as channel:
            stub = replica_pb2_grpc.ReplicaServiceStub(channel)
            request = replica_pb2.DrainRequest(timeout_s=timeout_s, replica_id=replica_id)
            await stub.Drain(request, timeout=timeout_s + 2.0)
        return True
    except grpc.RpcError as e:
        log.warning("drain_failed", replica=replica_id, error=from_rpc(e, f"replica at {address}").message)
        return False


async def set_adapters(
    address: str, replica_id: ReplicaId, credentials: Credentials, adapters: Sequence[Adapter]
) -> None:
    """Tell the replica which adapters to have. One that cannot be told now is told again: its status shows the need."""
    request = replica_pb2.SetAdaptersRequest(replica_id=replica_id, adapters=[adapter_to_pb(a) for a in adapters])
    try:
        async with open_channel(address, credentials, Role.NODE) as channel:
            await replica_pb2_grpc.ReplicaServiceStub(channel).SetAdapters(request, timeout=_TELL_S)
    except grpc.RpcError as e:
        log.warning("adapters_untold", replica=replica_id, error=from_rpc(e, f"replica at {address}").message)
