"""One request from its parsed form to its last byte."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import structlog
from starlette.responses import Response

from headrace.core.affinity import Decision, Policy
from headrace.core.prefix import blocks_of
from headrace.core.route import Candidate
from headrace.core.streams import Submit
from headrace.errors import Forbidden, HeadraceError, InvalidRequest, Overloaded, RequestTimeout
from headrace.metrics import Metrics
from headrace.proxy.admission import Admission
from headrace.proxy.body import header
from headrace.proxy.changed import Changed
from headrace.proxy.coalescer import NEVER, Coalescer
from headrace.proxy.connection import CONNECTION, nothing
from headrace.proxy.generation import WINDOW, ClientLeft, Generation
from headrace.proxy.moves import Moves
from headrace.proxy.place import Place
from headrace.proxy.record import Record, Records
from headrace.proxy.sinks import Answer
from headrace.proxy.ticket import ANYONE, Asked, Caller, Ticket
from headrace.proxy.wishes import Wishes
from headrace.proxy.writer import Headers, Writer
from headrace.settings import ProxySettings

log = structlog.get_logger()

RAW_SEND = "headrace.send"  # the scope's keys
REQUEST_ID = "headrace.request_id"
RECEIVED_AT = "headrace.received_at"
STARTED = "headrace.started"  # there once the response has begun
CALLER = "headrace.caller"

MAX_SESSION_ID = 256
_CLOSE_S = 5.0


@dataclass(slots=True)
class Serving:
    """What all requests of this process share. `active`: those being answered now."""

    settings: ProxySettings
    admission: Admission
    metrics: Metrics
    active: set[Generation] = field(default_factory=set)
    draining: bool = False
    idle: Changed = field(default_factory=Changed)
    moves: Moves = field(default_factory=Moves)
    coalescer: Coalescer = NEVER
    records: Records = field(default_factory=Records)
    wishes: Wishes = field(default_factory=lambda: Wishes(Policy.AUTO))

    def fail_all(self, error: HeadraceError) -> None:
        """End what is left, each with the same error."""
        for generation in list(self.active):
            generation.fail(error)


async def _gone(receive: Any) -> None:
    """Wait until the server has noticed that we broke the connection, so that it misses no end of the response."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_CLOSE_S):
            while (await receive())["type"] != "http.disconnect":
                pass


