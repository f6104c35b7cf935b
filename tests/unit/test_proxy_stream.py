"""A stream ends exactly once and holds its place at a replica exactly as long as it runs there, whatever happens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.types import Endpoint, Failure, ReplicaId, Sampling, Submit, TextPrompt
from headrace.errors import HeadraceError, ReplicaGone
from headrace.metrics import Tally
from headrace.proxy.extras import PromptLogprobs
from headrace.proxy.session import Session
from headrace.proxy.stream import MAX_DEATHS, MAX_TRIES, Stream, fan_out


@dataclass
class FakeSession:
    """A session as a stream sees it."""

    endpoint: Endpoint
    ready: bool = True
    live: dict[int, Stream] = field(default_factory=dict)
    submitted: int = 0
    adapters: list[str] = field(default_factory=list)
    aborted: int = 0

    def submit(self, submit: Submit, receiver: Stream) -> int:
        if not self.ready:
            raise ReplicaGone("not there")
        self.submitted += 1
        self.adapters.append(submit.adapter)
        self.live[self.submitted] = receiver
        return self.submitted

    def abort(self, number: int) -> None:
        assert number in self.live
        del self.live[number]
        self.aborted += 1


@dataclass
class Recorder:
    text: str = ""
    done: int = 0
    extras: list[Any] = field(default_factory=list)

    def delta(self, index: int, text: str, logprobs: Any) -> None:
        assert not self.done
        self.text += text

    def extra(self, index: int, item: Any) -> None:
        assert not self.done
        self.extras.append(item)

    def choice_done(self, index: int, reason: str) -> None:
        self.done += 1

    def waiting(self, what: str) -> None: ...


EVENTS = ["place", "place-dead", "started", "token", "token", "token", "skip", "stop", "error", "abort-by-replica"]
EVENTS += ["reject-draining", "reject-adapter", "reject-bad", "gone", "broken", "end"]


@given(st.lists(st.sampled_from(EVENTS), max_size=40))
def test_any_story_ends_once_and_leaves_nothing_behind(story):
    sink, tally = Recorder(), Tally()
    changes: list[bool] = []
    stream = Stream(0, Submit(0, "id", TextPrompt("x")), sink, tally, lambda: changes.append(stream.done))
    sessions: list[FakeSession] = []
    sent = 0

    def here() -> FakeSession | None:
        return next((s for s in sessions if s.live), None)

    def leave() -> Stream:
        """What a session does before its last word to a stream."""
        session = here()
        assert session is not None
        return session.live.popitem()[1]

    for event in story:
        ended = stream.done, stream.reason, stream.error
        if event.startswith("place"):
            if stream.needs_replica:
                session = FakeSession(Endpoint(ReplicaId(f"r{len(sessions)}"), ""), event == "place")
                sessions.append(session)
                stream.place(cast("Session", session))
        elif event == "end":
            stream.end("abort")
        elif here() is not None:
            if event == "started":
                stream.started(5, "echo")
                stream.extra(PromptLogprobs(()))
            elif event in ("token", "skip"):
                stream.delta(1.0, stream.tokens + (event == "skip"), 1, f"{sent},", None)
                sent += event == "token"
            elif event == "stop":
                leave().finished("stop", 0, None)
            elif event == "error":
                leave().finished("error", 0, Failure("internal", "x"))
            elif event == "abort-by-replica":
                leave().finished("abort", 0, None)
            elif event == "reject-draining":
                leave().rejected(Failure("draining", "x"))
            elif event == "reject-adapter":
                leave().rejected(Failure("not_loaded", "x"))
            elif event == "reject-bad":
                leave().rejected(Failure("invalid_request", "x"))
            elif event == "gone":
                leave().gone(ReplicaGone("x"))
            elif event == "broken":
                leave().gone(HeadraceError("x"))
        if ended[0]:
            assert (stream.done, stream.reason, stream.error) == ended  # the first end is the end
        # Exactly one of: waiting for a replica, at one replica, done.
        assert [stream.needs_replica, here() is not None, stream.done].count(True) == 1
        assert sum(len(s.live) for s in sessions) <= 1
    assert len(sink.extras) == len(set(map(type, sink.extras))), "the prompt is not told again by another replica"

    assert len(stream.tried) <= MAX_TRIES
    assert stream.deaths <= MAX_DEATHS
    assert sink.text == "".join(f"{i}," for i in range(stream.tokens))
    assert sink.done == (stream.reason == "stop")
    assert (stream.error is None) == (stream.reason in (None, "stop", "abort"))
    assert changes.count(True) == stream.done
    stream.end("abort")
    assert here() is None


def test_tries_are_bounded():
    stream = Stream(0, Submit(0, "id", TextPrompt("x")), Recorder(), Tally(), lambda: None)
    tries = 0
    while stream.needs_replica:
        session = FakeSession(Endpoint(ReplicaId(f"r{tries}"), ""))
        stream.place(cast("Session", session))
        session.live.popitem()[1].rejected(Failure("draining", "Draining."))
        tries += 1
    assert tries == MAX_TRIES
    assert stream.error
    assert stream.error.kind == "draining"


def test_an_adapter_that_one_replica_lacks_is_looked_for_at_another():
    stream = Stream(0, Submit(0, "id", TextPrompt("x")), Recorder(), Tally(), lambda: None)
    lacks, has = FakeSession(Endpoint(ReplicaId("r1"), "")), FakeSession(Endpoint(ReplicaId("r2"), ""))
    stream.place(cast("Session", lacks), "a")
    lacks.live.popitem()[1].rejected(Failure("not_loaded", "No such adapter here."))
    assert stream.needs_replica
    stream.place(cast("Session", has), "a")
    assert (lacks.adapters, has.adapters, stream.deaths) == (["a"], ["a"], 0)


@given(st.integers(0, 2**64 - 1), st.integers(0, 15))
def test_every_choice_has_its_own_seed(seed, index):
    submit = Submit(0, "id", TextPrompt("x"), Sampling(seed=seed))
    assert fan_out(submit, index).sampling.seed == (seed + index) % 2**64
    assert fan_out(Submit(0, "id", TextPrompt("x")), index).sampling.seed is None
