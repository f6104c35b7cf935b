"""From a model's name to a replica that has room now; waiting, in a bounded queue, while there is none."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from headrace.core.types import ReplicaId, Route, RouteState
from headrace.core.waits import expected_wait_s, retry_after_s
from headrace.errors import CannotResume, HeadraceError, NotFound, Overloaded, RequestTimeout, Unavailable
from headrace.proxy.queue import Entry, Queue
from headrace.proxy.routes import Routes
from headrace.proxy.session import Session
from headrace.proxy.sessions import Sessions
from headrace.proxy.ticket import ANYONE, Caller, Ticket

log = structlog.get_logger()

_MAX_NAMES = 20
_FRAMES_S = 0.1


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a request waits, in seconds."""

    model_s: float = 900.0  # for a model to start
    busy_s: float = 30.0  # for replicas that run but have no room
    replica_s: float = 15.0  # for a deployed model's replicas to be reachable again
    head_s: float = 3.0  # for a head that went away, when only it can help
    better_s: float = 1.0  # for a replica that is neither draining nor tried already
    first_word_s: float = 1.0  # until the waiting client is told
    next_word_s: float = 3.0


@dataclass(frozen=True, slots=True)
class _Wait:
    """Nothing yet: what is going on, and the error to end with after `limit_s` of it."""

    what: str
    limit_s: float
    error: HeadraceError
    busy: bool = False  # replicas run, but have no room


