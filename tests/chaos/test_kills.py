"""Kill -9 of one part at a time while streams run: those through the survivors are whole, and all is back by itself."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections import Counter
from pathlib import Path

import httpx
import psutil
import pytest
from cli_fixtures import run_cli
from up_fixtures import Up, eventually, running, stream

from headrace.core import simulated

STREAMS = 8
TOKENS = 150


def expected(prompt: str, tokens: int = TOKENS) -> str:
    """What the simulated engine answers."""
    ids = simulated.encode(simulated.chat_prompt([{"role": "user", "content": prompt}]))
    key = simulated.digest(ids, None)
    return simulated.decode([simulated.token_at(key, i) for i in range(tokens)])


class Streams:
    """Eight answers at once, and how many went to which replica.

    `flowing` is set when every one of them has begun and is far from its end.
    """

    def __init__(self, url: str, tokens: int = TOKENS) -> None:
        self._url, self._tokens = url, tokens
        self._counts = dict.fromkeys((f"question {i}" for i in range(STREAMS)), 0)
        self.flowing = asyncio.Event()
        self.replicas: Counter[str] = Counter()

    async def run(self) -> dict[str, str | None]:
        """The answers by prompt; None for one that broke off."""
        async with asyncio.TaskGroup() as group:
            tasks = {p: group.create_task(self._one(p)) for p in self._counts}
        return {p: t.result() for p, t in tasks.items()}

    async def _one(self, prompt: str) -> str | None:
        def count() -> None:
            self._counts[prompt] += 1
            if min(self._counts.values()) >= 10:
                self.flowing.set()

        def note(headers: httpx.Headers) -> None:
            self.replicas[headers["x-headrace-replica"]] += 1

        try:
            return "".join(await stream(self._url, "sim", prompt, self._tokens, count, note))
        except httpx.HTTPError:
            return None


async def all_whole(url: str) -> None:
    """Eight answers from begin to end."""
    for prompt, text in (await Streams(url).run()).items():
        assert text == expected(prompt)


def clients_of(proxy_pid: int) -> int:
    """Open connections of HTTP clients to a proxy; its own connections to others began at random ports."""
    inet = psutil.Process(proxy_pid).net_connections("tcp")
    port = next(c.laddr.port for c in inet if c.status == psutil.CONN_LISTEN)
    return sum(c.laddr.port == port and c.status == psutil.CONN_ESTABLISHED for c in inet)


async def settled(up: Up) -> bool:
    """True when the deployment is ready, a proxy runs and the node is alive, as the head sees it."""
    got = await run_cli("status", "--json", f"--state_dir={up.state_dir}")
    if got.code != 0:
        return False
    now = json.loads(got.out)
    return (
        [d["ready"] for d in now["deployments"]] == [1]
        and any(p["state"] == "running" for p in now["proxies"])
        and [n["alive"] for n in now["nodes"]] == [True]
    )


@pytest.mark.parametrize("part", ["head", "scheduler"])
async def test_streams_do_not_notice(tmp_path: Path, part: str) -> None:
    async with running(tmp_path, "--model=sim") as up:
        url = await up.ready()
        before = up.replicas() | up.proxies()
        victim = up.part(part)
        async with asyncio.TaskGroup() as group:
            streams = Streams(url)
            answers = group.create_task(streams.run())
            await asyncio.wait_for(streams.flowing.wait(), 60)
            victim.kill()
            assert not answers.done()
        for prompt, text in answers.result().items():
            assert text == expected(prompt)
        await up.until(rf"The {part} ended \(was killed by SIGKILL\)")
        await eventually(lambda: settled(up), "was well again")
        assert up.replicas() | up.proxies() == before  # adopted: the same processes
        assert up.part(part).pid != victim.pid
        await all_whole(url)
        records = up.everything()
        assert await up.end(signal.SIGTERM) == 0
        assert not [r for r in records if r.alive()]


async def test_a_proxy_comes_back_and_the_streams_of_the_other_are_whole(tmp_path: Path) -> None:
    async with running(tmp_path, "--model=sim", "--num_proxies=2") as up:
        url = await up.ready()

        async def two() -> bool:
            return len(up.proxies()) == 2

        await eventually(two, "had two proxies")
        before = up.proxies()
        async with asyncio.TaskGroup() as group:
            streams = Streams(url)
            answers = group.create_task(streams.run())
            await asyncio.wait_for(streams.flowing.wait(), 60)
            # The one with fewer streams, so that there are survivors to look at.
            victim = min(before, key=lambda r: clients_of(r.pid))
            os.kill(victim.pid, signal.SIGKILL)
        for prompt, text in answers.result().items():
            assert text in (None, expected(prompt))
        assert sum(text is not None for text in answers.result().values()) >= STREAMS // 2
        await eventually(two, "had two proxies again")
        assert (before - {victim}) <= up.proxies()
        await all_whole(url)
        assert await up.end(signal.SIGTERM) == 0


async def test_both_die_and_all_is_back(tmp_path: Path) -> None:
    async with running(tmp_path, "--model=sim") as up:
        url = await up.ready()
        before = up.replicas() | up.proxies()
        for part in ("head", "scheduler"):
            up.part(part).kill()
        await eventually(lambda: settled(up), "was well again")
        assert up.replicas() | up.proxies() == before
        assert len(await stream(url, "sim", "hello")) > 10
        got = await run_cli("status", f"--state_dir={up.state_dir}")
        assert re.search(r"sim +READY +1/1", got.out)
        assert await up.end(signal.SIGTERM) == 0
