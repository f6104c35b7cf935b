"""The command line as a person runs it: child processes, their output, and a double of the head's administration."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from authority_fixtures import credentials, trusted

from headrace.core import types as t
from headrace.core.phase import Phase
from headrace.core.state import Revision
from headrace.core.story import Explanation, Story
from headrace.errors import NotFound
from headrace.process import child_env
from headrace.rpc import convert, convert_head, convert_story
from headrace.rpc.channel import bind, new_server, rpc_errors
from headrace.rpc.roles import Role
from headrace.rpc.v1 import head_pb2, head_pb2_grpc


@dataclass(frozen=True, slots=True)
class Result:
    code: int
    out: str
    err: str


async def run_cli(
    *args: str, stdin: str | bytes = "", env: dict[str, str] | None = None, cwd: Path | None = None
) -> Result:
    """Run one command to its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "headrace", *args,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=child_env(env), cwd=cwd,
    )  # fmt: skip
    try:
        out, err = await asyncio.wait_for(process.communicate(stdin.encode() if isinstance(stdin, str) else stdin), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Result(process.returncode, out.decode(), err.decode())


def deployment(r: t.DeployRequest, revision: int) -> t.Deployment:
    least = 1 if r.min_replicas is None else r.min_replicas
    most = max(least, 1 if r.max_replicas is None else r.max_replicas)
    source = r.model if "/" in r.model else f"builtin:{r.model}"
    resources = t.Resources(r.cpus or 0, r.memory_bytes or 0, r.gpus or 0, r.gpu_memory_bytes or 0)
    spec = t.ModelSpec(source, engine=r.engine or "auto", engine_args_json=r.engine_args_json or "{}")
    name = r.name or Path(r.model).name
    return t.Deployment(name, revision, spec, resources, least, most, least, 0, r.adapters or ())


class FakeHead(head_pb2_grpc.AdminServiceServicer):
    """Keeps deployments; a watch plays `script`: phases that every replica goes through, one per answer."""

    def __init__(self) -> None:
        self.deployments: dict[str, t.Deployment] = {}
        self.requests: list[t.DeployRequest] = []
        self.script: Sequence[t.ReplicaStatus] = [self.in_phase(Phase.READY)]
        self.catalog = {"demo": t.CatalogEntry("demo", t.ModelSpec("builtin:demo"), t.Resources(), "A small model.")}
        self.log = b"one\ntwo\n"
        self.refuses = ""  # why replicas load no adapter
        self.watches = 0
        self.watch_ended = asyncio.Event()

    @staticmethod
    def in_phase(phase: Phase, reason: str = "", activity: str = "", progress: float = -1.0) -> t.ReplicaStatus:
        return t.ReplicaStatus(t.ReplicaId(""), "", 0, phase, reason, activity, progress)

    def status(self, like: t.ReplicaStatus) -> t.ClusterStatus:
        state = t.RouteState.READY if like.phase is Phase.READY else t.RouteState.STARTING
        replicas = [
            t.PlacedReplica(
                t.NodeId("1"),
                replace(
                    like,
                    replica_id=t.ReplicaId(f"{d.name}-1-{i:06}"),
                    deployment=d.name,
                    revision=d.revision,
                    adapters=tuple(t.AdapterStatus(a, not self.refuses, self.refuses) for a in d.adapters),
                ),
            )
            for d in self.deployments.values()
            for i in range(d.replicas)
        ]
        ds = tuple(t.DeploymentStatus(d, d.replicas, state) for d in self.deployments.values())
        info = t.NodeInfo(t.NodeId("1"), 1, "host", "0.1.0", t.Resources(2, 2**32), (), ("simulated",))
        nodes = (t.NodeStatus(info, True, 0.1, t.Resources(1, 2**31)),)
        return t.ClusterStatus(1, "0.1.0", "127.0.0.1:1", ds, tuple(replicas), nodes, ())

    def _made(self, d: t.Deployment) -> head_pb2.Deployment:
        self.deployments[d.name] = d
        return convert_head.deployment_status_to_pb(t.DeploymentStatus(d, 0, t.RouteState.STARTING))

    @rpc_errors
    async def Deploy(self, request: head_pb2.DeployRequest, context: Any) -> head_pb2.Deployment:
        r = convert_head.deploy_request_from_pb(request)
        self.requests.append(r)
        if "/" not in r.model and r.model not in self.catalog:
            raise NotFound(f"There is no model {r.model!r}. Those that exist: demo.")
        return self._made(deployment(r, len(self.requests)))

    @rpc_errors
    async def Delete(self, request: head_pb2.DeleteRequest, context: Any) -> head_pb2.DeleteResponse:
        if self.deployments.pop(request.name, None) is None:
            raise NotFound(f"{request.name!r} is not deployed.")
        return head_pb2.DeleteResponse()

    @rpc_errors
    async def AddAdapter(self, request: head_pb2.AddAdapterRequest, context: Any) -> head_pb2.Deployment:
        d = self.deployments[request.deployment]
        return self._made(replace(d, adapters=(*d.adapters, convert.adapter_from_pb(request.adapter))))

    @rpc_errors
    async def RemoveAdapter(self, request: head_pb2.RemoveAdapterRequest, context: Any) -> head_pb2.Deployment:
        d = self.deployments[request.deployment]
        return self._made(replace(d, adapters=tuple(a for a in d.adapters if a.name != request.name)))

    @rpc_errors
    async def Scale(self, request: head_pb2.ScaleRequest, context: Any) -> head_pb2.Deployment:
        low, high = request.min_replicas, request.max_replicas
        d = self.deployments[request.name]
        return self._made(replace(d, min_replicas=low, max_replicas=high, replicas=low))

    @rpc_errors
    async def Rollback(self, request: head_pb2.RollbackRequest, context: Any) -> head_pb2.Deployment:
        return self._made(self.deployments[request.name])

    @rpc_errors
    async def ListRevisions(
        self, request: head_pb2.ListRevisionsRequest, context: Any
    ) -> head_pb2.ListRevisionsResponse:
        d = self.deployments[request.name]
        one = Revision(d.name, d.revision, d.model, d.resources)
        return head_pb2.ListRevisionsResponse(revisions=[convert_head.revision_to_pb(one)])

    @rpc_errors
    async def Explain(self, request: head_pb2.ExplainRequest, context: Any) -> head_pb2.ExplainResponse:
        story = Story(request.request_id, "proxy-1", "demo", 1e9, end="stop", ended_s=1.0)
        return convert_story.explanation_to_pb(Explanation(1, 1, (story,)))

    @rpc_errors
    async def Status(self, request: head_pb2.StatusRequest, context: Any) -> head_pb2.ClusterStatus:
        return convert_head.cluster_status_to_pb(self.status(self.script[-1]))

    @rpc_errors
    async def WatchStatus(self, request: head_pb2.StatusRequest, context: Any) -> AsyncIterator[head_pb2.ClusterStatus]:
        self.watches += 1
        try:
            for like in self.script:
                yield convert_head.cluster_status_to_pb(self.status(like))
            await asyncio.Event().wait()
        finally:
            self.watch_ended.set()

    @rpc_errors
    async def ListModels(self, request: head_pb2.ListModelsRequest, context: Any) -> head_pb2.ListModelsResponse:
        return head_pb2.ListModelsResponse(models=[convert_head.catalog_entry_to_pb(e) for e in self.catalog.values()])

    @rpc_errors
    async def AddModel(self, request: head_pb2.CatalogEntry, context: Any) -> head_pb2.CatalogEntry:
        entry = convert_head.catalog_entry_from_pb(request)
        self.catalog[entry.name] = entry
        return request

    @rpc_errors
    async def RemoveModel(self, request: head_pb2.RemoveModelRequest, context: Any) -> head_pb2.RemoveModelResponse:
        if self.catalog.pop(request.name, None) is None:
            raise NotFound(f"There is no model {request.name!r}.")
        return head_pb2.RemoveModelResponse()

    @rpc_errors
    async def ReadLogs(self, request: head_pb2.ReadLogsRequest, context: Any) -> AsyncIterator[head_pb2.LogData]:
        if not any(request.replica_id.startswith(name) for name in self.deployments):
            raise NotFound(f"There is no replica {request.replica_id!r}.")
        for line in self.log.splitlines(keepends=True)[-request.tail_lines :]:
            yield head_pb2.LogData(data=line)


@asynccontextmanager
async def fake_head(state_dir: Path) -> AsyncIterator[FakeHead]:
    """A FakeHead that listens, and whose address stands in `state_dir`."""
    server, head = new_server(), FakeHead()
    head_pb2_grpc.add_AdminServiceServicer_to_server(head, server)
    port = bind(server, "127.0.0.1", 0, credentials(Role.HEAD), "--grpc_port")
    trusted(state_dir)
    await server.start()
    (state_dir / "head").mkdir(parents=True, exist_ok=True)
    where = f'{{"http": "127.0.0.1:1", "node": "127.0.0.1:1", "grpc": "127.0.0.1:{port}", "pid": {os.getpid()}}}'
    (state_dir / "head/endpoint.json").write_text(where)
    try:
        yield head
    finally:
        await server.stop(0)
