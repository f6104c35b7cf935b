"""What the tests of the head share: a scheduler that only says what it is told to say, heads in and out of process."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import grpc
from authority_fixtures import credentials, trusted

from headrace.core.phase import Phase
from headrace.core.route_delta import NOTHING, RouteDelta, apply, follows
from headrace.core.types import (
    Adapter,
    AdapterStatus,
    ClusterStatus,
    DeployRequest,
    Gpu,
    ModelInfo,
    NodeId,
    NodeInfo,
    ReplicaId,
    ReplicaSpec,
    ReplicaStatus,
    Resources,
    RouteTable,
)
from headrace.head.controller import Endpoint
from headrace.process import Child, child_env
from headrace.rpc import convert, convert_head
from headrace.rpc.channel import from_rpc, open_channel
from headrace.rpc.roles import Role
from headrace.rpc.v1 import head_pb2, head_pb2_grpc, node_pb2, node_pb2_grpc
from headrace.settings import HeadSettings

T = TypeVar("T")
STAND_IN = (sys.executable, str(Path(__file__).with_name("stand_in_proxy.py")))
PATIENCE_S = 30.0


def head_settings(state_dir: Path, **more: Any) -> HeadSettings:
    defaults: dict[str, Any] = {
        "http_port": 0, "node_port": 0, "grpc_port": 0, "num_proxies": 0, "lease_s": 5.0,
        "state_dir": trusted(state_dir),
    }  # fmt: skip
    return HeadSettings(**(defaults | more))


async def until(what: Callable[[], T | None], why: str = "") -> T:
    """Wait until `what` gives something true."""
    end = time.monotonic() + PATIENCE_S
    while not (found := what()):
        assert time.monotonic() < end, why or "waited in vain"
        await asyncio.sleep(0.01)
    return found


class SchedulerDouble:
    """A scheduler without processes: every replica it is told to run takes the phase that `becomes` says."""

    def __init__(
        self,
        address: str,
        node_id: str = "1",
        incarnation: int = 1,
        cpus: float = 8.0,
        gpus: Sequence[Gpu] = (),
    ) -> None:
        self.info = NodeInfo(
            NodeId(node_id), incarnation, f"host-{node_id}", "0", Resources(cpus, 2**36, len(gpus)), tuple(gpus),
            ("openvino", "simulated"),
        )  # fmt: skip
        self.address = address
        self.shows = credentials(Role.NODE, node_id)
        self.becomes: Callable[[ReplicaSpec], Phase] = lambda spec: Phase.READY
        self.refuses: Callable[[Adapter], str] = lambda adapter: ""  # why an adapter is not loaded
        self.replicas: dict[ReplicaId, ReplicaStatus] = {}
        self.desired: tuple[ReplicaSpec, ...] | None = None
        self.epoch = 0
        self.welcome: node_pb2.Welcome | None = None
        self.fenced: str | None = None
        self.log_requests: list[node_pb2.ReadLog] = []
        self.stopped_logs: list[int] = []
        self.mute = False
        self._call: Any = None
        self._writing = asyncio.Lock()

    async def __aenter__(self) -> SchedulerDouble:
        self._channel = open_channel(self.address, self.shows, Role.HEAD)
        self._call = node_pb2_grpc.NodeServiceStub(self._channel).Session()
        await self._write(node_pb2.NodeMessage(hello=convert.node_info_to_pb(self.info)))
        await self.report()
        self._tasks = [asyncio.ensure_future(self._listen()), asyncio.ensure_future(self._beat())]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    async def leave(self) -> None:
        """The connection breaks; what runs goes on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._call.cancel()
        await self._channel.close()

    async def _write(self, message: node_pb2.NodeMessage) -> None:
        """One at a time: a call of gRPC's ends of two writes at once."""
        async with self._writing:
            await self._call.write(message)

    async def report(self) -> None:
        if not self.mute:
            statuses = [convert.replica_status_to_pb(s) for s in self.replicas.values()]
            report = node_pb2.NodeReport(replicas=statuses, epoch=self.epoch)
            await self._write(node_pb2.NodeMessage(report=report))

    async def report_changes(self, *news: ReplicaStatus, gone: Sequence[ReplicaId] = ()) -> None:
        report = convert.node_report_to_pb(news, gone, self.epoch)
        await self._write(node_pb2.NodeMessage(report=report))

    async def log(self, request: int, data: bytes = b"", end: bool = False, error: str = "") -> None:
        chunk = node_pb2.LogChunk(request=request, data=data, end=end, error=error)
        await self._write(node_pb2.NodeMessage(log=chunk))

    async def move(self, replica_id: str, phase: Phase, reason: str = "") -> None:
        """The replica takes a phase, which is reported."""
        key = ReplicaId(replica_id)
        self.replicas[key] = replace(self.replicas[key], phase=phase, reason=reason)
        await self.report()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            with suppress(grpc.RpcError, asyncio.InvalidStateError):
                await self.report()

    async def _listen(self) -> None:
        with suppress(grpc.RpcError):
            async for message in self._call:
                self.epoch = max(self.epoch, message.epoch)
                match message.WhichOneof("message"):
                    case "welcome":
                        self.welcome = message.welcome
                    case "desired":
                        await self._converge(tuple(map(convert.replica_spec_from_pb, message.desired.replicas)))
                    case "read_log":
                        self.log_requests.append(message.read_log)
                    case "stop_log":
                        self.stopped_logs.append(message.stop_log.request)
                    case "fenced":
                        self.fenced = message.fenced.reason

    async def _converge(self, desired: tuple[ReplicaSpec, ...]) -> None:
        self.desired = desired
        told = {s.replica_id: s for s in desired}
        self.replicas = {k: s for k, s in self.replicas.items() if k in told}
        for k, spec in told.items():
            if k not in self.replicas:
                phase = self.becomes(spec)
                self.replicas[k] = ReplicaStatus(
                    k, spec.deployment, spec.revision, phase, address=f"127.0.0.1:{len(k)}", pid=1,
                    reason="it is broken" if phase is Phase.FAILED else "", gpu_indices=spec.gpu_indices,
                    model=ModelInfo("openvino", "1", 512, 100) if phase is Phase.READY else None,
                )  # fmt: skip
            said = tuple(AdapterStatus(a, not self.refuses(a), self.refuses(a)) for a in spec.adapters)
            self.replicas[k] = replace(self.replicas[k], adapters=said)
        await self.report()


