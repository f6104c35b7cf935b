"""The head's gRPC services: they carry values in and decisions out, and decide nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import structlog

from headrace import log_reader
from headrace.core.route_delta import NOTHING, diff
from headrace.core.types import ClusterStatus, ReplicaId, RouteTable
from headrace.errors import Fenced, InvalidRequest, NotFound, Unavailable
from headrace.head import node_session as ns
from headrace.head.cluster import Cluster
from headrace.head.commands import Commands
from headrace.head.ledger import Ledger
from headrace.head.overview import Overview
from headrace.head.part_logs import PartLogs
from headrace.head.questions import Questions
from headrace.head.topic import Topic
from headrace.rpc import convert, convert_head, convert_story, wire
from headrace.rpc.channel import rpc_errors
from headrace.rpc.guard import caller
from headrace.rpc.v1 import head_pb2, head_pb2_grpc, node_pb2, node_pb2_grpc

log = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]
STATUS_INTERVAL_S = 0.2
_MAX_CHUNK_BYTES = 64 * 1024  # of a log
LOAD_INTERVAL_S = 1.0
REPORT_S = 2.0  # at most this long between a node's reports; what changes is reported at once, but for the load


class NodeService(node_pb2_grpc.NodeServiceServicer):
    def __init__(self, ledger: Ledger, cluster: Cluster, lease_s: float) -> None:
        self._ledger, self._cluster, self._lease_s = ledger, cluster, lease_s

    @rpc_errors
    async def Session(  # pyright: ignore[reportIncompatibleMethodOverride]  (gRPC's reader and writer form)
        self, requests: AsyncIterator[node_pb2.NodeMessage], context: Context
    ) -> None:
        """See node.proto. Two tasks: what the node says, and what is said to it; the session ends with either."""
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("message") != "hello":
            raise InvalidRequest("A node session begins with a hello.")
        info = convert.node_info_from_pb(first.hello)
        caller(context).check_node(info.node_id)
        held = [g for i in self._ledger.state.intents.on(info.node_id) for g in i.gpu_indices]
        try:
            session = self._cluster.join(info, held)
        except Fenced as e:
            await context.write(self._message(ns.Fence(e.message)))
            return
        try:
            welcome = node_pb2.Welcome(lease_s=self._lease_s, report_interval_s=min(REPORT_S, self._lease_s / 5))
            await context.write(node_pb2.HeadMessage(epoch=self._ledger.epoch, welcome=welcome))
            await self._converse(session, requests, context)
        finally:
            self._cluster.leave(session)

    async def _converse(
        self, session: ns.NodeSession, requests: AsyncIterator[node_pb2.NodeMessage], context: Context
    ) -> None:
        async def listen() -> None:
            try:
                async for message in requests:
                    self._hear(session, message)
            finally:
                session.end()

        try:
            async with asyncio.TaskGroup() as tasks:
                listening = tasks.create_task(listen())
                while (message := await session.next()) is not None:
                    await context.write(self._message(message))
                listening.cancel()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    def _hear(self, session: ns.NodeSession, message: node_pb2.NodeMessage) -> None:
        match message.WhichOneof("message"):
            case "report":
                if message.report.epoch > self._ledger.epoch:
                    log.error(
                        "node_obeys_another_head",
                        node=session.info.node_id,
                        its_epoch=message.report.epoch,
                        our_epoch=self._ledger.epoch,
                    )
                news, gone = convert.node_report_from_pb(message.report)
                self._cluster.report(session, news, gone)
            case "log":
                data = wire.few(message.log.data, "bytes of a log at once", _MAX_CHUNK_BYTES)
                chunk = ns.LogChunk(data, message.log.end, wire.sentence(message.log.error))
                session.log_chunk(message.log.request, chunk)
            case other:
                raise InvalidRequest(f"Unexpected message in a node session: {other}.")

    def _message(self, message: ns.Outgoing) -> node_pb2.HeadMessage:
        made = node_pb2.HeadMessage(epoch=self._ledger.epoch)
        match message:
            case ns.Desired(replicas):
                made.desired.SetInParent()
                made.desired.replicas.extend(convert.replica_spec_to_pb(r) for r in replicas)
            case ns.ReadLog(request, replica_id, tail_lines, follow):
                made.read_log.CopyFrom(
                    node_pb2.ReadLog(request=request, replica_id=replica_id, tail_lines=tail_lines, follow=follow)
                )
            case ns.StopLog(request):
                made.stop_log.request = request
            case ns.Fence(reason):
                made.fenced.reason = reason
        return made


class RouteService(head_pb2_grpc.RouteServiceServicer):
    def __init__(self, overview: Overview, commands: Commands, questions: Questions) -> None:
        self._overview, self._commands, self._questions = overview, commands, questions
        self._deltas: dict[tuple[int, int], head_pb2.RouteDelta] = {}  # to the newest table, by the versions' numbers

    @rpc_errors
    async def Watch(self, request: head_pb2.WatchRoutesRequest, context: Context) -> AsyncIterator[head_pb2.RouteDelta]:
        """All of the table, then what changed since the last delta that this watcher took."""
        sent, proxy_id = NOTHING, wire.name(request.proxy_id, "proxy id")
        with self._overview.routes_changed.listen() as news, self._overview.watched_by(proxy_id, request.pid):
            while True:
                await news.wait()
                news.clear()
                table = self._overview.table
                if table is not None and table.version > sent.version:
                    before, sent = sent, table
                    yield self._delta(before, table)

    def _delta(self, old: RouteTable, new: RouteTable) -> head_pb2.RouteDelta:
        """Made once for all watchers that have got equally far."""
        key = old.version, new.version
        if key not in self._deltas:
            self._deltas = {k: d for k, d in self._deltas.items() if k[1] == new.version}
            self._deltas[key] = convert_head.route_delta_to_pb(diff(old, new))
        return self._deltas[key]

    @rpc_errors
    async def Ensure(self, request: head_pb2.EnsureRequest, context: Context) -> head_pb2.EnsureResponse:
        await self._commands.ensure(wire.word(request.model, "model"))
        return head_pb2.EnsureResponse()

    @rpc_errors
    async def Questions(self, request: head_pb2.QuestionsRequest, context: Context) -> AsyncIterator[head_pb2.Question]:
        async with aclosing(self._questions.listen()) as questions:
            async for number, request_id in questions:
                yield head_pb2.Question(id=number, request_id=request_id)

    @rpc_errors
    async def Answer(self, request: head_pb2.AnswerRequest, context: Context) -> head_pb2.AnswerResponse:
        story = convert_story.story_from_pb(request.story) if request.HasField("story") else None
        self._questions.answer(request.id, story)
        return head_pb2.AnswerResponse()


class AdminService(head_pb2_grpc.AdminServiceServicer):
    def __init__(
        self,
        ledger: Ledger,
        cluster: Cluster,
        overview: Overview,
        commands: Commands,
        changed: Topic,
        questions: Questions,
        parts: PartLogs,
    ) -> None:
        self._ledger, self._cluster, self._overview = ledger, cluster, overview
        self._parts = parts
        self._commands, self._changed, self._questions = commands, changed, questions

    @rpc_errors
    async def Deploy(self, request: head_pb2.DeployRequest, context: Context) -> head_pb2.Deployment:
        status = await self._commands.deploy(convert_head.deploy_request_from_pb(request))
        return convert_head.deployment_status_to_pb(status)

    @rpc_errors
    async def Delete(self, request: head_pb2.DeleteRequest, context: Context) -> head_pb2.DeleteResponse:
        await self._commands.delete(wire.word(request.name, "name"))
        return head_pb2.DeleteResponse()

    @rpc_errors
    async def Scale(self, request: head_pb2.ScaleRequest, context: Context) -> head_pb2.Deployment:
        status = await self._commands.scale(wire.word(request.name, "name"), request.min_replicas, request.max_replicas)
        return convert_head.deployment_status_to_pb(status)

    @rpc_errors
    async def Rollback(self, request: head_pb2.RollbackRequest, context: Context) -> head_pb2.Deployment:
        return convert_head.deployment_status_to_pb(
            await self._commands.rollback(wire.word(request.name, "name"), request.revision)
        )

    @rpc_errors
    async def ListRevisions(
        self, request: head_pb2.ListRevisionsRequest, context: Context
    ) -> head_pb2.ListRevisionsResponse:
        found = self._commands.revisions(wire.word(request.name, "name"))
        return head_pb2.ListRevisionsResponse(revisions=[convert_head.revision_to_pb(r) for r in found])

    @rpc_errors
    async def AddAdapter(self, request: head_pb2.AddAdapterRequest, context: Context) -> head_pb2.Deployment:
        status = await self._commands.add_adapter(
            wire.word(request.deployment, "deployment"), convert.adapter_from_pb(request.adapter)
        )
        return convert_head.deployment_status_to_pb(status)

    @rpc_errors
    async def RemoveAdapter(self, request: head_pb2.RemoveAdapterRequest, context: Context) -> head_pb2.Deployment:
        status = await self._commands.remove_adapter(
            wire.word(request.deployment, "deployment"), wire.word(request.name, "name")
        )
        return convert_head.deployment_status_to_pb(status)

    @rpc_errors
    async def Status(self, request: head_pb2.StatusRequest, context: Context) -> head_pb2.ClusterStatus:
        return convert_head.cluster_status_to_pb(self._overview.status())

    @rpc_errors
    async def WatchStatus(
        self, request: head_pb2.StatusRequest, context: Context
    ) -> AsyncIterator[head_pb2.ClusterStatus]:
        shown: ClusterStatus | None = None
        news = asyncio.Event()
        with self._changed.listen(news), self._overview.proxies_changed.listen(news):
            while True:
                # What only the load changes is told to nobody: it is looked for.
                with suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), LOAD_INTERVAL_S)
                news.clear()
                status = self._overview.status()
                if shown is None or _still(status) != _still(shown):
                    shown = status
                    yield convert_head.cluster_status_to_pb(status)
                    await asyncio.sleep(STATUS_INTERVAL_S)

    @rpc_errors
    async def ListModels(self, request: head_pb2.ListModelsRequest, context: Context) -> head_pb2.ListModelsResponse:
        entries = self._overview.catalog().values()
        return head_pb2.ListModelsResponse(models=[convert_head.catalog_entry_to_pb(e) for e in entries])

    @rpc_errors
    async def AddModel(self, request: head_pb2.CatalogEntry, context: Context) -> head_pb2.CatalogEntry:
        added = await self._commands.add_model(convert_head.catalog_entry_from_pb(request))
        return convert_head.catalog_entry_to_pb(added)

    @rpc_errors
    async def RemoveModel(self, request: head_pb2.RemoveModelRequest, context: Context) -> head_pb2.RemoveModelResponse:
        await self._commands.remove_model(wire.word(request.name, "name"))
        return head_pb2.RemoveModelResponse()

    @rpc_errors
    async def ReadLogs(self, request: head_pb2.ReadLogsRequest, context: Context) -> AsyncIterator[head_pb2.LogData]:
        asked = wire.word(request.replica_id, "replica_id")
        if (part := self._part(asked)) is not None:
            try:
                async with aclosing(log_reader.read(part, request.tail_lines, request.follow)) as pieces:
                    async for data in pieces:
                        yield head_pb2.LogData(data=data)
            except OSError as e:
                raise Unavailable(f"Cannot read {part}: {e.strerror}.") from e
            return
        replica_id, session = self._find(asked)
        async with aclosing(session.read_log(replica_id, request.tail_lines, request.follow)) as pieces:
            async for data in pieces:
                yield head_pb2.LogData(data=data)

    @rpc_errors
    async def Explain(self, request: head_pb2.ExplainRequest, context: Context) -> head_pb2.ExplainResponse:
        return convert_story.explanation_to_pb(await self._questions.ask(wire.word(request.request_id, "request_id")))

    def _part(self, asked: str) -> Path | None:
        if asked in self._ledger.state.intents:
            return None
        return self._parts.find(asked, [p.proxy_id for p in self._overview.status().proxies])

    def _find(self, asked: str) -> tuple[ReplicaId, ns.NodeSession]:
        """The one replica whose id is `asked` or begins so, and the session of its node."""
        intents = self._ledger.state.intents
        exact = [i for i in intents.values() if i.replica_id == asked]
        found = exact or [i for i in intents.values() if asked and i.replica_id.startswith(asked)]
        if len(found) > 1:
            several = ", ".join(sorted(i.replica_id for i in found)[:20])
            raise InvalidRequest(f"Several replicas begin with {asked[:100]!r}: {several}.", param="replica_id")
        if not found:
            parts = self._parts.names(p.proxy_id for p in self._overview.status().proxies)
            there = ", ".join([*sorted(intents)[:50], *parts])
            raise NotFound(f"No replica or part {asked[:100]!r}; there are: {there}.", param="replica_id")
        session = self._cluster.session(found[0].node_id)
        if session is None:
            raise Unavailable(f"Node {found[0].node_id} is not connected; the log of {found[0].replica_id} is there.")
        return found[0].replica_id, session


def _still(status: ClusterStatus) -> ClusterStatus:
    """Without what moves all the time and is no news."""
    return replace(
        status,
        nodes=tuple(replace(n, silent_s=0.0) for n in status.nodes),
        proxies=tuple(replace(p, requests=0) for p in status.proxies),
    )
