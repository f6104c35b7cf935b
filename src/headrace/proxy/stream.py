"""One choice of one request, at the replica that makes it.

    waiting ──place──▶ submitted ──first token──▶ flowing ──▶ done
       ▲                   │
       └── draining, gone ─┘   (no token yet: tried elsewhere, a bounded number of times)

Its load at the replica is its entry in the session, which leaves the session exactly once, however it ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from headrace import errors
from headrace.core.types import Failure, ReplicaId, Submit
from headrace.metrics import Tally
from headrace.proxy.extras import Echo, Extra, PromptLogprobs
from headrace.proxy.session import Session

# A request whose replicas die may be what kills them: it gets two.
MAX_DEATHS = 2
MAX_TRIES = 4


class Sink(Protocol):
    """Where the answer goes; called straight from the frame reader, so it must be quick and must not raise."""

    def delta(self, index: int, text: str, logprobs: Any) -> None: ...
    def extra(self, index: int, item: Extra) -> None: ...
    def choice_done(self, index: int, reason: str) -> None: ...
    def waiting(self, what: str) -> None: ...


class Stream:
    """One sequence. `on_change` is called when it needs a replica, or is done."""

    __slots__ = (
        "_given",
        "_last_at",
        "_number",
        "_on_change",
        "_session",
        "_sink",
        "_tally",
        "cached_tokens",
        "deaths",
        "error",
        "first_at",
        "index",
        "prompt_tokens",
        "reason",
        "submit",
        "tokens",
        "tried",
    )

    def __init__(self, index: int, submit: Submit, sink: Sink, tally: Tally, on_change: Callable[[], None]) -> None:
        self.index = index
        self.submit = submit
        self.tokens = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.reason: str | None = None  # why it is done
        self.error: errors.HeadraceError | None = None
        self.first_at = 0.0
        self.tried: list[ReplicaId] = []
        self.deaths = 0
        self._given: set[type] = set()  # what is not given again by another replica
        self._sink = sink
        self._tally = tally
        self._on_change = on_change
        self._session: Session | None = None
        self._number = 0
        self._last_at = 0.0

    @property
    def done(self) -> bool:
        return self.reason is not None

    @property
    def needs_replica(self) -> bool:
        return self._session is None and self.reason is None

    def place(self, session: Session, adapter: str = "") -> None:
        """Submit to a replica, for one of its adapters. If the session broke meanwhile the stream goes on waiting."""
        self.tried.append(session.endpoint.replica_id)
        try:
            submit = replace(self.submit, adapter=adapter) if adapter else self.submit
            self._number = session.submit(submit, self)
        except errors.ReplicaGone as e:
            self._try_again(e)
            return
        self._session = session

    def end(self, reason: str, error: errors.HeadraceError | None = None) -> None:
        """Done, for our own reasons: the replica is told to stop. Idempotent."""
        if self.reason is None:
            session, self._session = self._session, None
            self.reason, self.error = reason, error
            if session is not None:
                session.abort(self._number)
            self._on_change()

    # What the session tells.

    def started(self, prompt_tokens: int, echo: str = "") -> None:
        self.prompt_tokens = prompt_tokens
        if echo:
            self.extra(Echo(echo))

    def extra(self, item: Extra) -> None:
        if isinstance(item, (Echo, PromptLogprobs)):
            if type(item) in self._given:
                return
            self._given.add(type(item))
        self._sink.extra(self.index, item)

    def delta(self, now: float, position: int, count: int, text: str, logprobs: Any) -> None:
        if position != self.tokens:
            self.end("error", errors.HeadraceError("Tokens of this stream were lost between replica and proxy."))
            return
        if position:
            self._tally.gap(now - self._last_at, count)
        elif count:
            self.first_at = now
            self._tally.tokens += count
        self._last_at = now
        self.tokens = position + count
        if text or logprobs:
            self._sink.delta(self.index, text, logprobs)

    def finished(self, reason: str, cached_tokens: int, failure: Failure | None) -> None:
        self._session = None
        self.cached_tokens = cached_tokens
        if failure is not None or reason not in ("stop", "length", "tool_calls"):
            self._failed(failure or Failure("internal", f"The replica ended this stream: {reason}."))
            return
        self.reason = reason
        self._sink.choice_done(self.index, reason)
        self._on_change()

    def rejected(self, failure: Failure) -> None:
        self._session = None
        self._failed(failure)

    def gone(self, error: errors.HeadraceError) -> None:
        self._session = None
        if isinstance(error, errors.ReplicaGone):
            self.deaths += 1
            self._try_again(error)
        else:
            self.end("error", error)

    def _failed(self, f: Failure) -> None:
        error = errors.from_kind(f.kind, f.message, param=f.param, code=f.code, retry_after_s=f.retry_after_s)
        if isinstance(error, errors.Draining | errors.NotLoaded):
            self._try_again(error)
        else:
            self.end("error", error)

    def _try_again(self, error: errors.HeadraceError) -> None:
        if self.tokens == 0 and self.deaths < MAX_DEATHS and len(self.tried) < MAX_TRIES:
            self._tally.retries += 1
            self._on_change()
        elif self.deaths >= MAX_DEATHS and self.tokens == 0:
            text = f"{self.deaths} replicas went away while they had this request; it is not tried on another."
            self.end("error", errors.ReplicaGone(text))
        else:
            self.end("error", error)


def fan_out(submit: Submit, index: int) -> Submit:
    """The submit of the index-th choice: the same, with a seed of its own if there is one."""
    seed = submit.sampling.seed
    if seed is None or index == 0:
        return submit
    return replace(submit, sampling=replace(submit.sampling, seed=(seed + index) % 2**64))
