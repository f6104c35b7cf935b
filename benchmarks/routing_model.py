"""What the simulation of routing is of: requests as they come, and replicas with a prefix cache.

The engine steps batches continuously, takes prompts in by chunks, and its cache of blocks forgets the least recently
used.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random

from headrace.core.types import Load, ReplicaId
from headrace.replica.prefixes import Prefixes as Held

BLOCK = 64  # tokens of a block of 256 bytes


@dataclass(frozen=True)
class Engine:
    """About a model of 8 billion weights on one large GPU."""

    step_s: float = 0.008  # of a step that does nothing but read the weights
    decode_s: float = 0.00004  # more for each sequence
    prefill_s: float = 0.00006  # more for each prompt token
    budget: int = 2048  # tokens of a step
    max_running: int = 128
    kv_tokens: int = 160_000


@dataclass(slots=True)
class Request:
    at: float
    blocks: tuple[int, ...]
    answer: int
    session: Session | None = None
    proxy: int = 0
    number: int = 0
    unread: int = 0
    cached: int = 0
    leaf: int = 0

    @property
    def tokens(self) -> int:
        return len(self.blocks) * BLOCK


@dataclass(slots=True)
class Session:
    """A conversation: each turn is all that was said before and a little more."""

    blocks: tuple[int, ...]
    turns: int


class Workload:
    """Requests as they come. `follow(request, now)`: what its answer leads to."""

    def __init__(self, kind: str, rate: float, random: Random) -> None:
        self.kind, self.rate, self.random = kind, rate, random
        self._fresh = itertools.count(1)
        draw = self.random
        if kind == "shared prompts":  # long instructions, of many applications
            self._prompts = [self._new(draw.randint(16, 64)) for _ in range(400)]
            self._weights = [1 / (i + 1) ** 1.1 for i in range(400)]
        elif kind == "chat":
            self._prompts = [self._new(draw.randint(2, 16)) for _ in range(50)]
            self._weights = [1 / (i + 1) for i in range(50)]
        elif kind == "long answers":  # where there is little to save
            self._prompts = [self._new(draw.randint(2, 8)) for _ in range(100)]
            self._weights = [1 / (i + 1) for i in range(100)]
        else:
            self._prompts, self._weights = [self._new(64)], [1.0]

    def _new(self, n: int) -> tuple[int, ...]:
        return tuple(next(self._fresh) for _ in range(n))

    def arrivals(self, until: float) -> Iterator[Request]:
        now, draw = 0.0, self.random
        turns = 5.0 if self.kind == "chat" else 1.0
        while (now := now + draw.expovariate(self.rate / turns)) < until:
            begin = draw.choices(self._prompts, self._weights)[0]
            if self.kind == "chat":
                session = Session(begin, 1 + min(12, int(draw.expovariate(1 / 4.5))))
                yield self._turn(session, now)
            elif self.kind == "nothing shared" or (self.kind == "hot spot" and draw.random() > 0.8):
                yield Request(now, self._new(draw.randint(4, 32)), draw.randint(40, 200))
            elif self.kind == "long answers":
                yield Request(now, begin + self._new(draw.randint(1, 4)), draw.randint(200, 1000))
            else:
                yield Request(now, begin + self._new(draw.randint(1, 4)), draw.randint(40, 200))

    def _turn(self, session: Session, now: float) -> Request:
        says = max(1, int(self.random.lognormvariate(0.7, 0.9)))
        session.blocks += self._new(says)
        session.turns -= 1
        return Request(now, session.blocks, self.random.randint(60, 300), session)

    def follow(self, r: Request, now: float) -> Request | None:
        if r.session is None or not r.session.turns:
            return None
        r.session.blocks += self._new(max(1, r.answer // BLOCK))
        return self._turn(r.session, now + self.random.expovariate(1 / 6.0))


class Replica:
    """One engine, its prefix cache, and its report of it to the proxies."""

    def __init__(self, number: int, engine: Engine, proxies: int) -> None:
        self.id = ReplicaId(f"r{number}")
        self.engine = engine
        self.waiting: deque[Request] = deque()
        self.prefill: list[Request] = []
        self.ends: list[tuple[int, int, Request]] = []  # (step, number, request): those that make tokens
        self.step = 0
        self.stepping = False
        self.used = 0
        self._cache: OrderedDict[int, None] = OrderedDict()
        self.news: list[dict[int, bool]] = [{} for _ in range(proxies)]
        self._held = Held(engine.kv_tokens, self._tell)

    def _tell(self, changes: Mapping[int, bool]) -> None:
        for news in self.news:
            news.update(changes)

    def load(self) -> Load:
        running = len(self.prefill) + len(self.ends)
        usage = min(1.0, self.used / self.engine.kv_tokens)
        return Load(running, len(self.waiting), usage, self.step, max_running=self.engine.max_running)

    def take(self, r: Request) -> None:
        r.leaf = self._held.took(r.blocks, r.tokens)
        self.waiting.append(r)

    def begin_step(self) -> float:
        """Admit and prefill; how long the step takes."""
        e = self.engine
        while self.waiting and len(self.prefill) + len(self.ends) < e.max_running:
            r = self.waiting[0]
            if self.used + r.tokens + r.answer > e.kv_tokens:
                break
            self.waiting.popleft()
            self.used += r.tokens + r.answer
            r.cached = self._find(r.blocks)
            r.unread = max(1, r.tokens - r.cached)
            self.prefill.append(r)
        budget = left = max(0, e.budget - len(self.ends))
        for r in self.prefill:
            taken = min(r.unread, left)
            r.unread -= taken
            left -= taken
        took = e.step_s + e.decode_s * len(self.ends) + e.prefill_s * (budget - left)
        return took

    def end_step(self) -> tuple[list[Request], list[Request]]:
        """Those that have their first token now, and those that have their last."""
        self.step += 1
        first = [r for r in self.prefill if not r.unread]
        if first:
            self.prefill = [r for r in self.prefill if r.unread]
            for r in first:
                self._keep(r.blocks)
                heapq.heappush(self.ends, (self.step + r.answer - 1, r.number, r))
        last: list[Request] = []
        while self.ends and self.ends[0][0] <= self.step:
            r = heapq.heappop(self.ends)[2]
            self.used -= r.tokens + r.answer
            self._held.grew(r.leaf, r.answer)
            last.append(r)
        return first, last

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.prefill or self.ends)

    def _find(self, blocks: tuple[int, ...]) -> int:
        found = 0
        for b in blocks:
            if b not in self._cache:
                break
            found += BLOCK
        return found

    def _keep(self, blocks: tuple[int, ...]) -> None:
        for b in reversed(blocks):
            self._cache.pop(b, None)
            self._cache[b] = None
        most = (self.engine.kv_tokens - self.used // 2) // BLOCK  # about half of what runs are answers and new prompts
        while len(self._cache) > most:
            self._cache.popitem(last=False)