class Admission:
    """`waiting` counts the requests in the queues, by model.

    New requests wait in their model's queue for room; those that were admitted before and have to go elsewhere do not.
    """

    def __init__(
        self, tasks: asyncio.TaskGroup, routes: Routes, sessions: Sessions, max_waiting: int, patience: Patience
    ) -> None:
        self.waiting: Counter[str] = Counter()
        self._queues: dict[str, Queue] = {}
        self._streams: Counter[str] = Counter()  # by caller
        self._routes = routes
        self._sessions = sessions
        self._max_waiting = max_waiting
        self._patience = patience
        self._tasks = tasks
        self._asking = False
        self._clock = asyncio.get_running_loop().time
        sessions.on_frame = self._serve_queues

    @contextmanager
    def counted(self, ticket: Ticket) -> Iterator[None]:
        """Count a request's streams for its caller while it is here. Overloaded if they would be too many."""
        caller = ticket.caller
        if caller.max_streams and self._streams[caller.name] + ticket.streams > caller.max_streams:
            raise Overloaded(
                f"The API key {caller.name} may have {caller.max_streams} streams at a time at this proxy, and has "
                f"{self._streams[caller.name]}: wait for one to end.",
                code="too_many_streams",
                retry_after_s=1.0,
            )
        self._streams[caller.name] += ticket.streams
        try:
            yield
        finally:
            self._streams[caller.name] -= ticket.streams

    def route(self, model: str, caller: Caller = ANYONE) -> Route | None:
        """The route of a name; None while no table has come.

        NotFound, naming what the caller may call, if that is not among it: whether it exists is not told.
        """
        table = self._routes.table
        if table is None:
            return None
        if (route := table.routes.get(model)) and caller.may_call(model):
            return route
        names = sorted(filter(caller.may_call, table.routes))
        known = ", ".join(names[:_MAX_NAMES]) + (", …" if len(names) > _MAX_NAMES else "")
        raise NotFound(
            f"There is no model {model[:100]!r} here. " + (f"There are: {known}." if names else "There is none yet."),
            param="model",
            code="model_not_found",
        )

    def untried(self, model: str, tried: Set[ReplicaId]) -> Session | None:
        """A session with a replica of `model` that is not among `tried`, if there is one now."""
        route = self.route(model)
        picked = self._sessions.pick(route, tried) if route else None
        return picked.session if picked and picked.decision.replica_id not in tried else None

    def reaches_all(self, model: str) -> bool:
        """Whether there is a session with every replica of `model`."""
        route = self.route(model)
        if route is None:
            return False
        found = self._sessions.of(route)
        return len(found) == len(route.endpoints) and all(s.ready for _, s in found)

    async def session_for(
        self,
        model: str,
        excluded: Set[ReplicaId] = frozenset(),
        on_wait: Callable[[str], None] = lambda what: None,
        like: str = "",
        ticket: Ticket | None = None,
        heard_after: float = -1.0,
    ) -> Session:
        """A session with a replica of `model`, deploying and awaiting it if need be. To be used with no await between.

        `like`: the fingerprint that it must have, of a stream that goes on there. Such a one waits in no queue, nor
        does one whose ticket was admitted: its place was given to it when it began.
        `heard_after`: for those, something must have come from the replica since then, which shows that it lives.
        `on_wait` is told what is going on, first after a second, then every few. Raises NotFound, Overloaded (the queue
        is full, or too long for the ticket's deadline) or Unavailable (it failed, or the patience is over).
        """
        ticket = ticket or Ticket()
        if like or ticket.admitted:
            found = self._look(model, excluded, 0.0, like, heard_after, ticket)
            if isinstance(found, Session):
                return found
            return await self._wait(model, excluded, on_wait, like, ticket, heard_after=heard_after)
        session = await self._queue_up(model, on_wait, ticket)
        ticket.admitted = True
        return session

    async def _queue_up(self, model: str, on_wait: Callable[[str], None], ticket: Ticket) -> Session:
        route = self.route(model)
        queue = self._queues.get(route.model if route else model)
        found = self._next(model, 0.0, ticket) if not queue else None
        if isinstance(found, Session):
            return found
        if queue is None:
            queue = self._queues[route.model if route else model] = Queue(self._max_waiting, self.waiting)
        entry = Entry(model, ticket)
        waits = found or self._state(model)
        expected = self._expected_wait_s(queue, entry) if route and waits.busy else None
        limit = min(self._patience.busy_s, ticket.deadline - self._clock())
        if expected is not None and expected > limit:
            raise Overloaded(
                f"A request for {model} would wait about {expected:.0f} s now, and this one may wait {limit:.3g} s; "
                "try again later.",
                retry_after_s=retry_after_s(expected),
            )
        full = Overloaded(
            f"{self._max_waiting} requests are waiting for {model} already ({waits.what}); try again later.",
            retry_after_s=retry_after_s(expected, at_least=1.0 if waits.busy else 5.0),
        )
        queue.enter(entry, full)
        try:
            session = await self._wait(model, frozenset(), on_wait, "", ticket, (queue, entry))
        except BaseException:
            queue.remove(entry)
            entry.settle()
            self._serve(queue)  # what it held is free
            raise
        finally:
            self._queues = {name: q for name, q in self._queues.items() if q}
        entry.settle()
        return session

    def _expected_wait_s(self, queue: Queue, entry: Entry) -> float | None:
        route = self.route(entry.model)
        return expected_wait_s(queue.ahead(entry.claim), self._sessions.rate(route)) if route else None

    def _serve_queues(self) -> None:
        """Give room that there is to those whose turn it is. Called after every frame."""
        if self._queues:
            for queue in list(self._queues.values()):
                self._serve(queue)

    def _serve(self, queue: Queue) -> None:
        while (entry := queue.peek()) is not None:
            try:
                found = self._next(entry.model, self._clock() - entry.begun, entry.ticket)
            except HeadraceError:
                return  # its own task sees the same, and tells
            if not isinstance(found, Session):
                return
            queue.pop()
            entry.grant(found)

    async def _wait(
        self,
        model: str,
        excluded: Set[ReplicaId],
        on_wait: Callable[[str], None],
        like: str,
        ticket: Ticket,
        queued: tuple[Queue, Entry] | None = None,
        heard_after: float = -1.0,
    ) -> Session:
        begun = self._clock()
        next_word = begun + self._patience.first_word_s
        asked = False
        what, since = "", begun
        turn = (queued[1].turn,) if queued else ()
        while True:
            if queued:
                self._serve(queued[0])
                if queued[1].turn.done():
                    return queued[1].turn.result()
                found = self._state(model)
            else:
                found = self._look(model, excluded, self._clock() - begun, like, heard_after, ticket)
                if isinstance(found, Session):
                    return found
            route = self._routes.table and self._routes.table.routes.get(model)
            available = route is not None and route.state is RouteState.AVAILABLE
            if available and not asked and self._routes.connected:
                await self._ensure(model)
                asked = True
                continue
            asked = asked and available  # deleted while we waited: deploy it again
            now = self._clock()
            if found.error.message != what:
                what, since = found.error.message, now  # another state: patience begins anew
            if now - begun >= self._patience.model_s or now - since >= found.limit_s:
                raise found.error
            if now >= next_word:
                on_wait(f"waiting for {model}: {found.what}")
                next_word = now + self._patience.next_word_s
            ends = min(begun + self._patience.model_s, since + found.limit_s, next_word)
            if now < begun + self._patience.better_s:
                ends = min(ends, begun + self._patience.better_s)
            if heard_after >= 0:
                ends = min(ends, now + _FRAMES_S)
            await self._routes.changed.wait(max(ends - now, 0.001), *turn)

    def _next(self, model: str, waited_s: float, ticket: Ticket) -> Session | _Wait:
        """A session with room for a new request. A draining replica only when there has been no other for a while."""
        route = self.route(model)
        picked = None
        if route and route.endpoints:
            picked = self._sessions.pick(route, frozenset(), with_room=True, wish=ticket.wish)
        if picked and (waited_s >= self._patience.better_s or not picked.session.draining):
            ticket.on_choice(picked.decision, picked.candidates)
            return picked.session
        return self._state(model)

    def _look(
        self, model: str, excluded: Set[ReplicaId], waited_s: float, like: str, heard_after: float, ticket: Ticket
    ) -> Session | _Wait:
        """A session for a request that was admitted already, however busy the replicas are."""
        route = self.route(model)
        picked = None
        if route and route.endpoints:
            picked = self._sessions.pick(route, excluded, like, heard_after=heard_after, wish=ticket.wish)
        if picked is not None:
            tried = picked.decision.replica_id in excluded
            if waited_s >= self._patience.better_s or not (tried or picked.session.draining):
                ticket.on_choice(picked.decision, picked.candidates)
                return picked.session
        state = self._state(model)
        if like and state.busy and picked is None:  # some can be reached, but none that will do
            text = f"No replica of {model} that could go on with exactly the next token can be reached: ask again."
            error = CannotResume(text, retry_after_s=2.0)
            return _Wait("no replica that could go on can be reached", self._patience.replica_s, error)
        return state

    def has(self, model: str, like: str) -> bool:
        """Whether a replica of `model` with this fingerprint can be reached now."""
        route = self.route(model)
        return route is not None and any(s.ready and s.fingerprint == like for _, s in self._sessions.of(route))

    def _state(self, model: str) -> _Wait:
        """What a request without a replica waits for. Unavailable if that is for nothing."""
        route = self.route(model)
        p = self._patience
        if route is None:
            text = "This proxy has not heard from the head yet."
            return _Wait("no word from the head yet", p.head_s, Unavailable(text, retry_after_s=2.0))
        reachable = [s for _, s in self._sessions.of(route) if s.ready]
        if any(not s.draining for s in reachable):
            text = f"All replicas of {model} stayed busy for {p.busy_s:g} s; try again later."
            return _Wait("all replicas are busy", p.busy_s, Overloaded(text, retry_after_s=5.0), busy=True)
        if route.state is RouteState.READY:
            text = f"No replica of {model} can be reached now; try again in a moment."
            return _Wait("no replica can be reached", p.replica_s, Unavailable(text, retry_after_s=2.0))
        if route.state is RouteState.FAILED:
            self._ask_again(model)
            why = route.reason or "no reason was given"
            raise Unavailable(f"Model {model} failed: {why}; `headrace status` says more.", code="model_failed")
        if not self._routes.connected:
            text = f"Model {model} is not running, and the head that could start it cannot be reached."
            return _Wait("the head cannot be reached", p.head_s, Unavailable(text, retry_after_s=5.0))
        what = route.reason or route.state.value
        text = f"Model {model} is not ready after {p.model_s:g} s; its start goes on: try again later."
        return _Wait(what, p.model_s, Unavailable(text, retry_after_s=10.0))

    async def _ensure(self, model: str) -> None:
        try:
            await self._routes.ensure(model)
        except (Unavailable, RequestTimeout) as e:
            log.warning("ensure_failed", model=model, error=e.message)
            text = f"Model {model} is not running, and could not be started now; `headrace status` says more."
            raise Unavailable(text, retry_after_s=5.0) from e

    def _ask_again(self, model: str) -> None:
        """Let the head know that a failed model is wanted; it decides whether it is time to try once more."""
        if self._routes.connected and not self._asking:
            self._asking = True
            self._tasks.create_task(self._ask_quietly(model))

    async def _ask_quietly(self, model: str) -> None:
        try:
            await self._routes.ensure(model)
        except HeadraceError as e:
            log.info("ensure_failed", model=model, error=e.message)
        finally:
            self._asking = False
