"""Proxies as processes: two on one port, their metrics together, and how they end."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
from authority_fixtures import STATE
from integration.proxy_fixtures import Head, Replica, answer, eventually, free_port

from headrace.process import LIFELINE_ENV, Child, child_env

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
PROGRAM = """
import asyncio, json, os, resource, sys, pathlib, uvloop
from headrace.proxy.app import run
from headrace.settings import ProxySettings
given = json.loads(sys.argv[1])
given |= {k: pathlib.Path(v) for k, v in given.items() if k in ("metrics_dir", "api_keys_file", "state_dir")}
if files := int(os.environ.get("OPEN_FILES", 0)):
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
uvloop.run(run(ProxySettings(**given)))
"""


@asynccontextmanager
async def proxies(
    count: int, folder: Path, lifeline: int | None = None, open_files: int = 0, **knobs: object
) -> AsyncIterator[tuple[list[Child], Head, Replica, str]]:
    """`count` proxy processes on one port, all with a session to one replica."""
    async with AsyncExitStack() as stack:
        head = await Head().start()
        stack.push_async_callback(head.die)
        replica = await Replica("demo-1-0", **knobs).start()
        stack.push_async_callback(replica.die)
        head.ready("demo", replica)
        port, holder = free_port()
        stack.callback(holder.close)
        settings = {"http_port": port, "head_address": head.address, "metrics_dir": str(folder / "metrics")}
        settings["state_dir"] = str(STATE)
        children: list[Child] = []
        for _ in range(count):
            child = Child.spawn(
                [sys.executable, "-c", PROGRAM, json.dumps(settings)],
                env=child_env(
                    {"OPEN_FILES": str(open_files)} | ({LIFELINE_ENV: str(lifeline)} if lifeline is not None else {})
                ),
                output=folder / "proxy.log",
                pass_fds=() if lifeline is None else (lifeline,),
            )
            children.append(child)
            stack.push_async_callback(child.stop, 2.0)
        await eventually(lambda: replica.sessions == count)
        yield children, head, replica, f"http://127.0.0.1:{port}"


async def test_a_proxy_without_routes_leaves_connections_to_others_while_there_are_any(tmp_path: Path):
    async with proxies(1, tmp_path) as ((first,), head, _, url):
        await ask(url)
        address = head.address
        await head.die()
        port = int(url.rpartition(":")[2])
        settings = {"http_port": port, "head_address": address, "metrics_dir": str(tmp_path / "metrics")}
        log = tmp_path / "second.log"
        second = Child.spawn([sys.executable, "-c", PROGRAM, json.dumps(settings)], env=child_env({}), output=log)
        try:
            await eventually(lambda: "proxy_listening" in log.read_text())
            for _ in range(30):
                await ask(url)
            os.kill(first.pid, signal.SIGKILL)

            async def taken() -> int:
                async with httpx.AsyncClient(base_url=url) as client:
                    try:
                        return (await client.get("/health")).status_code
                    except httpx.TransportError:
                        return 0

            while await taken() != 200:  # noqa: ASYNC110 - the condition is another process's
                await asyncio.sleep(0.05)
        finally:
            await second.stop(2.0)


async def ask(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:  # a connection of its own
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def success(url: str) -> float:
    async with httpx.AsyncClient(base_url=url, timeout=20) as client:
        page = (await client.get("/metrics")).text
    line = next((x for x in page.splitlines() if x.startswith("vllm:request_success_total{")), "x 0")
    return float(line.rpartition(" ")[2])


async def until_all_say(url: str, count: int) -> None:
    """What one has counted the others see within about a second."""
    give_up = time.monotonic() + 20
    while [await success(url) for _ in range(6)] != [count] * 6:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.1)


async def test_two_proxies_share_a_port_and_sum_their_metrics(tmp_path: Path):
    async with proxies(2, tmp_path) as (children, _, replica, url):
        for _ in range(30):
            await ask(url)
        assert len({s.request_id for s in replica.submits}) == 30
        # Whichever of the two answers, the sum is the same.
        await until_all_say(url, 30)
        # One dies: the other goes on, and what the dead one counted is kept.
        os.kill(children[0].pid, signal.SIGKILL)
        await children[0].wait()
        for _ in range(5):
            await ask(url)
        await until_all_say(url, 35)
        assert not list((tmp_path / "metrics").glob(f"gauge_live*_{children[0].pid}.db"))


async def test_term_finishes_streams_then_exits(tmp_path: Path):
    async with (
        proxies(1, tmp_path, tokens=100, step_s=0.005) as (children, _, replica, url),
        httpx.AsyncClient(base_url=url, timeout=20) as client,
    ):
        request = asyncio.create_task(client.post("/v1/chat/demo", content="x", headers={"Content-Type": "text/plain"}))
        await eventually(lambda: replica.live)
        os.kill(children[0].pid, signal.SIGTERM)
        assert (await request).text == answer(100)
        assert await children[0].wait() == 0


async def test_second_term_ends_streams_with_an_error(tmp_path: Path):
    async with (
        proxies(1, tmp_path, tokens=1_000_000, step_s=0.005) as (children, _, replica, url),
        httpx.AsyncClient(base_url=url, timeout=20) as client,
    ):
        request = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT | {"stream": True}))
        await eventually(lambda: replica.live)
        os.kill(children[0].pid, signal.SIGTERM)
        await eventually(lambda: "proxy_draining" in (tmp_path / "proxy.log").read_text())
        os.kill(children[0].pid, signal.SIGTERM)
        assert '"error"' in (await request).text
        assert await children[0].wait() == 0


async def test_proxy_ends_with_its_parent(tmp_path: Path):
    read_end, write_end = os.pipe()
    try:
        async with proxies(1, tmp_path, lifeline=read_end) as (children, _, _, url):
            await ask(url)
            os.close(write_end)
            assert await children[0].wait() == 0
    finally:
        os.close(read_end)


async def test_silent_connections_leave_room_for_others(tmp_path: Path):
    """More of them than there are descriptors: the oldest go, whoever comes is served, and it is told once."""
    async with proxies(1, tmp_path, open_files=300) as (children, _, _, url):
        host, _, port = url.removeprefix("http://").rpartition(":")
        silent: list[asyncio.StreamWriter] = []
        for _ in range(10):
            for _, writer in await asyncio.gather(*(asyncio.open_connection(host, int(port)) for _ in range(50))):
                silent.append(writer)
            async with httpx.AsyncClient(base_url=url, timeout=20.0, trust_env=False) as client:
                for _ in range(3):
                    assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
                page = (await client.get("/metrics")).text
        assert children[0].alive()
        closed = re.search(r'headrace_connections_closed_total{reason="idle"} (\d+)', page)
        assert closed
        assert int(closed[1]) > 200
        said = (tmp_path / "proxy.log").read_text()
        assert said.count("few_open_files") == 2  # as it started, and when they were few
        for writer in silent:
            writer.close()
