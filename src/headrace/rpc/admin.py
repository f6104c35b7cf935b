"""The head's AdminService for callers: our own values in and out, HeadraceErrors for whatever goes wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from types import TracebackType

import grpc

from headrace.core import types as t
from headrace.core.state import Revision
from headrace.core.story import Explanation
from headrace.rpc import convert, convert_head, convert_story
from headrace.rpc.channel import from_rpc, open_channel
from headrace.rpc.credentials import Credentials
from headrace.rpc.roles import Role
from headrace.rpc.v1 import head_pb2, head_pb2_grpc

_CALL_S = 20.0


class AdminClient:
    """One connection to a head. An async context manager; calls may overlap."""

    def __init__(self, address: str, credentials: Credentials) -> None:
        self.address = address
        self._expected = credentials.expected(Role.HEAD)
        self._channel = open_channel(address, credentials, Role.HEAD)
        self._stub = head_pb2_grpc.AdminServiceStub(self._channel)

    async def __aenter__(self) -> AdminClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as e:
            raise from_rpc(e, f"the head at {self.address}", self._expected) from e

    async def deploy(self, request: t.DeployRequest) -> t.DeploymentStatus:
        with self._errors():
            answer = await self._stub.Deploy(convert_head.deploy_request_to_pb(request), timeout=_CALL_S)
        return convert_head.deployment_status_from_pb(answer)

    async def delete(self, name: str) -> None:
        with self._errors():
            await self._stub.Delete(head_pb2.DeleteRequest(name=name), timeout=_CALL_S)

    async def scale(self, name: str, min_replicas: int, max_replicas: int) -> t.DeploymentStatus:
        request = head_pb2.ScaleRequest(name=name, min_replicas=min_replicas, max_replicas=max_replicas)
        with self._errors():
            answer = await self._stub.Scale(request, timeout=_CALL_S)
        return convert_head.deployment_status_from_pb(answer)

    async def rollback(self, name: str, revision: int = 0) -> t.DeploymentStatus:
        """Back to `revision`; 0: to the newest that differs from the current one."""
        with self._errors():
            answer = await self._stub.Rollback(head_pb2.RollbackRequest(name=name, revision=revision), timeout=_CALL_S)
        return convert_head.deployment_status_from_pb(answer)

    async def revisions(self, name: str) -> list[Revision]:
        with self._errors():
            answer = await self._stub.ListRevisions(head_pb2.ListRevisionsRequest(name=name), timeout=_CALL_S)
        return [convert_head.revision_from_pb(m, name) for m in answer.revisions]

    async def add_adapter(self, deployment: str, adapter: t.Adapter) -> t.DeploymentStatus:
        request = head_pb2.AddAdapterRequest(deployment=deployment, adapter=convert.adapter_to_pb(adapter))
        with self._errors():
            answer = await self._stub.AddAdapter(request, timeout=_CALL_S)
        return convert_head.deployment_status_from_pb(answer)

    async def remove_adapter(self, deployment: str, name: str) -> t.DeploymentStatus:
        request = head_pb2.RemoveAdapterRequest(deployment=deployment, name=name)
        with self._errors():
            answer = await self._stub.RemoveAdapter(request, timeout=_CALL_S)
        return convert_head.deployment_status_from_pb(answer)

    async def status(self) -> t.ClusterStatus:
        with self._errors():
            answer = await self._stub.Status(head_pb2.StatusRequest(), timeout=_CALL_S)
        return convert_head.cluster_status_from_pb(answer)

    async def watch_status(self) -> AsyncIterator[t.ClusterStatus]:
        """The status now and after every change, without end."""
        with self._errors():
            async for answer in self._stub.WatchStatus(head_pb2.StatusRequest()):
                yield convert_head.cluster_status_from_pb(answer)

    async def models(self) -> list[t.CatalogEntry]:
        with self._errors():
            answer = await self._stub.ListModels(head_pb2.ListModelsRequest(), timeout=_CALL_S)
        return [convert_head.catalog_entry_from_pb(m) for m in answer.models]

    async def add_model(self, entry: t.CatalogEntry) -> t.CatalogEntry:
        with self._errors():
            answer = await self._stub.AddModel(convert_head.catalog_entry_to_pb(entry), timeout=_CALL_S)
        return convert_head.catalog_entry_from_pb(answer)

    async def remove_model(self, name: str) -> None:
        with self._errors():
            await self._stub.RemoveModel(head_pb2.RemoveModelRequest(name=name), timeout=_CALL_S)

    async def explain(self, request_id: str) -> Explanation:
        """What the proxies know of a request."""
        with self._errors():
            answer = await self._stub.Explain(head_pb2.ExplainRequest(request_id=request_id), timeout=_CALL_S)
        return convert_story.explanation_from_pb(answer)

    async def read_logs(self, replica_id: str, tail_lines: int, follow: bool) -> AsyncIterator[bytes]:
        """The end of the log of a replica or another part, piece by piece; with `follow`, then what is added to it."""
        request = head_pb2.ReadLogsRequest(replica_id=replica_id, tail_lines=tail_lines, follow=follow)
        with self._errors():
            async for answer in self._stub.ReadLogs(request):
                yield answer.data
