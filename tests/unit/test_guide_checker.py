"""Whose form is tried when, and which are not tried at all. A stand-in for the process that tries them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from headrace.core.streams import Guide, Sampling
from headrace.replica.engine import EngineRequest
from headrace.replica.engines import guide_checker
from headrace.replica.engines.guide_checker import MAX_WAITING_OF_ONE, GuideChecker

WAIT_S = 30.0


class Trials:
    """All processes: each form waits here until it is let go, or its process is killed."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.begun: list[str] = []
        self.free: set[str] = set()
        self.killed = 0
        self.all_free = False

    def let(self, *values: str) -> None:
        with self.changed:
            self.free.update(values)
            self.changed.notify_all()

    def until(self, condition: Callable[[], object]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, WAIT_S)

    def new(self) -> Any:
        trials = self

        class Trial:
            dead = False

            def ask(self, terms: Mapping[str, str], limit_s: float) -> str | None:
                [value] = terms.values()
                with trials.changed:
                    trials.begun.append(value)
                    trials.changed.notify_all()
                    assert trials.changed.wait_for(lambda: value in trials.free or self.dead, WAIT_S)
                    return None if self.dead else ""

            def kill(self) -> None:
                with trials.changed:
                    self.dead = True
                    trials.killed += 1
                    trials.changed.notify_all()

            def end(self) -> None:
                pass

        return Trial()


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Trials:
    made = Trials()
    monkeypatch.setattr(guide_checker, "Trial", made.new)
    return made


class Done:
    def __init__(self, trials: Trials) -> None:
        self.said: dict[int, tuple[str, str]] = {}
        self._trials = trials

    def __call__(self, request: EngineRequest, why: str, kind: str) -> None:
        with self._trials.changed:
            assert request.id not in self.said, "once"
            self.said[request.id] = why, kind
            self._trials.changed.notify_all()


@pytest.fixture
def done(trials: Trials) -> Done:
    return Done(trials)


@pytest.fixture
def checker(done: Done) -> Iterator[GuideChecker]:
    made = GuideChecker(done, 5.0)
    yield made
    made.close()


def ask(number: int, value: str, caller: str = "", kind: Any = "regex") -> EngineRequest:
    return EngineRequest(number, [1], 1, Sampling(), guide=Guide(kind, value), caller=caller)


def test_what_nobody_waits_for_is_not_tried(checker: GuideChecker, trials: Trials, done: Done) -> None:
    for i in range(16):
        checker.check(ask(i, f"bomb{i}"))
    trials.until(lambda: trials.begun == ["bomb0"])
    for i in range(16):
        checker.cancel(i)
    trials.let("good")
    checker.check(ask(99, "good"))
    trials.until(lambda: 99 in done.said)
    assert trials.begun == ["bomb0", "good"]
    assert trials.killed >= 1
    assert done.said == {99: ("", "invalid_request")}


def test_a_form_that_was_given_up_can_be_asked_for_again(checker: GuideChecker, trials: Trials, done: Done) -> None:
    checker.check(ask(1, "a"))
    trials.until(lambda: trials.begun == ["a"])
    checker.cancel(1)
    checker.check(ask(2, "a"))
    trials.let("a")
    trials.until(lambda: 2 in done.said)
    assert done.said[2] == ("", "invalid_request"), "the trial that was given up says nothing of it"
    checker.check(ask(3, "a"))
    assert done.said[3] == ("", "invalid_request"), "what is known needs no trial"
    assert trials.begun == ["a", "a"]


def test_each_caller_has_its_turn(checker: GuideChecker, trials: Trials, done: Done) -> None:
    for i in range(4):
        checker.check(ask(i, f"mine{i}", "greedy"))
    checker.check(ask(9, "other", "modest"))
    trials.let("mine0", "mine1", "mine2", "mine3", "other")
    trials.until(lambda: len(done.said) == 5)
    assert trials.begun.index("other") <= 2


def test_quick_kinds_do_not_wait_for_slow_ones(checker: GuideChecker, trials: Trials, done: Done) -> None:
    for i in range(3):
        checker.check(ask(i, f"slow{i}"))
    trials.let("yes|no")
    checker.check(ask(9, '["yes", "no"]', kind="choices"))
    trials.until(lambda: 9 in done.said)
    assert set(done.said) == {9}


def test_there_is_room_for_so_many(checker: GuideChecker, trials: Trials, done: Done) -> None:
    checker.check(ask(0, "first", "greedy"))
    trials.until(lambda: trials.begun == ["first"])
    for i in range(1, MAX_WAITING_OF_ONE + 2):
        checker.check(ask(i, f"form{i}", "greedy"))
    assert [(i, kind) for i, (_, kind) in done.said.items()] == [(MAX_WAITING_OF_ONE + 1, "overloaded")]
    for i in range(1000, 1200):
        checker.check(ask(i, "first", "greedy"))  # n answers of one form are one form
    checker.check(ask(2000, "mine", "modest"))
    assert len(done.said) == 1
    trials.let("first")
    trials.until(lambda: 1199 in done.said)
