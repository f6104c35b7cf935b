"""The clients of this process together: who stays when there are too many, and what is said of those who misbehave."""

from __future__ import annotations

import asyncio
import ipaddress
import sys
from dataclasses import dataclass
from typing import Protocol

import structlog

from headrace.core.complaints import EVERY_S, Complaints
from headrace.core.idle import Idle
from headrace.metrics import Metrics

log = structlog.get_logger()

OTHER_FILES = 128  # connections to replicas and to the head, metrics, and clients that are being refused
_KEPT_FILES = 32  # that nothing but those others may take
_OTHERS = ("connection_closed", "", "others")
_TOLD = {
    "bad_http": "it sent what is no HTTP/1.1 request",
    "slow_head": "the head of its request did not come in time",
    "slow_body": "it went on sending a body after the answer",
    "unread": "it did not read its answer",
    "idle": "it had no request, and there was no room for more connections",
    "no_room": "all connections have requests, and there is room for no more: raise ulimit -n",
}


class ClientConnection(Protocol):
    """As far as it can be in the way of others."""

    origin: str  # its address, or what stands for a whole network of them
    descriptor: int

    def give_way(self) -> None:
        """Close it: it has no request."""
        ...

    def turn_away(self) -> None:
        """Refuse it: there is no room."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """`stall_s`: how long a client may read nothing of what it is sent; `open_files`: of this process."""

    stall_s: float = 60.0
    max_idle: int = 4096
    open_files: int = sys.maxsize


class Clients:
    """Told by each connection what becomes of it."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limits = limits
        self._metrics = metrics
        self._here = 0
        self._idle: Idle[ClientConnection] = Idle()
        self._complaints: Complaints[tuple[str, str, str]] = Complaints(_OTHERS)
        self._clock = asyncio.get_running_loop().time

    @property
    def idle_count(self) -> int:
        return len(self._idle)

    def arrived(self, one: ClientConnection) -> None:
        """A new connection; another may have to go for it, or it itself."""
        self._idle.add(one, one.origin)
        self._here += 1
        # The kernel gives the lowest number that is free: a high one tells that others than clients have many.
        files = self.limits.open_files
        few_files = self._here > files - OTHER_FILES or one.descriptor >= files - _KEPT_FILES
        if not few_files and len(self._idle) <= self.limits.max_idle:
            return
        if few_files:
            self._say("few_open_files", f"limit {self.limits.open_files}", "")
        victim = self._idle.first_to_go()
        if victim is None or victim is one:
            self.complain("no_room", one.origin)
            self._idle.remove(one, one.origin)
            one.turn_away()
            return
        self.complain("idle", victim.origin)
        self._idle.remove(victim, victim.origin)
        victim.give_way()

    def asks(self, one: ClientConnection) -> None:
        """A request of it has begun."""
        self._idle.remove(one, one.origin)

    def rests(self, one: ClientConnection) -> None:
        """It has no request any more."""
        self._idle.add(one, one.origin)

    def left(self, one: ClientConnection) -> None:
        self._here -= 1
        self._idle.remove(one, one.origin)

    def complain(self, why: str, origin: str) -> None:
        """A connection is closed for what its client did or did not do; see _TOLD."""
        self._metrics.count(self._metrics.connections_closed, why)
        self._say("connection_closed", why, origin)

    def _say(self, event: str, why: str, origin: str) -> None:
        if (what := self._complaints.saw((event, why, origin), self._clock())) is not None:
            self._tell(what, 1)

    def report(self) -> None:
        """Say what was kept back for long enough. To be called now and then."""
        for what, times in self._complaints.due(self._clock()):
            self._tell(what, times)

    @staticmethod
    def _tell(what: tuple[str, str, str], times: int) -> None:
        event, why, origin = what
        about = {"client": origin} if origin else {}
        log.warning(event, why=_TOLD.get(why, why), **about, **({"times": times, "in_s": EVERY_S} if times > 1 else {}))


def origin_of(client: tuple[str, int] | None) -> str:
    """What counts as one client: an IPv4 address, the /64 of an IPv6 one."""
    if client is None:
        return "unknown"
    host = client[0]
    if ":" not in host:
        return host
    try:
        return str(ipaddress.ip_network((host.partition("%")[0], 64), strict=False))
    except ValueError:
        return host