class Answering(Response):
    """The response of a request that replicas serve. Tokens go from the frame reader to the server's own `send`."""

    def __init__(
        self,
        serving: Serving,
        model: str,
        submits: Sequence[Submit],
        n: int,
        make: Callable[[Writer, Headers], Answer],
        place: Place | None = None,
        priority: int = 0,
    ) -> None:
        """`make`: of a writer and more headers, which may change until the response begins.

        `place`: see Stream. `priority`: a lower one is more urgent.
        """
        self._priority = priority
        self.background = None
        self._serving = serving
        self._model = model
        self._submits = submits
        self._n = n
        self._make = make
        self._place = place

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        serving, settings = self._serving, self._serving.settings
        count = min(len(self._submits) * self._n, WINDOW)
        route = serving.admission.route(self._model, scope.get(CALLER, ANYONE))  # NotFound before anything else
        label = self._model if route else ""  # a metric's label is never just what a client says
        if serving.moves.running + count > settings.max_streams:
            running, most = serving.moves.running, settings.max_streams
            raise Overloaded(f"{running} streams are running here; at most {most} may.", retry_after_s=1.0)
        ticket, timeout = self._ticket(scope, count)
        ticket.wish = serving.wishes.of(route, self._submits[0], _session_id(scope))
        with serving.admission.counted(ticket):
            await self._answer(scope, receive, label, ticket, timeout)

    def _ticket(self, scope: Any, count: int) -> tuple[Ticket, RequestTimeout | None]:
        """Who asks, and how long it may take; InvalidRequest or Forbidden if that is too much."""
        caller: Caller = scope.get(CALLER, ANYONE)
        if self._priority < caller.priority:
            raise Forbidden(
                f"The API key {caller.name} may ask for a priority of {caller.priority} or more, not {self._priority}.",
                param="priority",
            )
        given = header(scope, b"x-request-timeout")
        if given is None:
            return Ticket(caller, self._priority, count), None
        most = self._serving.settings.max_timeout_s
        try:
            seconds = float(given)
        except ValueError:
            seconds = -1.0
        if not 0 < seconds <= most:
            text = given.decode("latin-1")[:40]
            raise InvalidRequest(
                f"X-Request-Timeout must be a number of seconds above 0, at most {most:g}, not {text!r}.",
                param="X-Request-Timeout",
            )
        passed = RequestTimeout(f"The request did not end within the {seconds:g} s of its X-Request-Timeout.")
        return Ticket(caller, self._priority, count, scope[RECEIVED_AT] + seconds), passed

    def _with_blocks(self, ticket: Ticket) -> Sequence[Submit]:
        """The submits, with their blocks if their replica may have to know them."""
        first = ticket.wish.blocks
        if not first:
            return self._submits
        route = self._serving.admission.route(self._model)
        adapter = route.adapter if route else ""
        blocks = [first, *(blocks_of(s, adapter) for s in self._submits[1:])]
        pairs = zip(self._submits, blocks, strict=True)
        return [replace(s, prefix=b) for s, b in pairs]

    async def _answer(
        self, scope: Any, receive: Any, label: str, ticket: Ticket, timeout: RequestTimeout | None
    ) -> None:
        serving, settings = self._serving, self._serving.settings
        metrics, connection = serving.metrics, scope[CONNECTION]
        begin, raw_send = scope[RAW_SEND]
        writer = Writer(
            raw_send,
            connection,
            start=begin,
            limit_bytes=settings.stream_buffer_bytes,
        )
        headers: Headers = [(b"x-headrace-route-reason", b"queued")]
        answer = self._make(writer, headers)
        tally = metrics.tally(label)
        record = Record(scope[REQUEST_ID], self._model, scope[RECEIVED_AT], time.time())
        serving.records.begin(record)

        def chose(decision: Decision, candidates: Sequence[Candidate]) -> None:
            reason = str(decision)
            headers[:] = [
                (b"x-headrace-replica", decision.replica_id.encode()),
                (b"x-headrace-route-reason", reason.encode()),
            ]
            record.chose(decision, candidates)
            metrics.count(metrics.routed, label, "failover" if decision.moved else decision.reason.value)

        ticket.on_choice, ticket.on_move = chose, record.moved
        generation = Generation(
            self._model,
            self._with_blocks(ticket),
            self._n,
            answer,
            serving.admission,
            tally,
            serving.moves,
            self._place,
            ticket,
        )
        record.generation = generation
        how = "error"
        alarm = None
        if timeout is not None:
            alarm = asyncio.get_running_loop().call_at(ticket.deadline, generation.fail, timeout)

        def unread() -> None:
            text = f"The client left more than {settings.stream_buffer_bytes} bytes unread."
            generation.fail(RequestTimeout(text, code="client_too_slow"))

        writer.on_overflow = unread
        serving.active.add(generation)
        metrics.running_now += 1
        connection.on_lost = left = lambda: generation.fail(ClientLeft())
        try:
            if connection.lost:
                raise ClientLeft
            usage = await generation.run()
            tally.prompt_tokens += usage.prompt_tokens
            tally.cached_tokens += usage.cached_tokens
            how = generation.streams[0].reason or how
            metrics.count(metrics.success, label, how)
            tally.e2e.saw(asyncio.get_running_loop().time() - scope[RECEIVED_AT])
            answer.complete(usage)
            await writer.ended()
        except ClientLeft:
            how = "cancelled"
            metrics.count(metrics.cancelled, label)
            writer.close()
        except HeadraceError as e:
            how = e.kind
            metrics.count(metrics.failed, label, e.kind)
            if not writer.started:
                raise
            log.info("stream_failed", request_id=scope[REQUEST_ID], model=self._model, kind=e.kind, error=e.message)
            answer.fail(e)
            await writer.ended()
            if writer.broken:
                await _gone(receive)
        except BaseException:
            if writer.started:
                writer.cut()
            raise
        finally:
            writer.on_overflow = nothing  # no cycle may be left: the collector is dear
            if connection.on_lost is left:  # else the next request of the connection has begun
                connection.on_lost = nothing
            serving.records.end(record, how)
            if alarm is not None:
                alarm.cancel()
            if generation.first_at:
                tally.ttft.saw(generation.first_at - scope[RECEIVED_AT])
            metrics.running_now -= 1
            serving.active.discard(generation)
            if not serving.active:
                serving.idle.notify()


def _session_id(scope: Any) -> str:
    """X-Session-Id, "" without one; InvalidRequest if it is too long."""
    given = header(scope, b"x-session-id") or b""
    if len(given) > MAX_SESSION_ID:
        raise InvalidRequest(f"X-Session-Id must have at most {MAX_SESSION_ID} characters.", param="X-Session-Id")
    return given.decode("latin-1")


def asked(scope: Any, keep_s: float = 0.0) -> Asked:
    return Asked(scope[REQUEST_ID], unix_now(), scope.get(CALLER, ANYONE).owner, keep_s)


def new_id(prefix: str) -> str:
    return prefix + os.urandom(16).hex()


def unix_now() -> int:
    return int(time.time())
