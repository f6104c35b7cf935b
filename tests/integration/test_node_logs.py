"""Logs of replicas: rotation under the writer, tails over rotated files, following, and the way to the head."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from integration.node_fixtures import Head, head_double, scheduler, spec

from headrace import log_files
from headrace import log_reader as logs
from headrace.core.phase import Phase
from headrace.rpc.v1 import node_pb2


async def everything(log: Path, tail: int) -> bytes:
    return b"".join([piece async for piece in logs.read(log, tail, follow=False)])


LINES = st.lists(st.binary(max_size=6).map(lambda b: b.replace(b"\n", b"") + b"\n"), max_size=12)


@given(parts=st.tuples(LINES, LINES, LINES), end=st.sampled_from([b"", b"half"]), tail=st.integers(0, 40))
def test_the_tail_is_the_last_lines_of_all_files_together(
    tmp_path_factory: pytest.TempPathFactory, parts: tuple[list[bytes], ...], end: bytes, tail: int
) -> None:
    log = tmp_path_factory.mktemp("logs") / "replica.log"
    for path, lines in zip((log_files.rotated(log, 2), log_files.rotated(log, 1), log), parts, strict=True):
        path.write_bytes(b"".join(lines) + (end if path == log else b""))
    lines = [line for part in parts for line in part] + ([end] if end else [])
    expected = lines[-tail:] if tail else lines
    assert asyncio.run(everything(log, tail)) == b"".join(expected)


async def test_a_long_tail_crosses_pieces(tmp_path: Path) -> None:
    log = tmp_path / "replica.log"
    lines = [f"{n}: {'x' * 100}\n".encode() for n in range(3000)]
    log_files.rotated(log, 1).write_bytes(b"".join(lines[:2000]))
    log.write_bytes(b"".join(lines[2000:]))
    for tail in (1, 999, 1000, 1001, 2500, 3000, 9999):
        assert await everything(log, tail) == b"".join(lines[-tail:])


async def test_no_log_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await everything(tmp_path / "replica.log", 0)


def test_rotation_keeps_two_predecessors(tmp_path: Path) -> None:
    log = tmp_path / "replica.log"
    assert not log_files.rotate(log, 0)
    for text in ("one", "two", "three", "four"):
        with log.open("a") as f:
            f.write(text)
        assert not log_files.rotate(log, 100)
        assert log_files.rotate(log, 1)
    found = {p.name: p.read_text() for p in tmp_path.iterdir()}
    assert found == {"replica.log": "", "replica.log.1": "four", "replica.log.2": "three"}


async def test_a_writer_that_holds_the_file_is_followed_over_rotations(tmp_path: Path) -> None:
    log = tmp_path / "replica.log"
    code = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"
    with log.open("ab") as output:
        writer = await asyncio.create_subprocess_exec(
            sys.executable, "-S", "-c", code, stdin=subprocess.PIPE, stdout=output
        )
    assert writer.stdin
    expected, seen = b"", b""

    async def grow(text: bytes) -> None:
        nonlocal expected
        expected += text
        size = os.path.getsize(log) + len(text)  # noqa: ASYNC240
        writer.stdin.write(text)  # type: ignore[union-attr]
        async with asyncio.timeout(30):
            while os.path.getsize(log) < size:  # noqa: ASYNC110, ASYNC240
                await asyncio.sleep(0.005)

    await grow(b"before\n")
    async with asyncio.timeout(30), aclosing(logs.read(log, 0, follow=True)) as pieces:

        async def catch_up() -> None:
            nonlocal seen
            while len(seen) < len(expected):
                seen += await anext(pieces)

        await catch_up()
        await grow(b"unread when it is rotated\n")
        assert log_files.rotate(log, 0)
        await grow(b"after\n")
        await catch_up()
        for number in range(3):
            await grow(b"%d\n" % number)
            assert log_files.rotate(log, 0)
            await catch_up()
    assert seen == expected
    writer.stdin.close()
    assert await writer.wait() == 0


@pytest.fixture
async def head(tmp_path: Path) -> AsyncIterator[Head]:
    async with head_double() as double, scheduler(double, tmp_path):
        await double.until(lambda: double.hellos)
        yield double


def ask(head: Head, request: int, name: str, tail: int = 0, follow: bool = False) -> None:
    head.send(
        node_pb2.HeadMessage(
            read_log=node_pb2.ReadLog(request=request, replica_id=name, tail_lines=tail, follow=follow)
        )
    )


def ended(head: Head, request: int) -> bool:
    return bool(head.logs.get(request)) and head.logs[request][-1].end


async def test_the_head_reads_tails_and_whole_logs_at_once(head: Head) -> None:
    head.want(spec("r-1", lines=2000), spec("r-2", lines=3))
    await head.phase("r-1", Phase.READY)
    await head.phase("r-2", Phase.READY)
    ask(head, 1, "r-1")
    ask(head, 2, "r-1", tail=2)
    ask(head, 3, "r-2", tail=1)
    await head.until(lambda: all(ended(head, n) for n in (1, 2, 3)))
    assert head.log_text(1).splitlines()[-2000:] == [f"line {n}" for n in range(2000)]
    assert head.log_text(2) == "line 1998\nline 1999\n"
    assert head.log_text(3) == "line 2\n"


async def test_a_log_that_is_not_there_is_told(head: Head) -> None:
    for request, name in enumerate(("r-9", "../../../etc", "")):
        ask(head, request, name)
        await head.until(lambda request=request: ended(head, request))
        assert head.logs[request][-1].error == "there is none on node 1"


async def test_the_log_of_a_stopped_replica_can_still_be_read(head: Head) -> None:
    head.want(spec("r-1", lines=3))
    await head.phase("r-1", Phase.READY)
    head.want()
    await head.phase("r-1", Phase.STOPPED)
    ask(head, 1, "r-1")
    await head.until(lambda: ended(head, 1))
    assert "drain for 5 s" in head.log_text(1)


async def test_a_follower_sees_new_lines_until_it_stops(head: Head, tmp_path: Path) -> None:
    head.want(spec("r-1", lines=3))
    await head.phase("r-1", Phase.READY)
    ask(head, 1, "r-1", tail=1, follow=True)
    ask(head, 2, "r-1", tail=1, follow=True)
    await head.until(lambda: "line 2" in head.log_text(1) and "line 2" in head.log_text(2))
    log = tmp_path / "nodes/1/replicas/r-1/replica.log"
    with log.open("a") as f:
        f.write("more\n")
    await head.until(lambda: "more" in head.log_text(1) and "more" in head.log_text(2))
    head.send(node_pb2.HeadMessage(stop_log=node_pb2.StopLog(request=1)))
    head.send(node_pb2.HeadMessage(stop_log=node_pb2.StopLog(request=99)))
    with log.open("a") as f:
        f.write("last\n")
    await head.until(lambda: "last" in head.log_text(2))
    assert head.log_text(1) == "line 2\nmore\n"
    assert not ended(head, 2)
    assert all(len(c.data) <= logs.CHUNK for chunks in head.logs.values() for c in chunks)
