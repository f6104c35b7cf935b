"""Five times the load that a replica can take, and a replica that is slow: counted in engine steps, not in seconds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from integration.proxy_fixtures import World, eventually, world
from integration.replica_fixtures import RunningReplica, a_spec, running

from headrace.core.outliers import Standing
from headrace.core.types import Endpoint, ReplicaId, Route, RouteState

CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
# Steps are long beside what a busy machine keeps a process waiting: a slot that comes free is filled before the next.
SLOTS, TOKENS, STEP_S = 8, 10, 0.1
PEAK_RPS = SLOTS / ((TOKENS + 1) * STEP_S)


@asynccontextmanager
async def system(
    folder: Path, replicas: int, settings: dict[str, Any] | None = None, **options: object
) -> AsyncIterator[tuple[World, list[RunningReplica]]]:
    """A proxy in this process and real replica processes behind it."""
    async with world(0, settings=settings) as w, contextlib.AsyncExitStack() as stack:
        made: list[RunningReplica] = []
        for i in range(replicas):
            spec = replace(a_spec(options=options), replica_id=ReplicaId(f"demo-1-{i}"))
            made.append(await stack.enter_async_context(running(spec, folder / str(i))))
            await made[-1].ready()
        endpoints = tuple(Endpoint(ReplicaId(r.replica_id), r.address) for r in made)
        w.head.show(Route("demo", RouteState.READY, "", endpoints))
        await w.reachable(*(r.replica_id for r in made))
        yield w, made
        await w.clean()


async def test_goodput_at_five_times_the_load(tmp_path: Path):
    options = {"max_running": SLOTS, "answer_tokens": TOKENS, "step_s": STEP_S}
    async with system(tmp_path, 1, {"max_waiting": 16}, **options) as (w, _):
        session = next(iter(w.proxy.sessions))
        await eventually(lambda: session.load.max_running)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=200)
        async with httpx.AsyncClient(base_url=w.url, timeout=30, limits=limits) as client:

            async def ask() -> httpx.Response:
                return await client.post("/v1/chat/completions", json=CHAT)

            async def goodput(times: float, seconds: float) -> tuple[float, Counter[int], list[httpx.Response]]:
                """Open loop: answers that were completed, over the engine's steps meanwhile."""
                first = session.load.step
                tasks: list[asyncio.Task[httpx.Response]] = []
                loop = asyncio.get_running_loop()
                begun = loop.time()
                while (passed := loop.time() - begun) < seconds:
                    while len(tasks) < passed * PEAK_RPS * times:
                        tasks.append(asyncio.create_task(ask()))
                    await asyncio.sleep(0.01)
                answers = await asyncio.gather(*tasks)
                codes = Counter(r.status_code for r in answers)
                return codes[200] / (session.load.step - first), codes, answers

            peak, codes, _ = await goodput(1.0, 6.0)
            assert codes[200]
            ideal = SLOTS / (TOKENS + 1)
            overloaded, codes, answers = await goodput(5.0, 6.0)
        assert set(codes) == {200, 429}
        assert codes[429] > codes[200]  # it was an overload
        assert overloaded >= 0.9 * peak, (overloaded, peak, ideal, codes)
        assert overloaded >= 0.8 * ideal, (overloaded, peak, ideal, codes)  # begin and end are no full batches
        refused = [r for r in answers if r.status_code == 429]
        assert all(int(r.headers["retry-after"]) >= 1 for r in refused)
        # At once: before the engine could have answered anybody. benchmarks/overload.py measures the promised 100 ms.
        quickest = min(r.elapsed for r in answers if r.status_code == 200)
        assert sorted(r.elapsed for r in refused)[len(refused) // 2] < quickest


async def test_a_slow_replica_gets_less_and_lives(tmp_path: Path):
    """One of two at a fifth of its speed (stopped four fifths of the time): it is found out, and hardly used then."""
    async with system(tmp_path, 2, answer_tokens=20, step_s=0.01, max_running=64) as (w, (fast, slow)):
        session = {s.endpoint.replica_id: s for s in w.proxy.sessions}[ReplicaId(slow.replica_id)]
        ended = asyncio.Event()

        async def throttle() -> None:
            try:
                while not ended.is_set():
                    os.kill(slow.child.pid, signal.SIGSTOP)
                    await asyncio.sleep(0.16)
                    os.kill(slow.child.pid, signal.SIGCONT)
                    await asyncio.sleep(0.04)
            finally:
                os.kill(slow.child.pid, signal.SIGCONT)

        async def client() -> None:
            while not ended.is_set():
                assert (await w.client.post("/v1/chat/completions", json=CHAT)).status_code == 200

        async with asyncio.TaskGroup() as tasks:
            for _ in range(6):
                tasks.create_task(client())
            await eventually(lambda: all(s.pulse.record.gap for s in w.proxy.sessions))
            await eventually(lambda: all(s.pulse.record.standing is Standing.SOUND for s in w.proxy.sessions))
            tasks.create_task(throttle())
            async with asyncio.timeout(90):
                while session.pulse.record.standing is not Standing.SLOW:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            await eventually(lambda: not session.in_flight)
            other = {s.endpoint.replica_id: s for s in w.proxy.sessions}[ReplicaId(fast.replica_id)]
            fast_had, slow_had = other._last_stream, session._last_stream
            await eventually(lambda: other._last_stream >= fast_had + 50)
            ended.set()
        assert session._last_stream <= slow_had + 1
        assert session.ready
        assert slow.child.alive()
