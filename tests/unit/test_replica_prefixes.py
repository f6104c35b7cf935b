"""A replica's model of its engine's prefix cache."""

from __future__ import annotations

import queue
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.streams import Sampling
from headrace.core.types import ModelSpec
from headrace.replica.engine import EngineRequest, Step
from headrace.replica.engines.simulated import SimulatedEngine
from headrace.replica.engines.simulated_cache import BLOCK_TOKENS, SimulatedCache
from headrace.replica.prefixes import Prefixes

# A tree of prompts: a block's number says which path leads to it.
paths = st.lists(st.integers(0, 2), max_size=6).map(lambda p: tuple(_key(p[: i + 1]) for i in range(len(p))))


def _key(path: list[int]) -> int:
    return int("1" + "".join(map(str, path)), 4)


def parent(block: int) -> int:
    return block // 4


class Heard:
    """What a proxy makes of the news."""

    def __init__(self) -> None:
        self.held: set[int] = set()

    def __call__(self, changes: Mapping[int, bool]) -> None:
        for block, held in changes.items():
            (self.held.add if held else self.held.discard)(block)


@given(
    st.lists(st.tuples(paths, st.integers(1, 60), st.integers(0, 30)), max_size=40),
    st.integers(1, 150),
    st.integers(1, 9),
)
def test_bounded_prefix_closed_and_told(taken, capacity, most):
    heard = Heard()
    p = Prefixes(capacity, heard, most)
    for blocks, tokens, answer in taken:
        p.grew(p.took(blocks, tokens), answer)
        held = set(p.held())
        assert held == heard.held
        assert len(held) <= most
        assert all(parent(b) in held for b in held if parent(b) > 1)
        assert p._total <= capacity or not p._tokens


def test_the_least_recent_prompt_goes_and_of_it_the_end_first():
    heard = Heard()
    p = Prefixes(100, heard)
    p.took((1, 2, 3), 60)
    p.took((8, 9), 40)
    assert heard.held == {1, 2, 3, 8, 9}
    p.took((1, 2), 40)
    p.took((7,), 20)  # (8, 9) was used before (1, 2), and 3 before that
    assert heard.held == {1, 2, 8, 9, 7}
    p.took((6,), 20)
    assert heard.held == {1, 2, 8, 7, 6}


def test_answers_and_prompts_without_blocks_take_room():
    heard = Heard()
    p = Prefixes(100, heard)
    leaf = p.took((1,), 10)
    p.took((), 50)
    assert heard.held == {1}
    p.grew(leaf, 30)
    assert heard.held == {1}
    p.took((), 50)
    assert heard.held == set()
    p.grew(leaf, 30)  # it is gone
    p.took((2,), 10)
    assert heard.held == {2}


# --- the simulated engine ---


def test_simulated_cache_finds_whole_blocks_and_forgets_the_oldest():
    cache = SimulatedCache(4 * BLOCK_TOKENS)
    one, two = list(range(40)), list(range(100, 140))
    assert cache.find("", one) == 0
    cache.add("", one, 0)
    assert cache.find("", [*one, 1, 2, 3]) == 2 * BLOCK_TOKENS
    assert cache.find("a", one) == 0
    assert cache.find("", one[: 2 * BLOCK_TOKENS]) == BLOCK_TOKENS  # never all of a prompt
    cache.add("", two, 0)
    assert cache.find("", one) == 2 * BLOCK_TOKENS
    cache.add("", list(range(200, 217)), BLOCK_TOKENS)  # one that runs leaves room for three blocks
    assert cache.find("", one) == 0
    assert cache.find("", two) == 2 * BLOCK_TOKENS
    assert (cache.queries, cache.hits) == (40 + 43 + 40 + 32 + 40 + 40 + 40, 16 * (2 + 1 + 2 + 2))


def ask(engine: SimulatedEngine, steps: queue.Queue[Step], number: int, prompt: list[int]) -> tuple[int, int]:
    """Steps until the first token, and tokens of the prompt that were cached."""
    engine.submit(EngineRequest(number, prompt, 4, Sampling(ignore_eos=True)))
    count, first = 0, 0
    while True:
        step = steps.get(timeout=20)
        count += 1
        for row in step.rows:
            first = first or count
            if row.finish:
                return first, row.cached_tokens


def test_simulated_engine_takes_in_only_what_is_not_cached():
    prompt = [i % 200 for i in range(1000)]
    for options, cached in (({}, 992), ({"prefix_cache": False}, 0)):
        engine = SimulatedEngine({"step_s": 0.0, "prefill_chunk": 100, **options}, ModelSpec("x"), lambda a, p: None)
        steps: queue.Queue[Step] = queue.Queue()
        engine.start(steps.put, lambda why: None)
        first, none = ask(engine, steps, 1, prompt)
        assert (first, none) == (10, 0)
        second, some = ask(engine, steps, 2, prompt)
        assert some == cached
        assert second == (1 if cached else 10)
        assert engine.prefix_tokens == (1_000_000 if cached else 0)
        assert engine.load().prefix_hit_tokens == cached
        engine.close()