class Admin:
    """The head's gRPC port with our values instead of messages."""

    def __init__(self, address: str) -> None:
        self.channel = open_channel(address, credentials(Role.ADMIN), Role.HEAD)
        self.proxy_channel = open_channel(address, credentials(Role.PROXY), Role.HEAD)
        self.stub: Any = head_pb2_grpc.AdminServiceStub(self.channel)
        self.routes: Any = head_pb2_grpc.RouteServiceStub(self.proxy_channel)

    async def __aenter__(self) -> Admin:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self.proxy_channel.close()

    async def _ask(self, call: Any) -> Any:
        try:
            return await call
        except grpc.RpcError as e:
            raise from_rpc(e, "the head") from None

    async def deploy(self, model: str, **more: Any) -> Any:
        request = convert_head.deploy_request_to_pb(DeployRequest(model, **more))
        return convert_head.deployment_status_from_pb(await self._ask(self.stub.Deploy(request, wait_for_ready=True)))

    async def delete(self, name: str) -> None:
        await self._ask(self.stub.Delete(head_pb2.DeleteRequest(name=name)))

    async def scale(self, name: str, low: int, high: int) -> Any:
        request = head_pb2.ScaleRequest(name=name, min_replicas=low, max_replicas=high)
        return convert_head.deployment_status_from_pb(await self._ask(self.stub.Scale(request)))

    async def add_adapter(self, name: str, adapter: Adapter) -> Any:
        request = head_pb2.AddAdapterRequest(deployment=name, adapter=convert.adapter_to_pb(adapter))
        return convert_head.deployment_status_from_pb(await self._ask(self.stub.AddAdapter(request)))

    async def remove_adapter(self, name: str, adapter: str) -> Any:
        request = head_pb2.RemoveAdapterRequest(deployment=name, name=adapter)
        return convert_head.deployment_status_from_pb(await self._ask(self.stub.RemoveAdapter(request)))

    async def ensure(self, model: str) -> None:
        await self._ask(self.routes.Ensure(head_pb2.EnsureRequest(model=model)))

    async def status(self) -> ClusterStatus:
        message = await self._ask(self.stub.Status(head_pb2.StatusRequest(), wait_for_ready=True))
        return convert_head.cluster_status_from_pb(message)

    async def status_when(self, what: Callable[[ClusterStatus], object]) -> ClusterStatus:
        """The first status for which `what` is true."""
        async with asyncio.timeout(PATIENCE_S):
            async for message in self.stub.WatchStatus(head_pb2.StatusRequest(), wait_for_ready=True):
                status = convert_head.cluster_status_from_pb(message)
                if what(status):
                    return status
        raise AssertionError("the watch ended")

    async def tables(self, proxy_id: str = "p") -> AsyncIterator[RouteTable]:
        table = NOTHING
        async for delta in self.deltas(proxy_id):
            assert follows(delta, table)
            table = apply(delta, table)
            yield table

    async def deltas(self, proxy_id: str = "p") -> AsyncIterator[RouteDelta]:
        request = head_pb2.WatchRoutesRequest(proxy_id=proxy_id, pid=1)
        async for message in self.routes.Watch(request, wait_for_ready=True):
            yield convert_head.route_delta_from_pb(message)

    async def table_when(self, what: Callable[[RouteTable], object]) -> RouteTable:
        """The first route table for which `what` is true."""
        async with asyncio.timeout(PATIENCE_S):
            async for table in self.tables():
                if what(table):
                    return table
        raise AssertionError("the watch ended")


class HeadProcess:
    """`headrace head` as a process of its own."""

    def __init__(self, child: Child, endpoint: Endpoint, output: Path) -> None:
        self.child, self.endpoint, self.output = child, endpoint, output

    async def kill(self) -> None:
        """SIGKILL to the head alone."""
        os.kill(self.child.pid, 9)
        await self.child.wait()


@asynccontextmanager
async def head_process(
    state_dir: Path,
    *flags: str,
    program: Sequence[str] = (sys.executable, "-m", "headrace", "head"),
    log_dir: Path | None = None,
) -> AsyncIterator[HeadProcess]:
    """A head that listens, killed at the end if the test has not done so."""
    path = trusted(state_dir) / "head" / "endpoint.json"
    output = (log_dir or state_dir) / "head.log"
    ports = ["--http_port=0", "--node_port=0", "--grpc_port=0"]
    argv = [*program, f"--state_dir={state_dir}", *ports, *(flags or ["--num_proxies=0"])]
    child = Child.spawn(argv, env=child_env(), output=output)

    def listening() -> Endpoint | None:
        assert child.alive(), output.read_text()
        with suppress(OSError, ValueError):
            endpoint = Endpoint(**json.loads(path.read_text()))
            return endpoint if endpoint.pid == child.pid else None
        return None

    try:
        yield HeadProcess(child, await until(listening), output)
    finally:
        await child.kill_group()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
