"""Faults of replicas under a running `headrace up`: streams go on with the next token, and the replica is replaced."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from chaos.test_kills import Streams, expected
from cli_fixtures import run_cli
from up_fixtures import Up, eventually, running

from headrace.process import ProcessRecord

REPLICAS = 3


@asynccontextmanager
async def three(tmp_path: Path, **options: object) -> AsyncIterator[tuple[Up, str]]:
    """Three replicas of the simulated model, whose engines obey files in tmp_path/orders."""
    (tmp_path / "orders").mkdir()
    async with running(tmp_path, "--model=sim") as up:
        url = await up.ready()
        given = {"orders_dir": str(tmp_path / "orders"), "step_s": 0.02, "answer_tokens": 150, **options}
        args = [f"--engine_arg={k}={v}" for k, v in given.items()]
        got = await run_cli("deploy", "sim", f"--replicas={REPLICAS}", *args, f"--state_dir={up.state_dir}")
        assert got.code == 0, got.err
        await eventually(lambda: whole(up), "had three replicas")
        yield up, url


async def status(up: Up) -> dict[str, Any]:
    got = await run_cli("status", "--json", f"--state_dir={up.state_dir}")
    return json.loads(got.out) if got.code == 0 else {}


async def whole(up: Up) -> set[int]:
    """The processes of the replicas, if all are there and ready, and no other is."""
    now = await status(up)
    ready = {r["status"]["pid"] for r in now.get("replicas", ()) if r["status"]["phase"] == "READY"}
    return ready if len(ready) == REPLICAS == len(up.replicas()) == len(now["replicas"]) else set()


async def through(up: Up, url: str, fault: Callable[[int], Awaitable[None]]) -> int:
    """Eight streams, with a fault in the middle of them: each must be what an uninterrupted one is.

    Returns the process that `fault` was called with: of the replica with the most streams.
    """
    pids = {r["status"]["replica_id"]: r["status"]["pid"] for r in (await status(up))["replicas"]}
    async with asyncio.TaskGroup() as group:
        streams = Streams(url)
        answers = group.create_task(streams.run())
        await asyncio.wait_for(streams.flowing.wait(), 60)
        victim: int = pids[streams.replicas.most_common(1)[0][0]]
        await fault(victim)
        assert not answers.done()
    for prompt, text in answers.result().items():
        assert text == expected(prompt)
    async with httpx.AsyncClient(base_url=url) as client:
        page = (await client.get("/metrics")).text
    moved = [
        line for line in page.splitlines() if line.startswith('headrace_failover_gap_seconds_count{model_name="sim"')
    ]
    assert moved, "no stream was at the replica that failed"
    assert float(moved[0].split()[-1]) >= 1
    return victim


async def test_sigkill(tmp_path: Path) -> None:
    async with three(tmp_path) as (up, url):
        before = await whole(up)

        async def kill(pid: int) -> None:
            os.kill(pid, signal.SIGKILL)

        victim = await through(up, url, kill)
        after = await eventually(lambda: whole(up), "had three replicas again")
        assert before - after == {victim}
        assert await up.end(signal.SIGTERM) == 0


@pytest.mark.long
async def test_a_replica_that_hangs(tmp_path: Path) -> None:
    """SIGSTOP: its streams go on elsewhere, and it is back, or another is, when it is over."""
    async with three(tmp_path, answer_tokens=1000) as (up, url):
        victims: list[ProcessRecord] = []

        async def stop(pid: int) -> None:
            record = ProcessRecord.of(pid)
            assert record
            victims.append(record)
            os.kill(pid, signal.SIGSTOP)

        try:
            await through(up, url, stop)
        finally:
            if victims and victims[0].alive():
                os.kill(victims[0].pid, signal.SIGCONT)
        await eventually(lambda: whole(up), "had three replicas again")
        assert await up.end(signal.SIGTERM) == 0


async def test_an_engine_that_dies_in_a_living_process(tmp_path: Path) -> None:
    async with three(tmp_path) as (up, url):

        async def die(pid: int) -> None:
            (tmp_path / "orders" / str(pid)).write_text("die")

        victim = await through(up, url, die)
        after = await eventually(lambda: whole(up), "had three replicas again")
        assert victim not in after
        assert await up.end(signal.SIGTERM) == 0


@pytest.mark.long
async def test_an_engine_that_does_not_step(tmp_path: Path) -> None:
    """Its frames go on coming; it is ended and started again for it."""
    async with three(tmp_path, stall_s=2) as (up, url):

        async def hang(pid: int) -> None:
            (tmp_path / "orders" / str(pid)).write_text("hang")

        victim = await through(up, url, hang)
        after = await eventually(lambda: whole(up), "had three replicas again")
        assert victim not in after
        assert await up.end(signal.SIGTERM) == 0


async def test_a_poisonous_request_ends_two_replicas_at_most(tmp_path: Path) -> None:
    async with three(tmp_path, crash_marker="POISON") as (up, url):
        before = await whole(up)

        async def poison(_: int) -> None:
            body = {"model": "sim", "messages": [{"role": "user", "content": "POISON"}]}
            async with httpx.AsyncClient(base_url=url, timeout=60) as client:
                for _ in range(2):  # it is remembered
                    r = await client.post("/v1/chat/completions", json=body)
                    assert (r.status_code, r.json()["error"]["code"]) == (422, "request_quarantined")

        await through(up, url, poison)
        after = await eventually(lambda: whole(up), "had three replicas again")
        assert 1 <= len(before - after) <= 2
        assert await up.end(signal.SIGTERM) == 0
