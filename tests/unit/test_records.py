"""Records of requests, and the head's questions about them."""

from __future__ import annotations

import asyncio
import gc

from headrace.cli.explain import nobody_knows, story_lines
from headrace.core.affinity import Decision, Reason
from headrace.core.route import Candidate
from headrace.core.story import MAX_SEEN, Explanation, Story
from headrace.core.types import Load, ReplicaId
from headrace.head import questions
from headrace.head.questions import Questions
from headrace.proxy.record import Record, Records
from headrace.rpc.convert_story import explanation_from_pb, explanation_to_pb


def decision(name: str, **more: object) -> Decision:
    return Decision(ReplicaId(name), Reason.PREFIX, 9, 4, **more)  # type: ignore[arg-type]


async def test_records_are_bounded_and_the_later_of_two_counts():
    records = Records("p", most=3)
    for i in (1, 2, 3, 1, 4):
        records.begin(Record(str(i), f"model {i}", 0.0, 1.0))
    assert records.story("2") is None
    assert {i for i in "1234" if records.story(i)} == {"1", "3", "4"}


async def test_a_choice_keeps_the_best_and_what_speaks_against_the_others():
    now = asyncio.get_running_loop().time()
    record = Record("r", "m", now, 1_700_000_000)
    many = [Candidate(ReplicaId(f"r{i}"), i, matched=i if i > 90 else 0) for i in range(100)]
    record.chose(decision("r50"), many)
    odd = [
        Candidate(ReplicaId("r50"), 1),
        Candidate(ReplicaId("full"), 99, Load(running=8, waiting=3, max_running=8), queued=3),
        Candidate(ReplicaId("slow"), slow=True),
        Candidate(ReplicaId("d"), draining=True),
        Candidate(ReplicaId("s"), suspect=True, draining=True),
        Candidate(ReplicaId("e"), ejected=True),
        Candidate(ReplicaId("l"), lost=True),
        Candidate(ReplicaId("x")),
    ]
    record.moved("It died.", 7)
    record.chose(decision("x", moved=True), odd)
    record.ended("stop")
    story = record.story("p")
    first, second = story.choices
    assert len(first.seen) == MAX_SEEN
    assert first.replicas == 100
    assert first.seen[0].replica_id == "r50"
    assert {s.matched for s in first.seen[1:10]} == set(range(91, 100))
    states = {s.replica_id: s.state for s in second.seen}
    assert states == {
        "r50": "tried before", "full": "no room", "slow": "slow", "d": "draining", "s": "silent", "e": "ejected",
        "l": "its node is lost", "x": "",
    }  # fmt: skip
    assert [(m.cause, m.tokens) for m in story.moves] == [("It died.", 7)]
    assert explanation_from_pb(explanation_to_pb(Explanation(2, 1, (story,)))) == Explanation(2, 1, (story,))
    text = "\n".join(story_lines(story))
    assert "went to r50: prefix; matched=4/9" in text
    assert "and 84 more" in text
    assert "left its replica after 7 tokens: It died." in text
    assert "went to x: failover; by=prefix; matched=4/9" in text


async def test_what_has_ended_is_kept_as_bytes_and_tells_the_same():
    """Ten thousand of them are kept."""
    records = Records("p")
    record = records.begin(Record("r", "m", 0.5, 1.0))
    record.chose(decision("r0"), [Candidate(ReplicaId(f"r{i}"), i, matched=i) for i in range(64)])
    record.moved("It died.", 7)
    running = records.story("r")
    assert running
    assert running.end == ""
    records.end(record, "length")
    kept = records._records["r"]
    assert isinstance(kept, bytes)
    assert not gc.is_tracked(kept)
    assert len(kept) < 600
    assert records.story("r") == record.story("p")
    assert record.story("p").end == "length"


async def test_the_end_of_an_earlier_request_leaves_the_later_one_of_its_id():
    records = Records("p")
    first = records.begin(Record("r", "first", 0.0, 1.0))
    records.begin(Record("r", "second", 0.0, 1.0))
    records.end(first, "stop")
    story = records.story("r")
    assert story
    assert (story.model, story.end) == ("second", "")


async def test_questions_go_to_every_proxy_and_wait_for_all_but_not_for_long(monkeypatch):
    q = Questions()
    assert await q.ask("nobody there") == Explanation(0, 0, ())
    knows = Story("r", "p1", "m", 1.0)

    async def proxy(story: Story | None, deaf: bool = False) -> None:
        async for number, request_id in q.listen():
            assert request_id == "r"
            if not deaf:
                q.answer(number, story)

    async with asyncio.TaskGroup() as tasks:
        proxies = [tasks.create_task(proxy(s)) for s in (knows, None)]
        await asyncio.sleep(0)
        assert await q.ask("r") == Explanation(2, 2, (knows,))
        monkeypatch.setattr(questions, "ANSWER_S", 0.05)
        proxies.append(tasks.create_task(proxy(None, deaf=True)))
        await asyncio.sleep(0)
        found = await q.ask("r")
        assert found == Explanation(3, 2, (knows,))
        q.answer(99, knows)  # too late
        for p in proxies:
            p.cancel()
    assert nobody_knows("r", Explanation(0, 0, ())).startswith("No proxy is connected")
    assert "3 proxies were asked, of which 1 did not answer;" in nobody_knows("r", Explanation(3, 2, ()))
    assert "1 proxy was asked; each" in nobody_knows("r", Explanation(1, 1, ()))


async def test_a_refused_request_has_a_story_that_pushes_out_no_other():
    now = asyncio.get_running_loop().time()
    records = Records("p", most=3)
    kept = records.begin(Record("kept", "m", now, 1.0))
    for i in range(10):
        records.refused(f"r{i}", "POST /v1/chat/completions", now, 400, "'max_tokens' must be less. " + "x" * 1000)
    assert records.story("kept") is not None
    assert [i for i in range(10) if records.story(f"r{i}")] == [7, 8, 9]
    story = records.story("r9")
    assert story is not None
    assert (story.status, len(story.why), story.end, story.choices) == (400, 300, "", ())
    lines = list(story_lines(explanation_from_pb(explanation_to_pb(Explanation(1, 1, (story,)))).stories[0]))
    assert lines[0].startswith("r9: POST /v1/chat/completions, received ")
    assert " s  answered with 400: 'max_tokens' must be less." in lines[1]
    assert len(lines) == 2

    # One that came as far as a replica's queue has both.
    records.end(kept, "overloaded")
    records.refused("kept", "POST /", now, 429, "All replicas of m stayed busy.")
    story = records.story("kept")
    assert story is not None
    assert (story.model, story.end, story.status, story.why) == (
        "m",
        "overloaded",
        429,
        "All replicas of m stayed busy.",
    )
    text = "\n".join(story_lines(story))
    assert "ended: overloaded" in text
    assert "answered with 429: All replicas of m stayed busy." in text

    # Of two with one id the later counts.
    records.refused("kept", "GET /x", now + 1, 404, "There is nothing.")
    assert (records.story("kept") or story).request == "GET /x"
    records.begin(Record("kept", "later", now + 2, 1.0))
    assert (records.story("kept") or story).model == "later"
