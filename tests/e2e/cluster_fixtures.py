"""A cluster of processes that are started and killed one by one, and clients that never stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from authority_fixtures import trusted
from head_fixtures import Admin
from up_fixtures import CATALOG, stream

from headrace.cli.leftovers import marked, recorded
from headrace.core import simulated
from headrace.core.types import ClusterStatus
from headrace.head.controller import Endpoint
from headrace.process import Child, ProcessRecord, child_env

HEADRACE = (sys.executable, "-m", "headrace")


class Cluster:
    """Parts under one folder. Ports are the system's choice, and stay what they were over restarts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = trusted(folder / "state")
        self.children: list[Child] = []
        self.endpoint: Endpoint | None = None
        self.host = ""  # where we reach the head, if not where it says
        (folder / "catalog.yaml").write_text(CATALOG)

    def spawn(self, name: str, *argv: str, prefix: Sequence[str] = (), **env: str) -> Child:
        child = Child.spawn([*prefix, *HEADRACE, *argv], env=child_env(env), output=self.folder / f"{name}.log")
        self.children.append(child)
        return child

    async def head(self, *flags: str, num_proxies: int = 1, prefix: Sequence[str] = ()) -> Child:
        """A head that listens."""
        child = self.spawn(
            "head", "head", f"--state_dir={self.state}", f"--catalog={self.folder}/catalog.yaml",
            "--http_port=0", "--node_port=0", "--grpc_port=0", f"--num_proxies={num_proxies}", *flags, prefix=prefix,
        )  # fmt: skip
        async with asyncio.timeout(60):
            while self.endpoint is None or self.endpoint.pid != child.pid:
                assert child.alive(), self.words("head")
                with suppress(OSError, ValueError):
                    self.endpoint = Endpoint(**json.loads((self.state / "head/endpoint.json").read_text()))
                await asyncio.sleep(0.02)
        return child

    def scheduler(self, node_id: str, *flags: str, state: Path | None = None, prefix: Sequence[str] = ()) -> Child:
        assert self.endpoint
        host, _, port = self.endpoint.node.rpartition(":")
        return self.spawn(
            f"scheduler-{node_id}", "scheduler", f"--node_id={node_id}", f"--state_dir={trusted(state or self.state)}",
            f"--cache_dir={self.folder}/cache", "--num_cpus=2", f"--head_address={host}", f"--port={port}", *flags,
            prefix=prefix,
        )  # fmt: skip

    @property
    def url(self) -> str:
        assert self.endpoint
        return f"http://{self.endpoint.http}"

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[Admin]:
        assert self.endpoint
        host, _, port = self.endpoint.grpc.rpartition(":")
        async with Admin(f"{self.host or host}:{port}") as admin:
            yield admin

    async def until(self, what: Any, patience_s: float = 60.0) -> ClusterStatus:
        """The first status for which `what` is true; asked again and again, also while there is no head."""
        last: Any = None
        try:
            async with asyncio.timeout(patience_s), self.admin() as admin:
                while not what(last := await admin.status()):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"never so; last: {last}\n{self.words()}") from None
        return last

    def replicas(self) -> set[ProcessRecord]:
        return {r for r in marked(self.state) if r.alive()}

    def proxies(self) -> set[ProcessRecord]:
        return {r for r in recorded(self.state) if r.alive()} - self.replicas()

    def words(self, name: str = "*") -> str:
        logs = [*self.folder.glob(f"{name}.log"), *self.state.glob("head/proxies/*.log")]
        return "\n".join(f"== {f.name}\n{f.read_text(errors='replace')[-2500:]}" for f in logs)

    async def end(self) -> None:
        """Whatever still runs."""
        for child in reversed(self.children):
            with suppress(TimeoutError):
                await child.stop(term_s=0.1)
        states = {self.state, *(p.parent for p in self.folder.glob("*/nodes"))}
        for record in {r for s in states for r in (*recorded(s), *marked(s))}:
            if record.alive():
                with suppress(ProcessLookupError):
                    os.kill(record.pid, signal.SIGKILL)


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[Cluster]:
    c = Cluster(folder)
    try:
        yield c
    finally:
        await c.end()


def kill(process: Child | ProcessRecord) -> None:
    os.kill(process.pid, signal.SIGKILL)


def ready(n: int) -> Any:
    """Of a status: the first deployment has `n` replicas ready."""
    return lambda s: s.deployments and s.deployments[0].ready == n


def expected(prompt: str, tokens: int) -> str:
    """What the simulated engine answers."""
    ids = simulated.encode(simulated.chat_prompt([{"role": "user", "content": prompt}]))
    key = simulated.digest(ids, None)
    return simulated.decode([simulated.token_at(key, i) for i in range(tokens)])


class Traffic:
    """Clients that ask one streamed question after another for the length of the block; all must be answered whole.

    `wrong` says what was not.
    """

    def __init__(self, url: str, clients: int = 6, tokens: int = 40) -> None:
        self._url, self._clients, self._tokens = url, clients, tokens
        self.answers = 0
        self.wrong: list[str] = []
        self._end = asyncio.Event()

    async def __aenter__(self) -> Traffic:
        self._tasks = [asyncio.create_task(self._client(n)) for n in range(self._clients)]
        await self.more()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, _: TracebackType | None
    ) -> None:
        self._end.set()
        await asyncio.gather(*self._tasks)

    async def more(self, answers: int | None = None, patience_s: float = 60.0) -> None:
        """Wait until so many more have come (or one for each client)."""
        enough = self.answers + (answers or self._clients)
        end = time.monotonic() + patience_s
        while self.answers < enough:
            assert time.monotonic() < end, f"the answers cease; wrong: {self.wrong}"
            await asyncio.sleep(0.02)

    async def _client(self, n: int) -> None:
        turn = 0
        while not self._end.is_set():
            turn += 1
            prompt = f"client {n}, question {turn}"
            try:
                text = "".join(await stream(self._url, "sim", prompt, self._tokens))
                if text != expected(prompt, self._tokens):
                    self.wrong.append(f"{prompt}: {text!r}")
            except (httpx.HTTPError, AssertionError) as e:
                self.wrong.append(f"{prompt}: {e!r}")
                await asyncio.sleep(0.05)
            self.answers += 1
