"""From a model's name to a replica that can be reached now; waiting, in a bounded queue, while there is none."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Set
from dataclasses import dataclass

import structlog

from headrace.core.types import ReplicaId, Route, RouteState
from headrace.errors import HeadraceError, NotFound, Overloaded, RequestTimeout, Unavailable
from headrace.proxy.routes import Routes
from headrace.proxy.session import Session
from headrace.proxy.sessions import Sessions

log = structlog.get_logger()

_MAX_NAMES = 20


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a request waits, in seconds."""

    model_s: float = 900.0  # for a model to start
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


class Admission:
    """`waiting` counts the requests per model that have no replica yet."""

    def __init__(
        self, tasks: asyncio.TaskGroup, routes: Routes, sessions: Sessions, max_waiting: int, patience: Patience
    ) -> None:
        self.waiting: Counter[str] = Counter()
        self._routes = routes
        self._sessions = sessions
        self._max_waiting = max_waiting
        self._patience = patience
        self._tasks = tasks
        self._asking = False

    def route(self, model: str) -> Route | None:
        """The route of a name; None while no table has come. NotFound, naming what exists, if the table lacks it."""
        table = self._routes.table
        if table is None:
            return None
        if route := table.routes.get(model):
            return route
        names = sorted(table.routes)
        known = ", ".join(names[:_MAX_NAMES]) + (", …" if len(names) > _MAX_NAMES else "")
        raise NotFound(
            f"There is no model {model[:100]!r} here. " + (f"There are: {known}." if names else "There is none yet."),
            param="model",
            code="model_not_found",
        )

    def untried(self, model: str, tried: Set[ReplicaId]) -> Session | None:
        """A session with a replica of `model` that is not among `tried`, if there is one now."""
        route = self.route(model)
        session = self._sessions.pick(route, tried) if route else None
        return session if session and session.endpoint.replica_id not in tried else None

    async def session_for(
        self,
        model: str,
        excluded: Set[ReplicaId] = frozenset(),
        on_wait: Callable[[str], None] = lambda what: None,
        like: str = "",
    ) -> Session:
        """A session with a replica of `model`, deploying and awaiting it if need be.

        `like`: the fingerprint that it must have, of a stream that goes on there. Such a one waits in no queue: its
        place was given to it when it began.
        `on_wait` is told what is going on, first after a second, then every few. Raises NotFound, Overloaded (the queue
        is full) or Unavailable (it failed, or the patience is over).
        """
        found = self._look(model, excluded, 0.0, like)
        if isinstance(found, Session):
            return found
        if like:
            return await self._wait(model, excluded, on_wait, like)
        if self.waiting[model] >= self._max_waiting:
            raise Overloaded(
                f"{self._max_waiting} requests are waiting for {model} already ({found.what}); try again later.",
                retry_after_s=5.0,
            )
        self.waiting[model] += 1
        try:
            return await self._wait(model, excluded, on_wait, like)
        finally:
            self.waiting[model] -= 1

    async def _wait(self, model: str, excluded: Set[ReplicaId], on_wait: Callable[[str], None], like: str) -> Session:
        clock = asyncio.get_running_loop().time
        begun = clock()
        next_word = begun + self._patience.first_word_s
        asked = False
        what, since = "", begun
        while True:
            found = self._look(model, excluded, clock() - begun, like)
            if isinstance(found, Session):
                return found
            route = self._routes.table and self._routes.table.routes.get(model)
            available = route is not None and route.state is RouteState.AVAILABLE
            if available and not asked and self._routes.connected:
                await self._ensure(model)
                asked = True
                continue
            asked = asked and available  # deleted while we waited: deploy it again
            now = clock()
            if found.error.message != what:
                what, since = found.error.message, now  # another state: patience begins anew
            if now - begun >= self._patience.model_s or now - since >= found.limit_s:
                raise found.error
            if now >= next_word:
                on_wait(f"waiting for {model}: {found.what}")
                next_word = now + self._patience.next_word_s
            ends = min(begun + self._patience.model_s, since + found.limit_s, next_word)
            if excluded:
                ends = min(ends, begun + self._patience.better_s)
            await self._routes.changed.wait(max(ends - now, 0.001))

    def _look(self, model: str, excluded: Set[ReplicaId], waited_s: float, like: str) -> Session | _Wait:
        route = self.route(model)
        head = self._routes.head_address
        p = self._patience
        if route is None:
            text = f"This proxy has not heard from the head at {head} yet."
            return _Wait("no word from the head yet", p.head_s, Unavailable(text, retry_after_s=2.0))
        session = self._sessions.pick(route, excluded, like) if route.endpoints else None
        if session is not None:
            tried = session.endpoint.replica_id in excluded
            if waited_s >= p.better_s or not (tried or session.draining):
                return session
        if route.state is RouteState.READY:
            text = f"No replica of {model} can be reached now; try again in a moment."
            return _Wait("no replica can be reached", p.replica_s, Unavailable(text, retry_after_s=2.0))
        if route.state is RouteState.FAILED:
            self._ask_again(model)
            raise Unavailable(f"Model {model} failed: {route.reason or 'no reason was given'}", code="model_failed")
        if not self._routes.connected:
            text = f"Model {model} is not running, and the head at {head} that could start it cannot be reached."
            return _Wait("the head cannot be reached", p.head_s, Unavailable(text, retry_after_s=5.0))
        what = route.reason or route.state.value
        text = f"Model {model} is not ready after {p.model_s:g} s; its start goes on: try again later."
        return _Wait(what, p.model_s, Unavailable(text, retry_after_s=10.0))

    async def _ensure(self, model: str) -> None:
        try:
            await self._routes.ensure(model)
        except (Unavailable, RequestTimeout) as e:
            text = f"Model {model} is not running, and it could not be started: {e.message}"
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
