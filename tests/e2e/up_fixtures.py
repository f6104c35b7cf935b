"""`headrace up` as a child process, everything that it starts, and ways to end it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
from authority_fixtures import trusted

from headrace.cli.leftovers import marked, recorded
from headrace.process import ProcessRecord, child_env

ANY_PORTS = ("--http_port=0", "--node_port=0", "--grpc_port=0")

CATALOG = """
models:
  sim:
    source: builtin:demo
    engine: simulated
    resources: {cpus: 0.1}
    engine_args: {load_s: 0.3, step_s: 0.02, answer_tokens: 150}
  slow:
    source: builtin:demo
    engine: simulated
    resources: {cpus: 0.1}
    engine_args: {load_s: 60}
  broken:
    source: builtin:demo
    engine: simulated
    resources: {cpus: 0.1}
    engine_args: {fail_load: The disk is made of cheese., permanent: true}
  stubborn:
    source: builtin:demo
    engine: simulated
    resources: {cpus: 0.1}
    engine_args: {refuse_to_stop: true}
"""


class Up:
    """One running `headrace up`."""

    def __init__(self, process: asyncio.subprocess.Process, state_dir: Path) -> None:
        self.process, self.state_dir = process, state_dir
        self.said = ""

    async def until(self, pattern: str, patience_s: float = 60.0) -> re.Match[str]:
        """Wait until what it has said matches."""
        assert self.process.stdout
        async with asyncio.timeout(patience_s):
            while not (found := re.search(pattern, self.said)):
                data = await self.process.stdout.read(4096)
                assert data, f"ended with {await self.process.wait()}:\n{self.said}\n{self.logs()}"
                self.said += data.decode()
        return found

    async def ready(self) -> str:
        """Wait until it serves; the base URL."""
        return (await self.until(r"Headrace is ready: (http://\S+)\n(?s:.*)Ctrl-C ends everything"))[1]

    def part(self, name: str) -> psutil.Process:
        """The head or the scheduler."""
        for p in psutil.Process(self.process.pid).children():
            with suppress(psutil.Error):  # one that was just killed
                if name in p.cmdline():
                    return p
        raise AssertionError(f"no {name} among {psutil.Process(self.process.pid).children()}")

    def everything(self) -> set[ProcessRecord]:
        """All processes that belong to it."""
        found = {*recorded(self.state_dir), *marked(self.state_dir)}
        if self.process.returncode is None:
            pids = [p.pid for p in psutil.Process(self.process.pid).children(recursive=True)]
            found |= {r for pid in [*pids, self.process.pid] if (r := ProcessRecord.of(pid))}
        return {r for r in found if r.alive()}

    def replicas(self) -> set[ProcessRecord]:
        return {r for r in marked(self.state_dir) if r.alive()}

    def proxies(self) -> set[ProcessRecord]:
        return {r for r in recorded(self.state_dir) if r.alive()} - self.replicas()

    async def end(self, signum: int = signal.SIGINT) -> int:
        """Signal it, and wait for its end; its exit code."""
        self.process.send_signal(signum)
        return await self.ended()

    async def ended(self) -> int:
        out, _ = await asyncio.wait_for(self.process.communicate(), 60)
        self.said += out.decode()
        assert self.process.returncode is not None
        return self.process.returncode

    def logs(self) -> str:
        files = [*self.state_dir.glob("logs/*.log"), *self.state_dir.glob("nodes/*/replicas/*/replica.log")]
        files += self.state_dir.glob("head/proxies/*.log")
        return "\n".join(f"== {f.name}\n{f.read_text(errors='replace')[-3000:]}" for f in files)


@asynccontextmanager
async def running(tmp_path: Path, *args: str, ports: tuple[str, ...] = ANY_PORTS, **env: str) -> AsyncIterator[Up]:
    """`headrace up` with a state directory of its own; whatever happens, nothing of it is left."""
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(CATALOG)
    state_dir = trusted(tmp_path / "state")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "headrace", "up", f"--state_dir={state_dir}", f"--cache_dir={tmp_path}/cache",
        f"--catalog={catalog}", "--num_proxies=1", *ports, *args,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        env=child_env({"PYTHONUNBUFFERED": "1", **env}),
    )  # fmt: skip
    up = Up(process, state_dir)
    try:
        yield up
    finally:
        records = up.everything()
        if process.returncode is None:
            process.kill()
            await process.wait()
        records |= up.everything()
        for record in records:
            if record.alive():
                os.kill(record.pid, signal.SIGKILL)


async def gone(records: set[ProcessRecord], patience_s: float = 20.0) -> None:
    """Wait until none of the processes lives."""
    async with asyncio.timeout(patience_s):
        while any(r.alive() for r in records):  # noqa: ASYNC110 - they are not our children
            await asyncio.sleep(0.02)


async def eventually(check: Any, what: str, patience_s: float = 60.0) -> Any:
    """Wait until `check()` gives something true, and return that. A refused connection is "not yet"."""
    value: Any = None
    try:
        async with asyncio.timeout(patience_s):
            while True:
                try:
                    value = await check()
                    if value:
                        return value
                except (httpx.HTTPError, OSError, psutil.Error) as e:
                    value = e
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"never {what}; last: {value!r}") from None


async def stream(
    url: str,
    model: str,
    prompt: str,
    tokens: int = 150,
    on_piece: Callable[[], None] = lambda: None,
    on_headers: Callable[[httpx.Headers], None] = lambda headers: None,
) -> list[str]:
    """The pieces of one answer over HTTP; AssertionError if it does not end as an answer does."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "stream": True}
    pieces: list[str] = []
    async with (
        httpx.AsyncClient(trust_env=False, timeout=60) as client,
        client.stream("POST", f"{url}/v1/chat/completions", json=body) as response,
    ):
        last = ""
        on_headers(response.headers)
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            last = line.removeprefix("data: ")
            if last != "[DONE]":
                event = json.loads(last)
                assert "error" not in event, event
                pieces += [c["delta"].get("content") or "" for c in event["choices"]]
                on_piece()
        assert response.status_code == 200, response.status_code
        assert last == "[DONE]", last
    return [p for p in pieces if p]
