"""The simulated model and engine: what tests and the fault checker rely on."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import simulated
from headrace.core.streams import Guide, Sampling
from headrace.core.types import Load, ModelSpec
from headrace.errors import HeadraceError, UserError
from headrace.replica.engine import EngineRequest, Row, Step
from headrace.replica.engines.simulated import SimulatedEngine

SPEC = ModelSpec("builtin:demo")
prompts = st.lists(st.integers(0, simulated.VOCAB_SIZE - 1), min_size=1, max_size=20)


@given(st.text(max_size=60))
def test_the_tokenizer_is_reversible(text: str) -> None:
    assert simulated.decode(simulated.encode(text)) == text


@given(st.lists(st.sampled_from(simulated.WORDS), max_size=8))
def test_words_are_single_tokens(words: list[str]) -> None:
    ids = simulated.encode("".join(words))
    assert simulated.decode(ids) == "".join(words)
    assert len(ids) <= len(words)


@given(prompts, st.integers(0, 2**64 - 1), st.integers(0, 200))
def test_a_token_depends_on_nothing_but_prompt_seed_and_index(prompt: list[int], seed: int, count: int) -> None:
    whole = simulated.answer(prompt, seed, 200)
    assert simulated.answer(prompt, seed, count) == whole[:count]
    assert whole != simulated.answer(prompt, seed ^ 1, 200)
    assert whole != simulated.answer([*prompt, 0], seed, 200)
    assert simulated.EOS_ID not in whole
    text = simulated.decode(whole)
    assert "\ufffd" not in text
    assert any(e in text for e in simulated.EMOJI), "characters are split over tokens"


def test_the_function_never_changes() -> None:
    """Replicas of two versions may share a stream, and recorded runs are checked later."""
    assert simulated.answer([1, 2, 3], None, 9) == simulated.answer([1, 2, 3], 0, 9)
    assert simulated.answer([1, 2, 3], 0, 9) == GOLDEN


GOLDEN = [262, 284, 267, 268, 240, 159, 143, 158, 261]


class Driver:
    """Collects what an engine says."""

    def __init__(self, spec: ModelSpec = SPEC, **options: Any) -> None:
        self.engine = SimulatedEngine({"step_s": 0.0, **options}, spec, lambda *_: None)
        self.steps: queue.Queue[Step] = queue.Queue()
        self.rows: dict[int, list[Row]] = {}
        self.last = Load()
        self.engine.start(self.steps.put, pytest.fail)

    def ask(
        self,
        number: int,
        prompt: list[int],
        max_tokens: int,
        delivered: int = 0,
        guide: Guide | None = None,
        **sampling: Any,
    ) -> None:
        self.rows[number] = []
        s = Sampling(**sampling)
        self.engine.submit(EngineRequest(number, prompt, max_tokens, s, (), delivered, guide=guide))

    def until_over(self, *numbers: int) -> None:
        while not all(self.rows[n] and self.rows[n][-1].finish for n in numbers):
            self.step()

    def step(self) -> None:
        step = self.steps.get(timeout=30)
        self.last = step.load
        for row in step.rows:
            assert not (self.rows[row.id] and self.rows[row.id][-1].finish), "nothing follows the end"
            self.rows[row.id].append(row)

    def tokens(self, number: int) -> list[int]:
        return [t for row in self.rows[number] for t in row.tokens]


@pytest.fixture
def drive() -> Iterator[Any]:
    drivers: list[Driver] = []

    def make(**options: Any) -> Driver:
        drivers.append(Driver(**options))
        return drivers[-1]

    yield make
    for d in drivers:
        d.engine.close()


def test_many_requests_each_with_its_own_answer(drive: Any) -> None:
    d = drive(max_running=3)
    for n in range(1, 11):
        d.ask(n, [n], 12, seed=n, ignore_eos=True)
    d.until_over(*range(1, 11))
    for n in range(1, 11):
        assert d.tokens(n) == simulated.answer([n], n, 12)
        assert d.rows[n][-1].finish == "length"
    assert (d.last.running, d.last.waiting, d.last.kv_usage, d.last.tokens_total) == (0, 0, 0.0, 120)


def test_the_answer_ends_by_itself_unless_told_otherwise(drive: Any) -> None:
    d = drive(answer_tokens=5)
    d.ask(1, [1], 100)
    d.ask(2, [1], 100, min_tokens=9)
    d.ask(3, [1], 100, ignore_eos=True)
    d.until_over(1, 2, 3)
    assert [(len(d.tokens(n)), d.rows[n][-1].finish) for n in (1, 2, 3)] == [(5, "stop"), (9, "stop"), (100, "length")]


@pytest.mark.parametrize("sampling", [{"ignore_eos": True}, {"min_tokens": 9}])
def test_a_form_ends_where_it_ends(drive: Any, sampling: dict[str, Any]) -> None:
    d = drive()
    d.ask(1, [1], 100, guide=Guide("choices", '["a", "b"]'), **sampling)
    d.ask(2, [1], 100, guide=Guide("choices", '["a", "b"]'))
    d.until_over(1, 2)
    assert "cannot have ignore_eos or min_tokens" in d.rows[1][-1].error
    assert d.rows[1][-1].kind == "invalid_request"
    assert simulated.decode(d.tokens(2)) in ("a", "b")


def test_an_answer_with_reasoning_ends_no_sooner_than_asked(drive: Any) -> None:
    d = drive(spec=replace(SPEC, reasoning_parser="simulated"))
    for n, how in ((1, {}), (2, {"min_tokens": 60}), (3, {"ignore_eos": True})):
        d.ask(n, [1], 100, **how)
    d.until_over(1, 2, 3)
    assert len(d.tokens(1)) < 60 == len(d.tokens(2)) < len(d.tokens(3)) == 100


def test_a_resumed_request_goes_on(drive: Any) -> None:
    d = drive(answer_tokens=20)
    whole = simulated.answer([4, 2], 1, 20)
    d.ask(1, [4, 2, *whole[:7]], 100, delivered=7, seed=1)
    d.until_over(1)
    assert d.tokens(1) == whole[7:]


def test_text_of_ones_own(drive: Any) -> None:
    d = drive(text="ab", answer_tokens=5)
    d.ask(1, [1], 100)
    d.until_over(1)
    assert simulated.decode(d.tokens(1)) == "ababa"


def test_aborts_always_end_with_a_row(drive: Any) -> None:
    d = drive(max_running=1, ttft_s=3600.0)
    d.ask(1, [1], 9)
    d.ask(2, [1], 9)
    d.engine.abort(2)
    d.until_over(2)
    assert d.engine.load() == d.last
    assert d.last.running + d.last.waiting == 1
    d.engine.abort(77)


def test_kv_space_is_reserved_and_returned(drive: Any) -> None:
    d = drive(kv_tokens=30)
    d.ask(1, [1] * 10, 15, ignore_eos=True)
    d.ask(2, [2] * 10, 15, ignore_eos=True)
    d.ask(3, [3] * 31, 1)
    d.until_over(1, 2, 3)
    first_end = next(i for i, r in enumerate(d.rows[1]) if r.finish)
    assert first_end == 14
    assert d.rows[3][-1].finish == "error"
    assert d.last.kv_usage == 0.0


def test_a_long_prompt_takes_steps(drive: Any) -> None:
    d = drive(prefill_chunk=10)
    d.ask(1, [1] * 95, 1)
    d.until_over(1)
    assert d.last.step >= 10


def test_logprobs(drive: Any) -> None:
    d = drive()
    d.ask(1, [1], 3, logprobs=2)
    d.until_over(1)
    assert all(len(r.logprobs) == 1 and len(r.logprobs[0][1]) == 2 for r in d.rows[1])


def test_failures_to_load() -> None:
    with pytest.raises(UserError, match="broken"):
        SimulatedEngine({"fail_load": "broken", "permanent": True}, SPEC, lambda *_: None)
    with pytest.raises(HeadraceError, match="broken") as e:
        SimulatedEngine({"fail_load": "broken"}, SPEC, lambda *_: None)
    assert not isinstance(e.value, UserError)
    with pytest.raises(UserError, match="no option 'steps'"):
        SimulatedEngine({"steps": 1}, SPEC, lambda *_: None)
    with pytest.raises(UserError, match="must be a int"):
        SimulatedEngine({"kv_tokens": True}, SPEC, lambda *_: None)
