"""The head from its start to its orderly end."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import grpc
import structlog

from headrace.core.on_demand import Rule
from headrace.core.origins import unusable
from headrace.core.types import NodeId
from headrace.errors import UserError
from headrace.head.catalog import load_catalog
from headrace.head.clock import steady_clock
from headrace.head.cluster import Cluster
from headrace.head.commands import Commands
from headrace.head.idle import Idle
from headrace.head.joining import CertificateService, Issuer, JoinService, command, new_join_server, new_line
from headrace.head.ledger import Ledger
from headrace.head.overview import Overview
from headrace.head.part_logs import PartLogs
from headrace.head.proxies import PROGRAM, ProxyFleet
from headrace.head.questions import Questions
from headrace.head.reconciler import Reconciler
from headrace.head.services import AdminService, NodeService, RouteService
from headrace.head.store import SqliteStore
from headrace.head.tokens import Tokens
from headrace.head.topic import Topic
from headrace.lock import exclusive
from headrace.process import PARENT_ENDED, told_to_stop, write_atomic
from headrace.rpc.authority import Authority
from headrace.rpc.channel import bind, new_server
from headrace.rpc.credentials import Credentials, Issued
from headrace.rpc.finding import from_state, is_loopback
from headrace.rpc.roles import Role
from headrace.rpc.v1 import head_pb2_grpc, join_pb2_grpc, node_pb2_grpc
from headrace.settings import JOIN_PORT, HeadSettings

log = structlog.get_logger()

_BUSY = (
    "Another headrace head (pid {pid}) runs with this state directory ({where}); stop it or choose another with"
    " --state-dir."
)

_GRACE_S = 0.5


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a head listens, host:port each; the contents of endpoint.json. http: where proxies do, ours or others."""

    http: str
    node: str
    grpc: str
    pid: int
    join: str = ""  # where machines join; "": nowhere


async def run(settings: HeadSettings) -> None:
    """Be the head until told to stop. UserError if that cannot be, in a sentence."""
    async with _one_error(), asyncio.TaskGroup() as tasks:
        told = tasks.create_task(told_to_stop(), name="told_to_stop")
        # Its signal handlers are in place before there is anything to end in order.
        await asyncio.sleep(0)

        async def hurry() -> None:
            """Return when nobody is to wait for what runs: who told us to end is gone, or has told us again."""
            if told.result() != PARENT_ENDED:
                await told_to_stop()
                log.info("head_hurries")

        async with serving(settings, hurry=hurry) as endpoint:
            _show_line(settings, endpoint)
            log.info("head_stops", reason=await told, drain_s=settings.drain_s)


