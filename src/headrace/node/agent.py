"""The scheduler: keeps this machine's replicas as the head wants them, and goes on without the head."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import structlog

import headrace
from headrace import engines_here
from headrace.core.types import NAME_PATTERN, NodeId, NodeInfo
from headrace.errors import UserError
from headrace.lock import exclusive
from headrace.node import devices
from headrace.node.conditions import Conditions
from headrace.node.credential import keep_fresh, obtain
from headrace.node.epoch import EpochFile, next_incarnation
from headrace.node.link import HeadLink
from headrace.node.node import Node
from headrace.process import PARENT_ENDED, told_to_stop
from headrace.rpc.credentials import CREDENTIAL_ENV, Credentials, Kept
from headrace.rpc.finding import is_loopback
from headrace.settings import SchedulerSettings

log = structlog.get_logger()

_BUSY = (
    "A scheduler with node id {node_id} is running already (process {pid}) with this state directory: end it, or give"
    " this one another --node_id."
)

_TERM_S, _END_S, _LAST_REPORT_S = 1.5, 4.0, 0.7
_REPLICA = (sys.executable, "-m", "headrace.replica")


async def run(settings: SchedulerSettings) -> None:
    """Serve until told to stop. UserError if it cannot start, or if a newer scheduler has taken the node over."""
    await serve(settings, told_to_stop)


async def serve(
    settings: SchedulerSettings, told: Callable[[], Awaitable[str]], command: tuple[str, ...] = _REPLICA
) -> None:
    """As `run`, until `told()` returns why; `command` (and the replica's folder) starts a replica."""
    check(settings)
    node_dir = settings.node_dir.absolute()
    with exclusive(node_dir, lambda pid: _BUSY.format(pid=pid, node_id=settings.node_id)):
        here = devices.detect(settings.num_cpus, settings.num_gpus, settings.memory_bytes)
        info = NodeInfo(
            NodeId(settings.node_id),
            next_incarnation(node_dir / "incarnation", time.time_ns()),
            socket.gethostname(),
            headrace.__version__,
            here.resources,
            here.gpus,
            tuple(engines_here.installed()),
        )
        credentials = await obtain(settings)
        settings = at_head(settings, credentials)
        conditions = Conditions(
            node_dir=node_dir,
            cache_dir=settings.cache_dir.absolute(),
            cache_limit_bytes=settings.cache_limit_bytes or 0,
            host=settings.host,
            credentials=credentials,
            env=_environment(settings, credentials),
            command=command,
            stalled_s=settings.start_limit_s,
        )
        await _serve(settings, info, conditions, EpochFile(node_dir / "epoch"), told)


async def _serve(
    settings: SchedulerSettings,
    info: NodeInfo,
    conditions: Conditions,
    epoch: EpochFile,
    told: Callable[[], Awaitable[str]],
) -> None:
    fenced = ""
    async with asyncio.TaskGroup() as tasks:
        stop = tasks.create_task(_text(told()))
        await asyncio.sleep(0)  # its signal handlers are in place before there is anything to end in order
        node = Node(conditions, tasks, lambda: link.changed())
        link = HeadLink(
            _address(settings.head_address, settings.port),
            conditions.credentials,
            info,
            epoch,
            statuses=node.statuses,
            desired=node.desired,
            log_of=node.log_of,
        )
        await node.adopt()
        linked = tasks.create_task(link.run())
        background = [tasks.create_task(node.care_for_folders())]
        if isinstance(conditions.credentials, Kept):
            background.append(tasks.create_task(keep_fresh(conditions.credentials, settings)))
        await asyncio.wait({stop, linked}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.done():
            fenced = linked.result()
            await node.leave()
        else:
            why = stop.result()
            # Who started us and is gone waits for nobody; others may tell us twice.
            hurry = None if why == PARENT_ENDED else tasks.create_task(_text(told()))
            await asyncio.sleep(0)  # from here on a second word is heard
            await _end(node, link, linked, why, settings, hurry)
            if hurry is not None:
                hurry.cancel()
        for task in (stop, linked, *background):
            task.cancel()
    if fenced:
        raise UserError(f"Scheduler {info.node_id} ends and leaves its replicas alone: {fenced}")


async def _end(
    node: Node,
    link: HeadLink,
    linked: asyncio.Task[str],
    why: str,
    settings: SchedulerSettings,
    hurry: asyncio.Task[str] | None,
) -> None:
    """Let the replicas finish what they have and stop them (or leave them), and let the head know."""
    left = "leaves" if settings.keep_replicas else "ends"
    drain_s = settings.drain_s if hurry is not None else 0.0
    log.info(f"scheduler {settings.node_id}: {left} {node.running} replicas and stops ({why})", drain_s=drain_s)
    async with asyncio.TaskGroup() as tasks:
        ending = tasks.create_task(node.leave() if settings.keep_replicas else node.end(drain_s, _TERM_S))
        waits = {ending} | ({hurry} if hurry is not None else set())
        await asyncio.wait(waits, timeout=drain_s + _END_S, return_when=asyncio.FIRST_COMPLETED)
        if not ending.done() and not settings.keep_replicas:
            log.info(f"scheduler {settings.node_id}: hurries")
            node.hurry(_TERM_S)
            await asyncio.wait({ending}, timeout=_END_S)
        if not ending.done():
            log.error(f"scheduler {settings.node_id}: {node.running} replicas could not be ended in time")
            node.abandon()
            ending.cancel()
    link.close()
    await asyncio.wait({linked}, timeout=_LAST_REPORT_S)


def check(settings: SchedulerSettings) -> None:
    """UserError for settings that cannot be."""
    if not NAME_PATTERN.fullmatch(settings.node_id):
        raise UserError(f"{settings.node_id!r} cannot be a --node_id: use letters, digits, '.', '_', ':' and '-'.")
    if not settings.alone_s > 0:
        raise UserError(f"--alone_s must be more than 0, not {settings.alone_s:g}.")
    if settings.host and _is_wildcard(settings.host):
        raise UserError(f"--host={settings.host} is no address that others can reach: give one of this machine's own.")


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def at_head(settings: SchedulerSettings, credentials: Credentials) -> SchedulerSettings:
    """`settings` with what they leave open: where the head is, and the address that replicas listen on."""
    head = credentials.head if isinstance(credentials, Kept) else None
    if not settings.head_address:
        found = (head.host, head.node_port) if head else ("localhost", settings.port)
        settings = replace(settings, head_address=found[0], port=found[1])
    return settings if settings.host else replace(settings, host=_own_address(settings.head_address))


def _own_address(head_address: str) -> str:
    """This machine's address on the way to the head, where its proxies can reach replicas. Sends nothing."""
    if is_loopback(head_address):
        return "127.0.0.1"
    try:
        family, kind, _, _, where = socket.getaddrinfo(head_address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(where)
            return str(probe.getsockname()[0])
    except OSError as e:
        raise UserError(
            f"Cannot tell by which address the head at {head_address} reaches this machine ({e.strerror}): give it with"
            " --host."
        ) from e


def _environment(settings: SchedulerSettings, credentials: Credentials) -> tuple[tuple[str, str], ...]:
    """What every replica is told beside its spec.json."""
    files: dict[str, Path | None] = {
        "HEADRACE_TLS_CERT": settings.tls.cert,
        "HEADRACE_TLS_KEY": settings.tls.key,
        "HEADRACE_TLS_CA": settings.tls.ca,
    }
    paths = ((name, str(path.absolute())) for name, path in files.items() if path)
    if isinstance(credentials, Kept):
        paths = ((CREDENTIAL_ENV, str(credentials.path)),)
    return ("HEADRACE_LOG_LEVEL", settings.log_level), ("HEADRACE_ALONE_S", f"{settings.alone_s:g}"), *paths


async def _text(waited: Awaitable[str]) -> str:
    return await waited
