"""Routing by what replicas hold: real replica processes of the simulated engine behind a proxy."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from integration.proxy_fixtures import World, eventually, world
from integration.replica_fixtures import RunningReplica, a_spec, running

from headrace.core.types import Endpoint, ReplicaId, Route, RouteState

REASON, WHERE = "x-headrace-route-reason", "x-headrace-replica"


@asynccontextmanager
async def served(
    folder: Path, count: int, *, settings: dict[str, Any] | None = None, **options: object
) -> AsyncIterator[tuple[World, list[RunningReplica]]]:
    """`count` replicas; what they hold is known to the proxy."""
    async with AsyncExitStack() as stack:
        replicas: list[RunningReplica] = []
        for i in range(count):
            spec = replace(a_spec(options={"step_s": 0.002, **options}), replica_id=ReplicaId(f"demo-1-{i}"))
            replicas.append(await stack.enter_async_context(running(spec, folder / str(i))))
        w = await stack.enter_async_context(world(0, settings=settings))
        for r in replicas:
            await r.ready()
        show(w, replicas)
        await w.reachable(*(r.replica_id for r in replicas))
        yield w, replicas


def show(w: World, replicas: list[RunningReplica]) -> None:
    endpoints = tuple(Endpoint(ReplicaId(r.replica_id), r.address) for r in replicas)
    w.head.show(Route("demo", RouteState.READY, "", endpoints))


def system(name: str) -> dict[str, str]:
    return {"role": "system", "content": f"You are {name}. " + "Be exact and answer in one sentence. " * 40}


async def ask(w: World, messages: list[dict[str, str]], headers: dict[str, str] | None = None) -> httpx.Response:
    body = {"model": "demo", "messages": messages, "max_tokens": 24}
    r = await w.client.post("/v1/chat/completions", json=body, headers=headers or {})
    assert r.status_code == 200, r.text
    return r


def cached(r: httpx.Response) -> int:
    return r.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


async def test_a_conversation_stays_where_its_beginning_is(tmp_path: Path):
    async with served(tmp_path, 3) as (w, _):
        for n in range(6):
            messages = [system(f"helper {n}")]
            where: set[str] = set()
            for turn in range(4):
                messages.append({"role": "user", "content": f"Question {turn} about the head of water?"})
                r = await ask(w, messages)
                where.add(r.headers[WHERE])
                if turn:
                    assert r.headers[REASON].startswith("prefix; matched=")
                    assert cached(r) > 800
                else:
                    assert r.headers[REASON].startswith("least-load; matched=0/")
                messages.append(r.json()["choices"][0]["message"])
            assert len(where) == 1
        metrics = (await w.client.get("/metrics")).text
        assert 'headrace_routed_total{model_name="demo",reason="prefix"} 18.0' in metrics
        assert 'vllm:prefix_cache_hits_total{model_name="demo"}' in metrics
        await w.clean()


async def test_a_hot_prompt_spreads(tmp_path: Path):
    async with served(tmp_path, 3, max_running=8, answer_tokens=20) as (w, _):
        hot = [system("everybody's")]
        await ask(w, [*hot, {"role": "user", "content": "first"}])
        asked = [ask(w, [*hot, {"role": "user", "content": str(i)}]) for i in range(60)]
        answers = await asyncio.gather(*asked)
        where = Counter(r.headers[WHERE] for r in answers)
        assert len(where) == 3
        assert max(where.values()) < 40
        # By now it is everywhere.
        later = await asyncio.gather(*(ask(w, [*hot, {"role": "user", "content": f"later {i}"}]) for i in range(12)))
        assert all(cached(r) > 800 for r in later)
        await w.clean()


async def test_another_proxy_hears_of_it_from_the_replicas(tmp_path: Path):
    async with served(tmp_path, 3) as (w, replicas), world(0) as other:
        show(other, replicas)
        await other.reachable(*(r.replica_id for r in replicas))
        messages = [system("shared"), {"role": "user", "content": "hello"}]
        where = (await ask(w, messages)).headers[WHERE]
        holder = next(s for s in other.proxy.sessions if s.endpoint.replica_id == where)
        await eventually(lambda: len(holder.prefixes))
        for i in range(4):
            r = await ask(other, [*messages, {"role": "user", "content": f"and {i}"}])
            assert (r.headers[WHERE], r.headers[REASON].split(";")[0]) == (where, "prefix")
        # One that connects later hears of all there is.
        async with world(0) as third:
            show(third, replicas)
            await third.reachable(*(r.replica_id for r in replicas))
            assert (await ask(third, messages)).headers[WHERE] == where
            await third.clean()
        await other.clean()
        await w.clean()


async def test_a_replica_that_starts_again_holds_nothing(tmp_path: Path):
    async with served(tmp_path, 2) as (w, replicas):
        messages = [system("forgotten"), {"role": "user", "content": "hello"}]
        where = (await ask(w, messages)).headers[WHERE]
        first = next(r for r in replicas if r.replica_id == where)
        spec = replace(a_spec(options={"step_s": 0.002}), replica_id=ReplicaId(first.replica_id))
        os.kill(first.child.pid, signal.SIGKILL)
        await first.exit_code()
        async with running(spec, tmp_path / "again") as again:
            await again.ready()
            show(w, [again, *(r for r in replicas if r is not first)])

            def anew() -> bool:
                return any(s.ready and s.endpoint.address == again.address for s in w.proxy.sessions)

            await eventually(anew)
            r = await ask(w, messages)
            assert r.headers[REASON].startswith("least-load; matched=0/")
            assert cached(r) == 0
            await w.clean()


async def test_an_engine_without_a_prefix_cache_draws_nobody(tmp_path: Path):
    async with served(tmp_path, 2, prefix_cache=False) as (w, _):
        messages = [system("nobody's"), {"role": "user", "content": "hello"}]
        for _ in range(4):
            r = await ask(w, messages)
            assert (r.headers[REASON].partition("/")[0], cached(r)) == ("least-load; matched=0", 0)
        assert not any(len(s.prefixes) for s in w.proxy.sessions)
        await w.clean()


async def test_sessions_by_header(tmp_path: Path):
    async with served(tmp_path, 3) as (w, _):
        homes: dict[str, set[str]] = {}
        for i in range(24):
            name = f"session {i % 8}"
            r = await ask(w, [{"role": "user", "content": f"short {i}"}], {"X-Session-Id": name})
            assert r.headers[REASON] == "session"
            homes.setdefault(name, set()).add(r.headers[WHERE])
        assert all(len(where) == 1 for where in homes.values())
        assert len(set.union(*homes.values())) > 1
        body = {"model": "demo", "messages": [{"role": "user", "content": "x"}]}
        r = await w.client.post("/v1/chat/completions", json=body, headers={"X-Session-Id": "x" * 257})
        assert r.status_code == 400
        assert r.json()["error"]["message"] == "X-Session-Id must have at most 256 characters."
        await w.clean()


@pytest.mark.parametrize("policy", ["least-load", "round-robin", "random"])
async def test_other_policies(tmp_path: Path, policy: str):
    async with served(tmp_path, 2, settings={"routing": policy}) as (w, _):
        messages = [system("anybody's"), {"role": "user", "content": "hello"}]
        answers = [await ask(w, messages, {"X-Session-Id": "s"}) for _ in range(12)]
        assert {r.headers[REASON] for r in answers} == {policy}
        where = [r.headers[WHERE] for r in answers]
        if policy == "round-robin":
            assert all(a != b for a, b in pairwise(where))
        await w.clean()


async def test_one_replica_costs_no_hashing_and_streams_have_the_headers(tmp_path: Path):
    async with served(tmp_path, 1) as (w, _):
        body = {"model": "demo", "messages": [system("alone")], "stream": True}
        r = await w.client.post("/v1/chat/completions", json=body)
        assert (r.headers[WHERE], r.headers[REASON]) == ("demo-1-0", "only-replica")
        assert not any(len(s.prefixes) for s in w.proxy.sessions)
        r = await w.client.post("/v1/chat/demo", content="hello", headers={"Content-Type": "text/plain"})
        assert r.headers[REASON] == "only-replica"
        await w.clean()


async def test_headers_that_had_to_go_before_the_choice_say_so():
    async with world(0) as w:
        w.head.state("demo", RouteState.STARTING, "loading")
        body = {"model": "demo", "messages": [{"role": "user", "content": "x"}], "stream": True}
        async with w.client.stream("POST", "/v1/chat/completions", json=body) as r:
            assert r.headers[REASON] == "queued"
            assert WHERE not in r.headers
        await w.clean()
