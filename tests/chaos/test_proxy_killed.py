"""One of three proxies that is killed: its own streams break, the port stays open, and the spare takes its place."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import psutil
from cluster_fixtures import Traffic, cluster, kill, ready
from test_kills import Streams, clients_of, expected

TOKENS = 300


async def test_only_its_own_streams_break_and_the_spare_takes_its_place(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        head = await c.head(num_proxies=3)
        c.scheduler("1")
        async with c.admin() as admin:
            await admin.deploy("sim", engine_args_json=json.dumps({"step_s": 0.02, "answer_tokens": TOKENS}))
        await c.until(ready(1))
        before = await c.until(lambda s: [p.state for p in s.proxies] == ["running"] * 3)
        spare = await standby(head.pid)
        async with asyncio.TaskGroup() as group:
            streams = Streams(c.url, TOKENS)
            answers = group.create_task(streams.run())
            await asyncio.wait_for(streams.flowing.wait(), 60)
            victim = max(c.proxies(), key=lambda p: clients_of(p.pid))
            psutil.Process(victim.pid).send_signal(signal.SIGSTOP)  # so that none ends while we count
            broken = clients_of(victim.pid)
            kill(victim)
            while victim.alive():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            async with Traffic(c.url) as traffic:
                after = await c.until(lambda s: spare in [p.pid for p in s.proxies if p.state == "running"])
                await traffic.more()
            assert traffic.wrong == []
        texts = answers.result()
        assert broken >= 1
        assert list(texts.values()).count(None) == broken
        assert all(text in (None, expected(prompt, TOKENS)) for prompt, text in texts.items())
        pids = [spare if p.pid == victim.pid else p.pid for p in before.proxies]
        assert [p.pid for p in after.proxies] == pids


async def standby(head_pid: int) -> int:
    """The process that waits to be a proxy."""
    async with asyncio.timeout(60):
        while True:
            for child in psutil.Process(head_pid).children():
                if not any(a.startswith("--proxy_id=") for a in child.cmdline()) and "proxy" in child.cmdline():
                    return child.pid
            await asyncio.sleep(0.05)
