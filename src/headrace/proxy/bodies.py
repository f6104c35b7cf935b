"""How much all requests of this process hold together: bodies that come in, and prompts that are being answered."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from headrace.errors import Overloaded
from headrace.proxy.ticket import CALLER

FREE_BYTES = 64 * 1024
"""Of each body that nobody counts: what is usual goes on, however much others hold."""
_SLOW_AFTER_S = 2.0
_SLOW_BYTES_S = 64 * 1024


HELD = "headrace.held"  # the scope's key of what its request holds


class Held:
    """What one request holds, until `release`. `stop_reading`: called to end it, while its body is still coming."""

    def __init__(self, bodies: Bodies, caller: str, now: float) -> None:
        self._bodies = bodies
        self.caller = caller
        self.begun_at = now
        self.size = 0
        self.counted = 0
        self.stop_reading: Callable[[], None] | None = None
        self.stopped = False

    def set(self, size: int) -> None:
        """It holds so many bytes now. Overloaded if that is more than there is room for."""
        self.size = size
        counted = max(0, size - FREE_BYTES)
        if counted > self.counted:
            self._bodies.make_room(self, counted - self.counted)
        self.resize(counted)

    def resize(self, counted: int) -> None:
        self._bodies.count(self, counted - self.counted)
        self.counted = counted

    def release(self) -> None:
        """It is over. Idempotent."""
        self.stop_reading = None
        self.resize(0)
        self._bodies.forget(self)


def release(scope: Any) -> None:
    """A request is over."""
    if (held := scope.pop(HELD, None)) is not None:
        held.release()


class Bodies:
    """`limit_bytes`: the most that is held; one caller may have half of it.

    Where there is no room left, bodies that come so slowly that they only hold it give way to those that come.
    `large`: to be held while a large one is made into a request, which takes several times its size for a moment.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.large = asyncio.Lock()
        self.held_bytes = 0
        self._limit_bytes = limit_bytes
        self._by_caller: Counter[str] = Counter()
        self._all: dict[Held, None] = {}  # in the order in which they came
        self._clock = asyncio.get_running_loop().time

    def hold(self, scope: Any) -> Held:
        """What the request of this scope will hold; `release` gives it back when the request is over."""
        held = scope.get(HELD)
        if held is None:
            caller, client = scope.get(CALLER), scope.get("client")
            named = caller.name if caller and caller.name else str(client[0]) if client else ""
            held = scope[HELD] = self.begin(named)
        return held

    def begin(self, caller: str) -> Held:
        """A request of `caller` (a key's name, or an address) comes in."""
        held = Held(self, caller, self._clock())
        self._all[held] = None
        return held

    def forget(self, held: Held) -> None:
        self._all.pop(held, None)

    def count(self, held: Held, more: int) -> None:
        self.held_bytes += more
        self._by_caller[held.caller] += more
        if not self._by_caller[held.caller]:
            del self._by_caller[held.caller]

    def make_room(self, held: Held, more: int) -> None:
        """Overloaded if `more` bytes are too many, for all or for this caller, also without the slow ones."""
        if self._by_caller[held.caller] + more > self._limit_bytes // 2:
            self._end_slow(more, held, held.caller)
        if self._by_caller[held.caller] + more > self._limit_bytes // 2:
            raise Overloaded("Your other requests hold too much here: wait for one to end.", retry_after_s=1.0)
        if self.held_bytes + more > self._limit_bytes:
            self._end_slow(more, held)
        if self.held_bytes + more > self._limit_bytes:
            raise Overloaded("Too many large requests are held here: try again in a moment.", retry_after_s=1.0)

    def _end_slow(self, wanted: int, but: Held, caller: str | None = None) -> None:
        now = self._clock()
        for held in list(self._all):
            if wanted <= 0:
                return
            age = now - held.begun_at
            slow = age > _SLOW_AFTER_S and held.size < age * _SLOW_BYTES_S
            mine = caller is None or held.caller == caller
            if held is but or not (slow and mine and held.counted and held.stop_reading):
                continue
            wanted -= held.counted
            held.stopped = True
            held.stop_reading()
            held.release()
