"""The proxy process: HTTP on one side, routes and frame sessions on the other."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import structlog

from headrace.core.affinity import Policy
from headrace.core.types import Load
from headrace.errors import Unavailable, UserError
from headrace.heartbeat import Beat, beat
from headrace.metrics import Metrics
from headrace.process import open_files, raise_open_files, told_to_stop
from headrace.proxy import api
from headrace.proxy.admission import Admission, Patience
from headrace.proxy.answering import Serving
from headrace.proxy.browsers import Browsers
from headrace.proxy.clients import OTHER_FILES, Clients, Limits
from headrace.proxy.coalescer import Coalescer
from headrace.proxy.edge import Edge
from headrace.proxy.explain import answer_questions
from headrace.proxy.key_file import KeyFile
from headrace.proxy.record import Records
from headrace.proxy.routes import Routes
from headrace.proxy.security import check_bind
from headrace.proxy.server import BACKLOG, Server, bind, new_server
from headrace.proxy.sessions import Sessions
from headrace.proxy.silence import Silence
from headrace.proxy.wishes import Wishes
from headrace.rpc import finding, joining
from headrace.rpc.channel import Connection
from headrace.rpc.credentials import Credentials, Kept
from headrace.rpc.roles import Role
from headrace.settings import ProxySettings

log = structlog.get_logger()

_FLUSH_S = 1.0
_LOOK_S = 0.5
_DEFAULT_HEAD = "localhost:50052"
_NEW_OBJECTS = 10_000  # until the collector looks for cycles among them
_LAST_WORDS_S = 2.0  # for errors of cut streams to be written


async def run(settings: ProxySettings) -> None:
    """Serve until told to stop; then finish what runs, for up to `drain_s` or until told again."""
    settings = replace(settings, max_streams=within_open_files(settings.max_streams, raise_open_files()))
    async with serving(settings) as proxy:
        # What there is now stays: the collector need not look at it again while tokens wait.
        gc.collect()
        gc.freeze()
        # Only requests that fail leave cycles. With 700, which is usual, it would look for them all the time.
        gc.set_threshold(_NEW_OBJECTS, 10, 10)
        why = await told_to_stop()
        log.info("proxy_draining", why=why, requests=len(proxy.serving.active))
        await proxy.drain(settings.drain_s, told_to_stop())
    log.info("proxy_stopped")


def within_open_files(max_streams: int, limit: int) -> int:
    """How many streams may run with so many open files, each needing one. UserError if hardly any could."""
    room = limit - OTHER_FILES
    if room >= max_streams:
        return max_streams
    if room < OTHER_FILES:
        raise UserError(
            f"This process may have only {limit} open files, and each client needs one: raise the limit (ulimit -n)."
        )
    log.warning("few_open_files", limit=limit, max_streams=room, wanted=max_streams, help="raise ulimit -n")
    return room


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that listens. `address`: host:port."""

    address: str
    serving: Serving
    routes: Routes
    sessions: Sessions
    server: Server
    keys: KeyFile | None

    async def drain(self, limit_s: float, hurry: object = None) -> None:
        """Take nothing new, and wait for what runs: at most `limit_s`, or until the awaitable `hurry` is done."""
        self.serving.draining = True
        self.server.should_exit = True
        async with asyncio.TaskGroup() as tasks:
            done = tasks.create_task(self._idle())
            waits: set[asyncio.Task[object]] = {done}
            if hurry is not None:
                waits.add(tasks.create_task(_await(hurry)))
            await asyncio.wait(waits, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            for task in waits:
                task.cancel()

    async def _idle(self) -> None:
        while self.serving.active:
            await self.serving.idle.wait()


async def _await(what: object) -> None:
    await what  # type: ignore[misc]


@asynccontextmanager
async def serving(
    settings: ProxySettings, patience: Patience | None = None, silence: Silence | None = None
) -> AsyncIterator[Proxy]:
    """A proxy that listens and serves. Leaving ends what still runs, with an error each."""
    check_bind(settings)
    keys = KeyFile(settings.api_keys_file) if settings.api_keys_file else None
    proxy_id = settings.proxy_id or f"proxy-{uuid.uuid4().hex[:6]}"
    credentials, address = await _credentials(settings, proxy_id)
    metrics = Metrics(settings.metrics_dir)
    policy = Policy(settings.routing)
    async with AsyncExitStack() as stack:
        sock = stack.enter_context(bind(settings.http_host, settings.http_port))
        alone = not await _somebody_listens(sock)
        if alone:
            sock.listen(BACKLOG)
        host, port = sock.getsockname()[:2]
        here = finding.at(host, port)
        head = await stack.enter_async_context(Connection(address, credentials, Role.HEAD))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        routes = Routes(head, proxy_id, least_epoch=settings.least_epoch)
        sessions = Sessions(tasks, proxy_id, routes.changed, silence or Silence(), credentials, policy)
        routes.on_change = sessions.apply
        patience = patience or Patience(model_s=settings.wait_s, busy_s=settings.busy_s)
        admission = Admission(tasks, routes, sessions, settings.max_waiting, patience)
        shared = Serving(
            settings,
            admission,
            metrics,
            coalescer=Coalescer(settings.coalesce_s),
            records=Records(proxy_id),
            wishes=Wishes(policy),
        )
        limits = Limits(stall_s=settings.stall_s, max_idle=settings.max_idle, open_files=open_files())
        clients = Clients(limits, metrics)
        server = new_server(Edge(api.build(shared, routes), keys, Browsers(settings), metrics, shared.records), clients)
        background = [
            tasks.create_task(routes.run(), name="routes"),
            tasks.create_task(answer_questions(head, proxy_id, shared.records), name="questions"),
            tasks.create_task(_report(metrics, admission, routes, sessions, clients), name="metrics"),
            tasks.create_task(shared.coalescer.run(), name="pressure"),
        ]
        if isinstance(credentials, Kept) and credentials.head:
            background.append(tasks.create_task(joining.keep_fresh(credentials, Role.PROXY), name="certificate"))
        if settings.heartbeat_dir is not None:

            def say() -> Beat:
                return Beat(len(shared.active), keys.trouble if keys else "")

            path = settings.heartbeat_dir / f"{proxy_id}.sock"
            background.append(tasks.create_task(beat(path, say), name="heartbeat"))
        if keys is not None:
            background.append(tasks.create_task(keys.watch(), name="keys"))
        web = tasks.create_task(_serve(server, sock, routes, alone), name="http")
        log.info("proxy_listening", address=here, proxy_id=proxy_id, pid=os.getpid(), head=head.address)
        try:
            yield Proxy(here, shared, routes, sessions, server, keys)
        finally:
            shared.draining = True
            server.should_exit = True
            shared.fail_all(Unavailable("This proxy is shutting down.", retry_after_s=1.0))
            await _end(server, web)
            for task in background:
                task.cancel()
            sessions.close()
            metrics.flush()


async def _credentials(settings: ProxySettings, proxy_id: str) -> tuple[Credentials, str]:
    """What to show, and where the head is. UserError if there are none."""
    path = finding.credential_path(settings.state_dir, Role.PROXY)
    if settings.join:
        found = await joining.ensure_joined(settings.join, Role.PROXY, joining.own_name(), path)
    else:
        host = finding.host_of(settings.head_address)
        found = finding.find(Role.PROXY, proxy_id, settings.tls, settings.state_dir, host)
    head = found.head if isinstance(found, Kept) else None
    if settings.head_address:
        return found, settings.head_address
    return found, finding.at(head.host, head.grpc_port) if head else _DEFAULT_HEAD


async def _serve(server: Server, sock: socket.socket, routes: Routes, alone: bool) -> None:
    """Answer requests; unless `alone`, leave them to the other proxies of the port until the head has sent routes."""
    while routes.table is None and not (alone or server.should_exit):
        await routes.changed.wait(_LOOK_S)
        alone = not await _somebody_listens(sock)
    if not server.should_exit:
        await server.serve(sockets=[sock])


async def _somebody_listens(sock: socket.socket) -> bool:
    """Whether a connection to the address would be taken."""
    with socket.socket(sock.family, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(probe, sock.getsockname()), _LOOK_S)
        except TimeoutError:
            return True  # somebody who is busy
        except OSError:
            return False
    return True


async def _end(server: Server, web: asyncio.Task[None]) -> None:
    """Let the last words be written, then close whatever clients keep open."""
    try:
        await asyncio.wait_for(asyncio.shield(web), _LAST_WORDS_S)
        return
    except TimeoutError:
        server.force_exit = True
    for connection in list(server.server_state.connections):
        connection.transport.abort()
    await asyncio.wait({web}, timeout=_LAST_WORDS_S)
    web.cancel()


async def _report(metrics: Metrics, admission: Admission, routes: Routes, sessions: Sessions, clients: Clients) -> None:
    """Once a second: tallies and loads into the metrics, and what clients did into the log."""
    while True:
        clients.report()
        metrics.flush()
        if routes.table is not None:
            shown: dict[str, dict[str, tuple[Load, float]]] = {}
            for route in routes.table.routes.values():
                weights = sessions.weights(route)
                ready = {e.replica_id: s for e, s in sessions.of(route) if s.ready}
                shown[route.name] = {i: (s.load, weights[i]) for i, s in ready.items()}
            metrics.show(shown, admission.waiting)
        await asyncio.sleep(_FLUSH_S)