@asynccontextmanager
async def serving(
    settings: HeadSettings,
    proxy_program: Sequence[str] = PROGRAM,
    hurry: Callable[[], Coroutine[Any, Any, None]] | None = None,
) -> AsyncIterator[Endpoint]:
    """A head for the length of the block. When the block is entered everything listens and endpoint.json says where.

    At the end the proxies finish what runs, for `drain_s` or until `hurry()` returns, and are stopped; replicas are the
    schedulers' affair and go on.
    """
    check_exposure(settings)
    files = load_catalog(settings.catalog)
    async with AsyncExitStack() as stack:
        stack.enter_context(exclusive(settings.head_dir, lambda pid: _BUSY.format(pid=pid, where=settings.state_dir)))
        credentials = from_state(settings.state_dir, Role.HEAD, "head", settings.tls)
        authority = Authority.open(settings.state_dir) if isinstance(credentials, Issued) else None
        store = await SqliteStore.open(settings.head_dir / "state.db")
        stack.push_async_callback(store.close)
        state = await store.load()

        changed = Topic()
        clock = steady_clock(not_before=max((i.changed for i in state.intents.values()), default=0.0))
        ledger = Ledger(store, state, changed)
        cluster = Cluster(clock, settings.lease_s, changed)
        cluster.expect(i.node_id for i in state.intents.values())
        rule = Rule(settings.on_demand_rule(is_loopback(settings.http_host)))
        overview = Overview(ledger, cluster, files, clock, settings.lease_s, rule)
        commands = Commands(
            ledger,
            overview,
            forbid_remote_code=settings.forbid_remote_code,
            rule=rule,
            most_on_demand=settings.on_demand_max,
        )
        idle = Idle(ledger, cluster, commands, clock, settings.on_demand_idle_s)
        questions = Questions()
        reconciler = Reconciler(ledger, cluster, overview, clock, changed, settings.drain_s)

        before = _last_ports(settings)
        nodes, others = new_server(), new_server()
        stack.push_async_callback(nodes.stop, 0)
        stack.push_async_callback(others.stop, 0)
        node_pb2_grpc.add_NodeServiceServicer_to_server(NodeService(ledger, cluster, settings.lease_s), nodes)
        node_port = _bind_again(nodes, settings, credentials, "node_port", before)
        head_pb2_grpc.add_RouteServiceServicer_to_server(RouteService(overview, commands, questions), others)
        admin = AdminService(ledger, cluster, overview, commands, changed, questions, PartLogs(settings.state_dir))
        head_pb2_grpc.add_AdminServiceServicer_to_server(admin, others)
        tokens = Tokens(settings.state_dir)
        issuer = None
        if authority:
            issuer = Issuer(authority, tokens, settings.tls.life_s, lambda name: bool(cluster.session(NodeId(name))))
            for server in (nodes, others):
                join_pb2_grpc.add_CertificateServiceServicer_to_server(CertificateService(issuer), server)
        grpc_port = _bind_again(others, settings, credentials, "grpc_port", before)

        join_at = _join_port(settings)
        if authority and issuer and join_at is not None:
            joins, join_at = new_join_server(
                JoinService(issuer, node_port, grpc_port), authority, settings.host, join_at
            )
            stack.push_async_callback(joins.stop, 0)
            await joins.start()

        ours = _at(_reachable(settings.host), grpc_port)
        fleet = ProxyFleet(settings, ours, overview.proxies_changed, proxy_program, ledger.epoch)
        stack.callback(fleet.close)
        await fleet.prepare()
        overview.proxies = fleet
        overview.http_address = _at(settings.http_host, fleet.http_port or settings.http_port)

        async with _one_error(), asyncio.TaskGroup() as tasks:
            loops = [
                tasks.create_task(ledger.run(), name="ledger"),
                tasks.create_task(cluster.run_leases(), name="leases"),
                tasks.create_task(reconciler.run(), name="reconciler"),
                tasks.create_task(overview.run(changed), name="overview"),
                tasks.create_task(idle.run(), name="idle"),
            ]
            await nodes.start()
            await others.start()
            proxies = tasks.create_task(fleet.run(), name="proxies")
            endpoint = Endpoint(
                http=overview.http_address,
                node=_at(settings.host, node_port),
                grpc=_at(settings.host, grpc_port),
                pid=os.getpid(),
                join=_at(settings.host, join_at) if authority and join_at is not None else "",
            )
            path = settings.head_dir / "endpoint.json"
            try:
                write_atomic(path, json.dumps(asdict(endpoint)))
            except OSError as e:
                raise UserError(
                    f"Cannot write {path} ({e.strerror}): free room on its disk, or make it writable."
                ) from e
            log.info("head_ready", epoch=ledger.epoch, **asdict(endpoint))
            try:
                yield endpoint
            finally:
                # Proxies first, while there is still a head to ask: what waits for a model or a replica may yet get it.
                hurrying = tasks.create_task(hurry()) if hurry else None
                await _end(proxies)
                await fleet.stop(settings.drain_s, hurrying)
                if hurrying:
                    hurrying.cancel()
                await asyncio.gather(nodes.stop(_GRACE_S), others.stop(_GRACE_S))
                for loop in loops:
                    loop.cancel()
                path.unlink(missing_ok=True)


@asynccontextmanager
async def _one_error() -> AsyncIterator[None]:
    """An error that comes alone is raised as itself, not as a group."""
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def check_exposure(settings: HeadSettings) -> None:
    """UserError if HTTP would listen beyond this machine, or to every web page, without API keys.

    gRPC never is without certificates.
    """
    if why := unusable(settings.cors_origins, settings.api_keys_file is not None):
        raise UserError(why)
    if settings.allow_insecure:
        return
    if settings.num_proxies and not is_loopback(settings.http_host) and settings.api_keys_file is None:
        raise UserError(
            f"Listening on {settings.http_host} lets anybody who reaches it use your models: give --api_keys_file, or"
            " --allow_insecure if the network is yours alone."
        )


def _show_line(settings: HeadSettings, endpoint: Endpoint) -> None:
    """Tell how others join, if they can."""
    if not endpoint.join or is_loopback(settings.host):
        return
    try:
        line = new_line(
            Tokens(settings.state_dir), Authority.open(settings.state_dir), endpoint.join, Role.NODE, uses=0
        )
    except OSError as e:
        log.error("no_join_line", error=e.strerror)
        return
    print(f"Within the hour, other machines join with:\n  {command(Role.NODE, line)}", flush=True)


def _join_port(settings: HeadSettings) -> int | None:
    """Where machines may join; None: nowhere."""
    if settings.join_port is None:
        return None if is_loopback(settings.host) else JOIN_PORT
    return settings.join_port


def _last_ports(settings: HeadSettings) -> Mapping[str, int]:
    """Where the head before this one listened, if it did not end in order: its proxies and schedulers look there."""
    try:
        data = json.loads((settings.head_dir / "endpoint.json").read_text())
        return {f"{k}_port": int(str(data[k]).rpartition(":")[2]) for k in ("node", "grpc")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _bind_again(
    server: grpc.aio.Server, settings: HeadSettings, credentials: Credentials, name: str, before: Mapping[str, int]
) -> int:
    """Bind to the port of the setting `name`; with 0 to the one that the head before had, if it is free."""
    port: int = getattr(settings, name)
    if port == 0 and before.get(name):
        try:
            return bind(server, settings.host, before[name], credentials, f"--{name}")
        except UserError:
            log.info("port_was_taken", name=name, port=before[name])
    return bind(server, settings.host, port, credentials, f"--{name}")


def _reachable(host: str) -> str:
    """Where a process of this machine connects to what listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _at(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
