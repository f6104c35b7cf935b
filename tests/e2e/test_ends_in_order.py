"""Parts that are told to end while streams run: the streams go on to their ends, unless somebody is in a hurry."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import httpx
import pytest
from cluster_fixtures import Cluster, cluster, expected, ready
from up_fixtures import running, stream

TOKENS = 140  # about three seconds


class Stream:
    """One streamed answer, of which something has come once `begun` returns."""

    def __init__(self, url: str, tokens: int = TOKENS) -> None:
        self._tokens = tokens
        self._begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(stream(url, "sim", "hello", tokens, self._saw))

    def _saw(self) -> None:
        if not self._begun.done():
            self._begun.set_result(None)

    async def begun(self) -> None:
        await asyncio.wait({self._task, self._begun}, return_when=asyncio.FIRST_COMPLETED)
        assert self._begun.done(), self._task.exception()
        assert not self._task.done()

    @property
    def runs(self) -> bool:
        return not self._task.done()

    async def whole(self) -> None:
        assert "".join(await self._task) == expected("hello", self._tokens)

    async def broken(self) -> None:
        with pytest.raises((AssertionError, httpx.HTTPError)):
            await self._task


async def begun(c: Cluster) -> Stream:
    """A cluster of one replica, that streams."""
    head = await c.head()
    scheduler = c.scheduler("1")
    async with c.admin() as admin:
        await admin.deploy("sim")
        await admin.status_when(ready(1))
    one = Stream(c.url)
    await one.begun()
    assert head.alive()
    assert scheduler.alive()
    return one


@pytest.mark.parametrize("part", ["head", "scheduler"])
async def test_streams_go_on_to_their_ends(tmp_path: Path, part: str) -> None:
    async with cluster(tmp_path) as c:
        one = await begun(c)
        told = next(p for p in c.children if part in " ".join(_argv(p.pid)))
        os.kill(told.pid, signal.SIGTERM)
        await one.whole()
        assert await asyncio.wait_for(told.wait(), 60) == 0
        if part == "head":
            assert not c.proxies()
            assert c.replicas()
        else:
            assert not c.replicas()


@pytest.mark.parametrize("part", ["head", "scheduler"])
async def test_told_twice_it_waits_for_nothing(tmp_path: Path, part: str) -> None:
    async with cluster(tmp_path) as c:
        await begun(c)
        one = Stream(c.url, 10**6)  # without end
        await one.begun()
        told = next(p for p in c.children if part in " ".join(_argv(p.pid)))
        os.kill(told.pid, signal.SIGTERM)
        await asyncio.sleep(1.0)
        assert one.runs
        assert told.alive()
        os.kill(told.pid, signal.SIGTERM)
        assert await asyncio.wait_for(told.wait(), 25) == 0  # and not after the thirty seconds of --drain_s
        if part == "head":
            await one.broken()
        assert not (c.proxies() if part == "head" else c.replicas())


async def test_interrupted_everything_waits_for_what_runs_and_says_so(tmp_path: Path) -> None:
    async with running(tmp_path, "--model=sim") as up:
        url = await up.ready()
        one = Stream(url)
        await one.begun()
        await asyncio.sleep(1.0)  # the head has heard of it
        records = up.everything()
        up.process.send_signal(signal.SIGINT)
        await up.until("Waiting for 1 request to end; Ctrl-C again")
        assert one.runs
        await one.whole()
        assert await up.ended() == 130
        assert not [r for r in records if r.alive()]


async def test_interrupted_twice_everything_ends_at_once(tmp_path: Path) -> None:
    catalog = "  sim:\n    source: builtin:demo\n    engine: simulated\n    resources: {cpus: 0.1}\n"
    (tmp_path / "endless.yaml").write_text(
        f"models:\n{catalog}    engine_args: {{step_s: 0.02, answer_tokens: 1000000, kv_tokens: 1000000000}}\n"
    )
    async with running(tmp_path, "--model=sim", f"--catalog={tmp_path}/endless.yaml") as up:
        url = await up.ready()
        one = Stream(url, 7000)  # two minutes
        await one.begun()
        await asyncio.sleep(1.0)
        records = up.everything()
        up.process.send_signal(signal.SIGINT)
        await up.until("Waiting for 1 request to end")
        up.process.send_signal(signal.SIGINT)
        assert await up.ended() == 130
        await one.broken()
        assert not [r for r in records if r.alive()]


async def test_what_keeps_the_proxies_from_starting_is_told_at_the_terminal(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\n")
    keys.chmod(0o666)
    async with running(tmp_path, "--model=sim", f"--api_keys_file={keys}") as up:
        assert await up.ended() == 1
        assert "Error: The HTTP proxies do not start: the last exited with code 1: Others than its owner" in up.said
        assert "Headrace is ready" not in up.said
        assert not up.everything()


def _argv(pid: int) -> list[str]:
    with open(f"/proc/{pid}/cmdline") as f:
        return f.read().split("\0")
