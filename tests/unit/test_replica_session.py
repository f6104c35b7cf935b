"""What waits for a proxy: frames that join while it reads slowly, and in what order they are."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.streams import Finished, Frame, Parsed, Started
from headrace.core.types import Load
from headrace.replica.session import MAX_BYTES, MAX_MERGED_BYTES, Session

# A step: for each stream how many tokens it brings, whether it is reasoning, and whether a frame is read after it.
STEPS = st.lists(
    st.tuples(st.dictionaries(st.integers(1, 4), st.integers(0, 3), max_size=4), st.booleans(), st.booleans()),
    max_size=30,
)


def put(session: Session, number: int, position: int, ids: list[int]) -> None:
    c = session.columns
    c.streams.append(number)
    c.positions.append(position)
    c.counts.append(len(ids))
    c.token_ids.extend(ids)
    c.texts.append("".join(f"{i} " for i in ids))


async def all_frames(session: Session) -> list[Frame]:
    frames: list[Frame] = []
    try:
        async with asyncio.timeout(0.01):
            while True:
                frames.append(await session.next())
    except TimeoutError:
        return frames


@given(STEPS)
def test_a_slow_proxy_gets_every_token_in_order(steps: list[tuple[dict[int, int], bool, bool]]) -> None:
    async def body() -> None:
        session = Session("proxy")
        frames: list[Frame] = []
        position: dict[int, int] = defaultdict(int)
        said: dict[int, list[str]] = defaultdict(list)
        for number, (rows, reasoning, read) in enumerate(steps):
            for stream, count in rows.items():
                if stream not in position:
                    session.columns.started.append(Started(stream, 7))
                ids = list(range(position[stream], position[stream] + count))
                if reasoning:
                    session.columns.parsed.append(Parsed(stream, f"<{number}>"))
                    said[stream].append(f"<{number}>")
                put(session, stream, position[stream], ids)
                said[stream] += [f"{i} " for i in ids]
                position[stream] += count
            session.send(Load(number), False, float(number))
            if read:
                frames.append(await session.next())
        for stream in position:
            session.columns.finished.append(Finished(stream, "stop"))
        session.send(Load(999), True, 1e3)
        frames += await all_frames(session)

        heard: dict[int, list[str]] = defaultdict(list)
        due: dict[int, int] = defaultdict(int)
        started: set[int] = set()
        ended: set[int] = set()
        for f in frames:
            started |= {s.stream for s in f.started}
            for p in f.parsed:
                heard[p.stream].append(p.reasoning)
            at = 0
            assert len(f.streams) == len(f.positions) == len(f.counts) == len(f.texts)
            for stream, where, count, text in zip(f.streams, f.positions, f.counts, f.texts, strict=True):
                assert stream in started
                assert stream not in ended
                assert where == due[stream]
                assert list(f.token_ids[at : at + count]) == list(range(where, where + count))
                at += count
                due[stream] += count
                heard[stream].append(text)
            assert at == len(f.token_ids)
            ended |= {x.stream for x in f.finished}
        assert dict(due) == dict(position)
        assert ended == set(position)
        assert {s: "".join(x) for s, x in heard.items()} == {s: "".join(x) for s, x in said.items()}
        assert frames[-1].draining
        assert frames[-1].load == Load(999)

    asyncio.run(body())


async def test_steps_join_while_nobody_reads_and_what_a_stream_has_leaves_as_one_row() -> None:
    session = Session("proxy")
    for step in range(3000):
        for stream in (1, 2):
            put(session, stream, step, [step])
        session.send(Load(step), False, float(step))
    assert not session.ended.is_set()
    (frame,) = await all_frames(session)
    assert list(frame.streams) == [1, 2]
    assert list(frame.counts) == [3000, 3000]
    assert list(frame.token_ids) == [*range(3000), *range(3000)]


async def test_what_waits_is_bounded() -> None:
    session = Session("proxy")
    sent = 0
    while not session.ended.is_set():
        put(session, 1, 0, [0])
        session.columns.texts[-1] = "x" * 50_000
        session.send(Load(), False, 0.0)
        sent += 100_000
        assert sent <= MAX_BYTES + 200_000
    assert "does not read" in session.why_ended
    frames = await all_frames(session)
    assert len(frames) >= MAX_BYTES // MAX_MERGED_BYTES


async def test_the_first_frame_keeps_what_it_says_of_the_replica() -> None:
    session = Session("proxy")
    session.send(Load(), False, 0.0, "print", True)
    session.columns.prefixes[5] = True
    session.send(Load(), False, 0.0)
    session.columns.prefixes[5] = False
    session.send(Load(), True, 0.0)
    (frame,) = await all_frames(session)
    assert (frame.fingerprint, frame.keeps_prefixes, frame.draining, frame.prefixes) == (
        "print",
        True,
        True,
        {5: False},
    )
