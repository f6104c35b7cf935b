"""Many nodes and proxies in one process, against a real head: for control_scale.py.

A node is the scheduler's own link to the head, which says what replicas would say that start, die and are started
again. A proxy is a watch of the routes. Each has a connection of its own, as it would from a machine of its own.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc

from headrace.core.phase import Phase
from headrace.core.route_delta import NOTHING, RouteDelta, apply, follows
from headrace.core.types import ModelInfo, NodeId, NodeInfo, ReplicaId, ReplicaSpec, ReplicaStatus, Resources
from headrace.node.epoch import EpochFile
from headrace.node.link import HeadLink
from headrace.rpc import convert_head
from headrace.rpc.channel import open_channel
from headrace.rpc.finding import from_state
from headrace.rpc.roles import Role
from headrace.rpc.v1 import head_pb2
from headrace.rpc.v1.head_pb2_grpc import RouteServiceStub
from headrace.settings import TlsSettings

START_S = (0.05, 0.2, 0.5, 1.5)  # a replica is LOADING after a time between the first two, READY after the last two
MODEL = ModelInfo("simulated", "1", 4096, 32000, frozenset({"seed", "stop", "top_k"}))


class Node:
    """A scheduler whose replicas are only said to be."""

    def __init__(self, address: str, number: int, cpus: float, folder: Path, rng: random.Random) -> None:
        self.address, self.rng = address, rng
        self.info = NodeInfo(
            NodeId(f"node-{number:04}"), 1, f"host-{number}", "0", Resources(cpus, 2**38), (), ("simulated",)
        )
        self.epoch = EpochFile(folder / f"{number}.epoch")
        self.replicas: dict[ReplicaId, ReplicaStatus] = {}
        self.credentials = from_state(folder, Role.NODE, self.info.node_id, TlsSettings())
        self.number = number
        self._ports = 0
        self._link: HeadLink | None = None
        self._task: asyncio.Task[str] | None = None

    def join(self) -> None:
        """Begin, or begin again after `cut`: what runs has gone on."""
        self._link = HeadLink(
            self.address, self.credentials, self.info, self.epoch,
            statuses=lambda: list(self.replicas.values()), desired=self._desired, log_of=lambda _: None,
        )  # fmt: skip
        self._task = asyncio.create_task(self._link.run())

    async def cut(self) -> None:
        """The connection breaks; what runs goes on."""
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._link = self._task = None

    def die(self, replica_id: ReplicaId) -> None:
        """A replica's process ends, and is started again."""
        self._set(replica_id, phase=Phase.PENDING, reason="killed by signal 9", address="", pid=0, model=None)
        self._start(replica_id, pause_s=0.5)

    def ready(self) -> list[ReplicaId]:
        return [k for k, s in self.replicas.items() if s.phase is Phase.READY]

    def _desired(self, specs: list[ReplicaSpec] | Any) -> None:
        told = {s.replica_id: s for s in specs}
        self.replicas = {k: s for k, s in self.replicas.items() if k in told}
        for k, spec in told.items():
            if k not in self.replicas:
                self.replicas[k] = ReplicaStatus(k, spec.deployment, spec.revision, Phase.PENDING)
                self._start(k)
        self._changed()

    def _start(self, replica_id: ReplicaId, pause_s: float = 0.0) -> None:
        def later(delay_s: float, **news: Any) -> None:
            asyncio.get_running_loop().call_later(delay_s, lambda: self._set(replica_id, **news))

        self._ports += 1
        address = f"10.{self.number // 250}.{self.number % 250}.1:{20000 + self._ports}"
        first, second, third, fourth = START_S
        later(pause_s, phase=Phase.STARTING, reason="", pid=self._ports)
        later(pause_s + self.rng.uniform(first, second), phase=Phase.LOADING, activity="loading", progress=0.5)
        later(
            pause_s + self.rng.uniform(third, fourth),
            phase=Phase.READY, activity="", progress=-1.0, address=address, model=MODEL, started_at=time.time(),
        )  # fmt: skip

    def _set(self, replica_id: ReplicaId, **news: Any) -> None:
        if replica_id in self.replicas:
            self.replicas[replica_id] = replace(self.replicas[replica_id], **news)
            self._changed()

    def _changed(self) -> None:
        if self._link:
            self._link.changed()


class Watcher:
    """A proxy, as far as the head sees it. `on_gone`: called with each replica that a route names no more."""

    def __init__(self, address: str, number: int, on_gone: Callable[[ReplicaId], None], folder: Path) -> None:
        self.address, self.number, self._on_gone = address, number, on_gone
        self.credentials = from_state(folder, Role.PROXY, str(number), TlsSettings())
        self.table = NOTHING
        self.received_bytes = self.messages = self.gaps = 0

    def endpoints(self) -> int:
        return sum(not e.lost for r in self.table.routes.values() for e in r.endpoints)

    async def run(self) -> None:
        """Watch until cancelled, over any number of heads."""
        async with open_channel(self.address, self.credentials, Role.HEAD) as channel:
            request = head_pb2.WatchRoutesRequest(proxy_id=f"proxy-{self.number}", pid=self.number)
            while True:
                try:
                    async for message in RouteServiceStub(channel).Watch(request):
                        self.messages += 1
                        self.received_bytes += message.ByteSize()
                        if not self._take(convert_head.route_delta_from_pb(message)):
                            self.gaps += 1
                            break
                except grpc.RpcError:
                    await asyncio.sleep(0.2)

    def _take(self, delta: RouteDelta) -> bool:
        if not follows(delta, self.table):
            return False
        self.table = apply(delta, self.table)
        if delta.base:
            for change in delta.changed:
                for replica_id in change.gone:
                    self._on_gone(replica_id)
        return True
