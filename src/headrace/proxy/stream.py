"""One choice of one request, at the replica that makes it; when that one is gone, at the next.

    waiting ──place──▶ submitted ──first token──▶ flowing ──▶ done
       ▲                   │                         │
       └───── draining, gone: core/failover decides ─┘   (on from the tokens that are here, or from the start)

Its load at the replica is its entry in the session, which leaves the session exactly once, however it ends.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace

from headrace import errors
from headrace.core.failover import MAX_DEATHS, PROVEN_BY, History, Loss, Next, after, can_resume
from headrace.core.streams import Failure, Parsed, Resume, Submit, TokenLogprob
from headrace.core.types import ReplicaId
from headrace.metrics import Tally
from headrace.proxy.extras import Echo, Extra, PromptLogprobs
from headrace.proxy.place import Place, Sink
from headrace.proxy.session import Session

DEAF_S = 1.1
"""A replica that has stood still for longer, where a frame comes every second, may not hear what it is given."""


_FAILED = "The replica failed; its log says more under this request's X-Request-Id."
_GONE = "The replica that made this answer went away."


class Stream:
    """One sequence. `on_change` is called when it needs a replica, or is done; `may_move` is the budget of moves."""

    __slots__ = (
        "_called",
        "_given",
        "_history",
        "_ids",
        "_keep_s",
        "_last_at",
        "_lost_at",
        "_may_move",
        "_number",
        "_on_change",
        "_on_move",
        "_placed_at",
        "_session",
        "_sink",
        "_still_at",
        "_tally",
        "cached_tokens",
        "chars",
        "error",
        "fingerprint",
        "first_at",
        "index",
        "moves",
        "prompt_tokens",
        "reason",
        "reasoning_chars",
        "submit",
        "taking_over",
        "tokens",
        "tried",
    )

    def __init__(
        self,
        index: int,
        submit: Submit,
        sink: Sink,
        tally: Tally,
        on_change: Callable[[], None],
        may_move: Callable[[], bool] = lambda: True,
        place: Place | None = None,
        on_move: Callable[[str, int], None] = lambda cause, tokens: None,
    ) -> None:
        """With a `keep_s` the client is told its places, from which it may go on at another proxy.

        `place`: where a client is that comes from a proxy which was lost; the stream is taken over from there.
        `on_move`: told why it has to go to another replica, and after how many tokens.
        """
        self.index = index
        self.submit = submit
        self.tokens = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.reason: str | None = None  # why it is done
        self.error: errors.HeadraceError | None = None
        self.first_at = 0.0
        self.tried: list[ReplicaId] = []  # since its last token
        self.moves = 0
        self.fingerprint = ""  # that a replica must have to take it up; "": any
        self._ids = array("I")  # the tokens that have come
        self.chars = self.reasoning_chars = 0  # that the sink has had
        self._called = False  # it has had a tool call, or a part of one
        self._given: set[type] = set()  # what is not given again by another replica
        self._history = History()
        self._placed_at = 0  # tokens that it had when it came to its replica
        self._still_at: int | None = None  # the step at which its replica stood still when it came there
        self._lost_at = 0.0
        self._sink = sink
        self._tally = tally
        self._on_change = on_change
        self._on_move = on_move
        self._may_move = may_move
        self._session: Session | None = None
        self._keep_s = submit.keep_s
        self.taking_over = place is not None
        if place is not None:
            self.moves, self.tokens, self.chars, self.reasoning_chars = place
        self._number = 0
        self._last_at = 0.0

    @property
    def done(self) -> bool:
        return self.reason is not None

    @property
    def needs_replica(self) -> bool:
        return self._session is None and self.reason is None

    @property
    def deaths(self) -> int:
        """Replicas that died with it and for which it may be to blame."""
        return self._history.deaths

    @property
    def proving(self) -> bool:
        """Whether its replica, the next one too, may yet die of it."""
        return not self.done and (self._session is None or self.tokens - self._placed_at < PROVEN_BY)

    def place(self, session: Session, adapter: str = "") -> None:
        """Submit to a replica, for one of its adapters. If the session broke meanwhile the stream goes on waiting."""
        self.tried.append(session.endpoint.replica_id)
        self._placed_at = self.tokens
        self._still_at = session.load.step if session.still_s > DEAF_S else None
        try:
            self._number = session.submit(self._to_submit(adapter), self)
        except errors.ReplicaGone as e:
            e.told = _GONE
            self._lost(Loss.REFUSAL, e)  # it never had the stream
            return
        self._session = session

    def _to_submit(self, adapter: str) -> Submit:
        submit = replace(self.submit, adapter=adapter) if adapter else self.submit
        if self.moves:
            submit = replace(submit, moves=self.moves)
        if self.taking_over:
            resume = Resume((), self.chars, self.reasoning_chars)
            return replace(submit, resume=resume, take_over=self.tokens)
        if not self.tokens:
            return submit
        resume = Resume(self._ids, self.chars, self.reasoning_chars)
        return replace(submit, resume=resume, echo=False, prompt_logprobs=None)

    def end(self, reason: str, error: errors.HeadraceError | None = None) -> None:
        """Done, for our own reasons: the replica is told to stop. Idempotent."""
        if self.reason is None:
            session, self._session = self._session, None
            self.reason, self.error = reason, error
            if session is not None:
                session.abort(self._number)
            self._on_change()

    # What the session tells.

    def started(self, prompt_tokens: int, echo: str = "", delivered: Sequence[int] = ()) -> None:
        self.prompt_tokens = prompt_tokens
        if self.taking_over:
            self.taking_over = False
            self._ids.extend(delivered)
            del self.tried[:-1]
        if echo:
            self.extra(Echo(echo))

    def extra(self, item: Extra) -> None:
        if isinstance(item, Parsed):
            self.reasoning_chars += len(item.reasoning)
            self._called = self._called or bool(item.tool_calls)
        elif isinstance(item, (Echo, PromptLogprobs)):
            if type(item) in self._given:
                return
            self._given.add(type(item))
        self._sink.extra(self.index, item, self if self._keep_s else None)

    def token(self, now: float, position: int, token_id: int, text: str) -> None:
        """As `delta`, without what only the first token and a stream that has moved need."""
        if not position or position != self.tokens or self._lost_at:
            self.delta(now, position, (token_id,), text, None)
            return
        self._tally.gap(now - self._last_at, 1)
        self._last_at = now
        self.tokens = position + 1
        self._ids.append(token_id)
        if text:
            self.chars += len(text)
            self._sink.delta(self.index, text, None, self if self._keep_s else None)

    def delta(
        self, now: float, position: int, ids: Sequence[int], text: str, logprobs: Sequence[TokenLogprob] | None
    ) -> None:
        if position != self.tokens:
            self.end("error", errors.HeadraceError("Tokens of this stream were lost between replica and proxy."))
            return
        count = len(ids)
        if self._lost_at:
            self._taken_up(now)
        if position:
            self._tally.gap(now - self._last_at, count)
        elif count:
            self.first_at = self.first_at or now
            self._tally.tokens += count
        self._last_at = now
        self.tokens = position + count
        self._ids.extend(ids)
        self.chars += len(text)
        if text or logprobs:
            self._sink.delta(self.index, text, logprobs, self if self._keep_s else None)

    def _taken_up(self, now: float) -> None:
        self._tally.moved.append(now - self._lost_at)
        self._lost_at = 0.0
        del self.tried[:-1]  # others may be there again under the same names

    def finished(self, reason: str, cached_tokens: int, failure: Failure | None) -> None:
        session, self._session = self._session, None
        self.cached_tokens = min(cached_tokens, self.prompt_tokens)
        if failure is not None or reason not in ("stop", "length", "tool_calls"):
            self._failed(session, failure or Failure("internal", f"The replica ended this stream: {reason}."))
            return
        self.reason = reason
        self._sink.choice_done(self.index, reason)
        self._on_change()

    def rejected(self, failure: Failure) -> None:
        session, self._session = self._session, None
        self._failed(session, failure)

    def gone(self, error: errors.HeadraceError) -> None:
        session, self._session = self._session, None
        if isinstance(error, errors.ReplicaGone):
            error.told = _GONE
            # What stood still before the stream came, and ever since, has not died of it.
            still = session is not None and session.load.step == self._still_at
            self._lost(Loss.REFUSAL if still else Loss.DEATH, error, session)
        else:
            self.end("error", error)

    def _failed(self, session: Session | None, f: Failure) -> None:
        error = errors.from_kind(f.kind, f.message, param=f.param, code=f.code, retry_after_s=f.retry_after_s)
        if f.kind in (errors.HeadraceError.kind, errors.ReplicaGone.kind):
            error.told = _FAILED  # what failed there, and where, is for its operators
        if self.taking_over and isinstance(error, errors.NotHere):
            self._on_change()  # the next one may have it
        elif isinstance(error, errors.Draining | errors.NotLoaded | errors.Overloaded):
            self._lost(Loss.REFUSAL, error, session)
        elif isinstance(error, errors.ReplicaGone):
            self._lost(Loss.DEATH, error, session)
        elif isinstance(error, errors.CannotResume) and self._sink.restart(self.index):
            self._restart()
            self._on_change()
        else:
            self.end("error", error)

    def _lost(self, loss: Loss, error: errors.HeadraceError, session: Session | None = None) -> None:
        """The replica is gone, or does not take the stream."""
        if self.taking_over:
            self._on_change()
            return
        resumable = can_resume(self.submit, called=self._called)
        unsent = self.tokens > 0 and not resumable and self._sink.restart(self.index)
        here = self.tokens - self._placed_at
        what, self._history = after(
            self._history, loss, self.tokens, here=here, resumable=resumable, restartable=unsent
        )
        if what in (Next.RESUME, Next.RESTART) and not self._may_move():
            text = "Too many streams had to move to other replicas of late, so this one was not moved. Try again."
            self.end("error", errors.Unavailable(f"{error.told} {text}", code=error.code, retry_after_s=5.0))
            return
        match what:
            case Next.RESUME:
                if session is not None:
                    self.fingerprint = session.fingerprint
            case Next.RESTART:
                if unsent:
                    self._restart()
            case Next.QUARANTINE:
                text = f"{MAX_DEATHS} replicas went away while they had this request; it is not tried on another."
                self.end("error", errors.Quarantined(text))
                return
            case Next.INEXACT:
                text = "no other replica could go on with exactly the next token: ask again."
                self.end("error", errors.CannotResume(f"{error.told} Of this kind of answer {text}"))
                return
            case Next.EXHAUSTED:
                self.end("error", error)
                return
        self._tally.retries += 1
        self._lost_at = self._lost_at or self._last_at
        self.moves += 1
        self._on_move(error.message, self.tokens)
        self._on_change()

    def begin_again(self) -> bool:
        """Forget what came, if nothing of it has left the proxy; then any replica will do."""
        if not self._sink.restart(self.index):
            return False
        self._restart()
        return True

    def _restart(self) -> None:
        self.tokens = self.chars = self.reasoning_chars = 0
        del self._ids[:]
        self._called = False
        self._given.clear()
        self.fingerprint = ""


def fan_out(submit: Submit, index: int) -> Submit:
    """The submit of the index-th choice: the same, with a seed of its own if there is one."""
    seed = submit.sampling.seed
    if seed is None or index == 0:
        return submit
    return replace(submit, sampling=replace(submit.sampling, seed=(seed + index) % 2**64))
