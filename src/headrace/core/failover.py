"""What becomes of a stream whose replica is gone: it moves, or it ends with one error.

A death counts against a request that had hardly a token from the replica since it came there: beginning it may be what
killed. With two such deaths it is not given to a third replica. Those whose tokens flowed are bystanders.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from headrace.core.streams import Submit, Task

MAX_DEATHS = 2
MAX_REFUSALS = 4
PROVEN_BY = 8
"""Tokens from a replica after which its death is not the request's doing."""


def can_resume(submit: Submit, *, called: bool = False) -> bool:
    """Whether prompt and delivered tokens say all there is to know. `called`: a tool call has begun.

    A guide has a state of its own that only the first replica has, and so has a forced tool call, which is a guide too.
    The replica refuses by itself what its engine cannot take up.
    """
    if submit.task is not Task.GENERATE or submit.guide is not None:
        return False
    return not submit.tools_json or (submit.tool_choice in ("", "auto", "none") and not called)


class Loss(Enum):
    """How a stream lost its replica."""

    DEATH = auto()  # killed, silent, cut off: the request may be the cause
    REFUSAL = auto()  # draining, full, or without the adapter


class Next(Enum):
    """What to do with the stream."""

    RESUME = auto()  # go on at another replica
    RESTART = auto()  # begin again there: the client has had nothing
    QUARANTINE = auto()  # it may be what kills
    INEXACT = auto()  # the client has had tokens, and no other replica could go on with exactly the next
    EXHAUSTED = auto()  # tried often enough


@dataclass(frozen=True, slots=True)
class History:
    """What a stream has been through. `deaths`: those in a row that it may be to blame for.

    `refusals`: those in a row at token `refused_at`.
    """

    deaths: int = 0
    refusals: int = 0
    refused_at: int = 0


def after(
    history: History, loss: Loss, tokens: int, *, here: int, resumable: bool, restartable: bool
) -> tuple[Next, History]:
    """Decide for a stream of which the proxy has `tokens`.

    here: how many of them came from the replica that was lost. resumable: can_resume. restartable: nothing of the
    answer has left the proxy.
    """
    if here >= PROVEN_BY:
        history = replace(history, deaths=0)
    elif loss is Loss.DEATH:
        history = replace(history, deaths=history.deaths + 1)
        if history.deaths >= MAX_DEATHS:
            return Next.QUARANTINE, history
    if loss is Loss.REFUSAL:
        again = history.refusals if tokens == history.refused_at else 0
        history = replace(history, refusals=again + 1, refused_at=tokens)
        if history.refusals >= MAX_REFUSALS:
            return Next.EXHAUSTED, history
    if tokens == 0:
        return Next.RESTART, history
    if resumable:
        return Next.RESUME, history
    if restartable:
        return Next.RESTART, replace(history, refused_at=0)
    return Next.INEXACT, history


@dataclass(slots=True)
class Quarantine:
    """Requests that are answered by no replica for a while, because two died of them. At most `size`, the oldest go."""

    keep_s: float = 300.0
    size: int = 1000
    _until: dict[bytes, float] = field(default_factory=dict[bytes, float])

    def __bool__(self) -> bool:
        return bool(self._until)

    def add(self, key: bytes, now: float) -> None:
        self._until.pop(key, None)
        self._until[key] = now + self.keep_s
        if len(self._until) > self.size:
            del self._until[next(iter(self._until))]

    def holds(self, key: bytes, now: float) -> bool:
        for old in [k for k, until in self._until.items() if until <= now]:
            del self._until[old]
        return key in self._until


_Slot = tuple[float, int]  # its begin, and the streams in it


@dataclass(slots=True)
class Budget:
    """Bounds the moves of streams within a window: as many as `share` of the streams carried in it, and `floor` more.

    A share of 1 lets every stream move once; what moves again and again is a storm, and is not fed.
    """

    share: float = 1.0
    floor: int = 100
    window_s: float = 60.0
    _carried: deque[_Slot] = field(default_factory=deque[_Slot])
    _moved: deque[_Slot] = field(default_factory=deque[_Slot])

    def carried(self, now: float, streams: int = 1) -> None:
        """Streams were admitted at `now`."""
        self._add(self._carried, now, streams)

    def take(self, now: float, running: int) -> bool:
        """Whether one more stream may move, which then counts. `running`: streams that the proxy has at `now`."""
        moved = self._count(self._moved, now)
        if moved >= self.floor + self.share * max(running, self._count(self._carried, now)):
            return False
        self._add(self._moved, now, 1)
        return True

    def _add(self, slots: deque[_Slot], now: float, n: int) -> None:
        if slots and now < slots[-1][0] + self.window_s / 12:
            slots[-1] = (slots[-1][0], slots[-1][1] + n)
        else:
            slots.append((now, n))

    def _count(self, slots: deque[_Slot], now: float) -> int:
        while slots and slots[0][0] <= now - self.window_s:
            slots.popleft()
        return sum(n for _, n in slots)
