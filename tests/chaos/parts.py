"""A head and a scheduler as processes of their own, with real proxies and simulated replicas; and a load that minds."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
from authority_fixtures import credentials
from head_fixtures import Admin, HeadProcess, free_port, head_process
from up_fixtures import eventually, stream

from headrace.cli.leftovers import end_leftovers
from headrace.core import simulated
from headrace.process import Child, child_env
from headrace.rpc.admin import AdminClient

CATALOG = """
models:
  sim: {source: builtin:demo, engine: simulated, resources: {cpus: 1}, engine_args: {step_s: 0.01, answer_tokens: 40}}
  other: {source: builtin:demo, engine: simulated, resources: {cpus: 0}}
"""


def answer(prompt: str, tokens: int) -> str:
    """What the simulated engine says, whoever runs it."""
    ids = simulated.encode(simulated.chat_prompt([{"role": "user", "content": prompt}]))
    key = simulated.digest(ids, None)
    return simulated.decode([simulated.token_at(key, i) for i in range(tokens)])


class Load:
    """Clients that ask one after another, without end, and note what is not exactly right."""

    def __init__(self, url: str, model: str, clients: int = 4, tokens: int = 40) -> None:
        self._url, self._model, self._clients, self._tokens = url, model, clients, tokens
        self.answers = 0
        self.errors: list[str] = []

    async def run(self) -> None:
        """Until cancelled. Half of the clients stream."""
        async with asyncio.TaskGroup() as group:
            for n in range(self._clients):
                group.create_task(self._client(n))

    async def _client(self, n: int) -> None:
        for turn in range(10**9):
            prompt = f"client {n} turn {turn}"
            try:
                text = await (self._streamed if n % 2 else self._whole)(prompt)
                if text != answer(prompt, self._tokens):
                    self.errors.append(f"{prompt}: wrong text {text!r}")
            except (httpx.HTTPError, AssertionError) as e:
                self.errors.append(f"{prompt}: {e!r}")
            self.answers += 1

    async def _streamed(self, prompt: str) -> str:
        return "".join(await stream(self._url, self._model, prompt, self._tokens))

    async def _whole(self, prompt: str) -> str:
        body = {"model": self._model, "messages": [{"role": "user", "content": prompt}], "max_tokens": self._tokens}
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            got = await client.post(f"{self._url}/v1/chat/completions", json=body)
        assert got.status_code == 200, (got.status_code, got.text)
        return got.json()["choices"][0]["message"]["content"]

    async def more(self, count: int) -> None:
        """Wait for so many further answers."""
        end = self.answers + count
        async with asyncio.timeout(60):
            while self.answers < end:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@asynccontextmanager
async def loaded(load: Load) -> AsyncIterator[Load]:
    """`load` for the length of the block."""
    task = asyncio.ensure_future(load.run())
    try:
        yield load
    finally:
        task.cancel()
        await asyncio.wait([task])


class Cluster:
    """One machine whose head comes and goes."""

    def __init__(self, state_dir: Path, cpus: float, scheduler_flags: Mapping[str, str]) -> None:
        self.state_dir = state_dir
        self._catalog = state_dir / "catalog.yaml"
        self._ports = free_port(), free_port(), free_port()
        self._flags = [f"--num_cpus={cpus}", *(f"--{k}={v}" for k, v in scheduler_flags.items())]
        self.url = f"http://127.0.0.1:{self._ports[0]}"

    @asynccontextmanager
    async def head(self, program: Sequence[str] = (), **more: str) -> AsyncIterator[HeadProcess]:
        ports = [f"--{n}_port={p}" for n, p in zip(("http", "node", "grpc"), self._ports, strict=True)]
        flags = ["--num_proxies=1", f"--catalog={self._catalog}", *ports, *(f"--{k}={v}" for k, v in more.items())]
        program = program or (sys.executable, "-m", "headrace", "head")
        async with head_process(self.state_dir, *flags, program=program) as head:
            yield head

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[Admin]:
        async with Admin(f"127.0.0.1:{self._ports[2]}") as admin:
            yield admin

    async def answers(self) -> None:
        """Wait until a proxy listens."""

        async def look() -> bool:
            async with httpx.AsyncClient(trust_env=False) as client:
                return (await client.get(f"{self.url}/health")).status_code == 200

        await eventually(look, "had a proxy that listens")

    def client(self) -> AdminClient:
        return AdminClient(f"127.0.0.1:{self._ports[2]}", credentials())

    def spawn_scheduler(self) -> Child:
        argv = [sys.executable, "-m", "headrace", "scheduler", "--head_address=127.0.0.1", f"--port={self._ports[1]}"]
        more = [f"--state_dir={self.state_dir}", f"--cache_dir={self.state_dir}/cache", *self._flags]
        output = self.state_dir / "scheduler.log"
        return Child.spawn([*argv, *more, "--memory=64GiB", "--num_gpus=0"], env=child_env(), output=output)


@asynccontextmanager
async def cluster(
    state_dir: Path, cpus: float = 16, catalog: str = CATALOG, **scheduler_flags: str
) -> AsyncIterator[Cluster]:
    """A scheduler that waits for its head; at the end nothing is left of either."""
    made = Cluster(state_dir, cpus, scheduler_flags)
    (state_dir / "catalog.yaml").write_text(catalog)
    scheduler = made.spawn_scheduler()
    try:
        yield made
    finally:
        with suppress(TimeoutError):
            await scheduler.stop(10.0)
        await end_leftovers(state_dir, print)
