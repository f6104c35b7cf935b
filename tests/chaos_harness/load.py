"""Open-loop load: requests come by a Poisson process at a rate, whatever becomes of those before."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from chaos_harness.client import Exchange, Seen, exchange, exchange_returning
from chaos_harness.history import Recorder

_SUBJECTS = ("water", "wheels", "the head of a mill", "learning machines", "größere Modelle", "日本語", "rivers 🌊")


@dataclass(frozen=True)
class Mix:
    """Shares of the kinds of requests; the rest is what is not named."""

    streaming: float = 0.85
    chat: float = 0.6
    short: float = 0.1
    long: float = 0.1
    leaves: float = 0.05
    slow: float = 0.04
    returns: float = 0.3  # of those that stream
    seeded: float = 0.5
    usage: float = 0.5
    prompts: tuple[str, ...] = ()  # only these, decoded greedily, each as long as one of `lengths`
    lengths: tuple[int, ...] = (20, 90)
    endless: tuple[int, ...] = ()  # those of `lengths` that are reached whatever the model says


@dataclass(frozen=True)
class Ask:
    """One request."""

    id: str
    model: str
    api: str  # chat, completions
    stream: bool
    prompt: str
    seed: int | None
    max_tokens: int
    mood: str = "steady"  # steady, leaves, slow, returns (when its proxy is lost); baseline: before anything is broken
    leaves_after: int = 0  # characters
    usage: bool = False
    greedy: bool = False
    ignore_eos: bool = False

    def body(self) -> dict[str, Any]:
        asked: dict[str, Any] = {"model": self.model, "max_tokens": self.max_tokens, "stream": self.stream}
        if self.api == "chat":
            asked["messages"] = [{"role": "user", "content": self.prompt}]
        else:
            asked["prompt"] = self.prompt
        if self.greedy:
            asked["temperature"] = 0
        if self.ignore_eos:
            asked["ignore_eos"] = True
        if self.seed is not None:
            asked["seed"] = self.seed
        if self.stream and self.usage:
            asked["stream_options"] = {"include_usage": True}
        return asked


def draw(rng: random.Random, number: int, models: tuple[str, ...], mix: Mix) -> Ask:
    """A request at random, the same for the same state of `rng`."""
    length = rng.random()
    if length < mix.short:
        tokens = rng.randint(1, 24)
    elif length < mix.short + mix.long:
        tokens = rng.randint(220, 380)
    else:
        tokens = rng.randint(60, 200)
    prompt = f"{number}: Tell me about {rng.choice(_SUBJECTS)}." + " and so on" * rng.randint(0, 40)
    seed = rng.getrandbits(32) if rng.random() < mix.seeded else None
    if mix.prompts:
        prompt, tokens, seed = rng.choice(mix.prompts), rng.choice(mix.lengths), None
    mood = rng.random()
    stream = rng.random() < mix.streaming
    return Ask(
        id=f"c{number}",
        model=rng.choice(models),
        api="chat" if rng.random() < mix.chat else "completions",
        stream=stream,
        prompt=prompt,
        seed=seed,
        max_tokens=tokens,
        mood=_mood(mood, stream, mix),
        leaves_after=rng.randint(1, 200),
        usage=rng.random() < mix.usage,
        greedy=bool(mix.prompts),
        ignore_eos=tokens in mix.endless,
    )


def _mood(drawn: float, stream: bool, mix: Mix) -> str:
    if drawn < mix.leaves:
        return "leaves"
    if stream and drawn < mix.leaves + mix.slow:
        return "slow"
    return "returns" if stream and drawn < mix.leaves + mix.slow + mix.returns else "steady"


def baseline(models: tuple[str, ...], mix: Mix) -> list[Ask]:
    """Every request that `draw` can make of a mix with fixed prompts."""
    kinds = itertools.product(models, ("chat", "completions"), mix.prompts, mix.lengths)
    return [
        Ask(f"b{i}", m, a, False, p, None, n, "baseline", greedy=True, ignore_eos=n in mix.endless)
        for i, (m, a, p, n) in enumerate(kinds)
    ]


@dataclass
class Load:
    """Asks at `rate` a second until told to stop; then waits for what is under way."""

    address: tuple[str, int]
    models: tuple[str, ...]
    rate: float
    seed: int
    recorder: Recorder
    mix: Mix = field(default_factory=Mix)
    started: int = 0
    states: Counter[str] = field(default_factory=Counter)
    under_way: dict[str, Ask] = field(default_factory=dict)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """The arrivals of the past are made up for, so that a busy moment does not lower the rate."""
        rng = random.Random(f"load {self.seed}")
        due = self.recorder.now()
        async with asyncio.TaskGroup() as tasks:
            while not self.stopping.is_set():  # what is overdue does not wait, and would not see it
                due += rng.expovariate(self.rate)
                try:
                    await asyncio.wait_for(self.stopping.wait(), max(0.0, due - self.recorder.now()))
                    return
                except TimeoutError:
                    self.started += 1
                    tasks.create_task(self.one(draw(rng, self.started, self.models, self.mix), rng.random()))

    async def one(self, ask: Ask, chance: float) -> Seen:
        """Ask, and write down what comes of it."""
        told = {k: getattr(ask, k) for k in ("model", "api", "stream", "prompt", "seed", "max_tokens", "mood")}
        self.recorder.write("clients", "start", id=ask.id, **told)
        self.under_way[ask.id] = ask
        path = "/v1/chat/completions" if ask.api == "chat" else "/v1/completions"
        loop = asyncio.get_running_loop()

        def on_piece(e: Exchange) -> None:
            if ask.mood == "leaves" and len(e.seen.text) >= ask.leaves_after:
                e.leave()
            elif ask.mood == "slow" and len(e.seen.pieces) % 20 == 10 and e.transport:
                e.transport.pause_reading()
                loop.call_later(0.3 + 2 * chance, e.transport.resume_reading)

        clock = self.recorder.now
        follow = exchange_returning if ask.mood == "returns" else exchange
        asking = asyncio.ensure_future(follow(self.address, path, ask.body(), ask.id, clock, on_piece))
        if ask.mood == "leaves" and not ask.stream:  # it sees no piece that it could leave at
            done, _ = await asyncio.wait({asking}, timeout=3 * chance)
            if not done:
                asking.cancel()
        try:
            seen = await asking
        except asyncio.CancelledError:
            seen = Seen(status="cancelled")
        del self.under_way[ask.id]
        self.states[seen.status] += 1
        pieces = [(round(t, 3), n, moves) for t, n, moves in seen.pieces]
        places = sorted(seen.places) == seen.places
        seen_of_it = ("http", "text", "finishes", "done", "after_end", "error", "tokens", "why", "returns")
        more = {k: getattr(seen, k) for k in seen_of_it}
        self.recorder.write("clients", "end", id=ask.id, status=seen.status, pieces=pieces, in_order=places, **more)
        return seen
