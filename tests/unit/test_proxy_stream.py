"""A stream ends exactly once and holds its place at a replica exactly as long as it runs there, whatever happens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.failover import MAX_DEATHS, MAX_REFUSALS, PROVEN_BY
from headrace.core.streams import Failure, Guide, Sampling, Submit, TextPrompt
from headrace.core.types import Endpoint, Load, ReplicaId
from headrace.errors import HeadraceError, ReplicaGone
from headrace.metrics import Tally
from headrace.proxy.extras import PromptLogprobs
from headrace.proxy.place import Place
from headrace.proxy.session import Session
from headrace.proxy.stream import Stream, fan_out


@dataclass
class FakeSession:
    """A session as a stream sees it."""

    endpoint: Endpoint
    ready: bool = True
    fingerprint: str = "f"
    still_s: float = 0.5
    load: Load = field(default_factory=Load)
    live: dict[int, Stream] = field(default_factory=dict)
    submits: list[Submit] = field(default_factory=list)
    aborted: int = 0

    def submit(self, submit: Submit, receiver: Stream) -> int:
        if not self.ready:
            raise ReplicaGone("not there")
        self.submits.append(submit)
        self.live[len(self.submits)] = receiver
        return len(self.submits)

    def abort(self, number: int) -> None:
        assert number in self.live
        del self.live[number]
        self.aborted += 1

    def leave(self) -> Stream:
        """What a session does before its last word to a stream."""
        return self.live.popitem()[1]


@dataclass
class Recorder:
    """`keeps`: nothing has left the proxy, so that all can begin again."""

    keeps: bool = False
    text: str = ""
    done: int = 0
    restarts: int = 0
    extras: list[Any] = field(default_factory=list)

    def delta(self, index: int, text: str, logprobs: Any, place: Place | None = None) -> None:
        assert not self.done
        self.text += text

    def extra(self, index: int, item: Any, place: Place | None = None) -> None:
        assert not self.done
        self.extras.append(item)

    def choice_done(self, index: int, reason: str) -> None:
        self.done += 1

    def waiting(self, what: str) -> None: ...

    def restart(self, index: int) -> bool:
        if self.keeps:
            self.text = ""
            self.extras.clear()
            self.restarts += 1
        return self.keeps


def a_stream(guided: bool = False, keeps: bool = False, **more: Any) -> tuple[Stream, Recorder]:
    sink = Recorder(keeps)
    submit = Submit(0, "id", TextPrompt("x"), guide=Guide("json_object") if guided else None, echo=True)
    return Stream(0, submit, sink, Tally(), lambda: None, **more), sink


def placed(stream: Stream, name: str = "r") -> FakeSession:
    session = FakeSession(Endpoint(ReplicaId(name), ""))
    stream.place(cast("Session", session))
    return session


def feed(stream: Stream, n: int) -> None:
    for _ in range(n):
        stream.delta(1.0, stream.tokens, [stream.tokens], f"{stream.tokens},", None)


EVENTS = ["place", "place-dead", "started", "token", "token", "token", "skip", "stop", "error", "abort-by-replica"]
EVENTS += ["reject-draining", "reject-adapter", "reject-bad", "cannot-resume", "gone", "died", "broken", "end"]


@given(st.lists(st.sampled_from(EVENTS), max_size=60), st.booleans(), st.booleans())
def test_any_story_ends_once_and_leaves_nothing_behind(story, guided, keeps):
    sink = Recorder(keeps)
    changes: list[bool] = []
    submit = Submit(0, "id", TextPrompt("x"), guide=Guide("json_object") if guided else None)
    stream = Stream(0, submit, sink, Tally(), lambda: changes.append(stream.done))
    sessions: list[FakeSession] = []

    def here() -> FakeSession | None:
        return next((s for s in sessions if s.live), None)

    def token(skip: int = 0) -> None:
        if stream.tokens % 3:
            stream.token(1.0, stream.tokens + skip, stream.tokens, f"{stream.tokens},")
        else:
            stream.delta(1.0, stream.tokens + skip, [stream.tokens], f"{stream.tokens},", None)

    for event in story:
        ended = stream.done, stream.reason, stream.error
        at = here()
        if event.startswith("place"):
            if stream.needs_replica:
                session = FakeSession(Endpoint(ReplicaId(f"r{len(sessions)}"), ""), event == "place")
                sessions.append(session)
                stream.place(cast("Session", session))
                if session.submits and stream.tokens:  # exactly what has come is what is gone on from
                    resume = session.submits[0].resume
                    assert resume
                    assert list(resume.token_ids) == list(range(stream.tokens))
                    assert resume.text_chars == len(sink.text)
                    assert not guided
                elif session.submits:
                    assert session.submits[0].resume is None
                    assert sink.text == ""
        elif event == "end":
            stream.end("abort")
        elif at is not None:
            match event:
                case "started":
                    stream.started(5, "echo")
                    stream.extra(PromptLogprobs(()))
                case "token":
                    token()
                case "skip":
                    token(skip=1)
                case "stop":
                    at.leave().finished("stop", 0, None)
                case "error":
                    at.leave().finished("error", 0, Failure("internal", "x"))
                case "abort-by-replica":
                    at.leave().finished("abort", 0, None)
                case "reject-draining":
                    at.leave().rejected(Failure("draining", "x"))
                case "reject-adapter":
                    at.leave().rejected(Failure("not_loaded", "x"))
                case "reject-bad":
                    at.leave().rejected(Failure("invalid_request", "x"))
                case "cannot-resume":
                    at.leave().rejected(Failure("cannot_resume", "x"))
                case "gone":
                    at.leave().gone(ReplicaGone("x"))
                case "died":
                    at.leave().finished("error", 0, Failure("replica_gone", "x"))
                case _:
                    at.leave().gone(HeadraceError("x"))
        if ended[0]:
            assert (stream.done, stream.reason, stream.error) == ended  # the first end is the end
        # Exactly one of: waiting for a replica, at one replica, done.
        assert [stream.needs_replica, here() is not None, stream.done].count(True) == 1
        assert sum(len(s.live) for s in sessions) <= 1
        assert stream.deaths <= MAX_DEATHS
    assert len(sink.extras) == len(set(map(type, sink.extras))), "the prompt is not told again by another replica"
    assert sink.text == "".join(f"{i}," for i in range(stream.tokens))  # none lost, none twice
    assert sink.done == (stream.reason == "stop")
    assert (stream.error is None) == (stream.reason in (None, "stop", "abort"))
    assert changes.count(True) == stream.done
    stream.end("abort")
    assert here() is None


def test_refusals_in_a_row_are_bounded_and_tokens_between_them_count():
    stream, _ = a_stream()
    for name in range(MAX_REFUSALS - 1):
        placed(stream, f"r{name}").leave().rejected(Failure("draining", "Draining."))
    last = placed(stream)
    feed(stream, 1)
    last.leave().finished("error", 0, Failure("draining", "Stopped."))
    for name in range(MAX_REFUSALS - 1):
        assert stream.needs_replica
        placed(stream, f"s{name}").leave().rejected(Failure("draining", "Draining."))
    assert stream.error
    assert stream.error.kind == "draining"


def test_a_stream_goes_on_from_what_has_come():
    stream, sink = a_stream()
    first = placed(stream)
    stream.started(5, "x")
    feed(stream, 3)
    first.leave().gone(ReplicaGone("killed"))
    second = placed(stream, "r2")
    submit = second.submits[0]
    assert submit.resume
    assert (list(submit.resume.token_ids), submit.resume.text_chars, submit.echo) == ([0, 1, 2], 6, False)
    assert stream.fingerprint == "f"
    feed(stream, 1)
    second.leave().finished("stop", 9, None)
    assert (sink.text, stream.tokens, stream.reason, stream.moves) == ("0,1,2,3,", 4, "stop", 1)
    assert stream.cached_tokens == 5  # of the prompt's five; what was delivered is none of it


def test_what_cannot_go_on_exactly_ends_with_one_error_or_begins_again_if_nothing_is_out():
    stream, _ = a_stream(guided=True)
    first = placed(stream)
    feed(stream, 2)
    first.leave().gone(ReplicaGone("Killed."))
    assert stream.error
    assert stream.error.code == "stream_cannot_continue"

    stream, sink = a_stream(guided=True, keeps=True)
    first = placed(stream)
    stream.started(5, "x")
    feed(stream, 2)
    first.leave().gone(ReplicaGone("Killed."))
    second = placed(stream, "r2")
    assert second.submits[0].resume is None
    stream.started(5, "x")
    feed(stream, 4)
    second.leave().finished("stop", 0, None)
    assert (sink.text, len(sink.extras), sink.restarts) == ("0,1,2,3,", 1, 1)


def test_two_deaths_at_the_begin_are_the_requests_fault_others_are_not():
    stream, _ = a_stream()
    for _ in range(5):
        session = placed(stream)
        feed(stream, PROVEN_BY - 1)
        assert stream.proving
        feed(stream, 1)
        assert not stream.proving
        session.leave().gone(ReplicaGone("Killed."))
    assert (stream.deaths, stream.done) == (0, False)
    for _ in range(MAX_DEATHS):
        assert not stream.done
        placed(stream).leave().gone(ReplicaGone("Killed."))
    assert stream.error
    assert (stream.error.status, stream.error.code) == (422, "request_quarantined")


def test_what_stood_still_before_the_stream_came_has_not_died_of_it():
    stream, _ = a_stream()
    for still_s in (2.0, 0.5, 2.0):
        session = FakeSession(Endpoint(ReplicaId("r"), ""), still_s=still_s, load=Load(step=7))
        stream.place(cast("Session", session))
        session.leave().gone(ReplicaGone("Silent."))
    assert (stream.deaths, stream.done) == (1, False)
    session = FakeSession(Endpoint(ReplicaId("r"), ""), still_s=2.0, load=Load(step=7))
    stream.place(cast("Session", session))
    session.load = Load(step=8)  # it was only late
    session.leave().gone(ReplicaGone("Killed."))
    assert stream.error
    assert stream.error.code == "request_quarantined"


def test_no_budget_no_move():
    stream, _ = a_stream(may_move=lambda: False)
    session = placed(stream)
    feed(stream, 2)
    session.leave().gone(ReplicaGone("Killed."))
    assert stream.error
    assert (stream.error.status, stream.error.retry_after_s) == (503, 5.0)


def test_an_adapter_that_one_replica_lacks_is_looked_for_at_another():
    stream, _ = a_stream()
    lacks, has = FakeSession(Endpoint(ReplicaId("r1"), "")), FakeSession(Endpoint(ReplicaId("r2"), ""))
    stream.place(cast("Session", lacks), "a")
    lacks.live.popitem()[1].rejected(Failure("not_loaded", "No such adapter here."))
    assert stream.needs_replica
    stream.place(cast("Session", has), "a")
    assert ([s.adapter for s in (*lacks.submits, *has.submits)], stream.deaths) == (["a", "a"], 0)


@given(st.integers(0, 2**64 - 1), st.integers(0, 15))
def test_every_choice_has_its_own_seed(seed, index):
    submit = Submit(0, "id", TextPrompt("x"), Sampling(seed=seed))
    assert fan_out(submit, index).sampling.seed == (seed + index) % 2**64
    assert fan_out(Submit(0, "id", TextPrompt("x")), index).sampling.seed is None
