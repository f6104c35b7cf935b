"""Headrace, as the peers are: a head, one proxy, a scheduler, and replicas."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from headrace.cli.client import open_admin
from headrace.cli.endpoint import HeadEndpoint, read_endpoint
from headrace.core.phase import Phase
from headrace.core.types import DeployRequest
from peers.processes import DidNotStart, logged, wait_until_it_answers
from peers.targets import START_S, TEXT, Target

CONTEXT_TOKENS = 4_000_000
_WORDS = [" " + word for word in TEXT.split()]


@dataclass(frozen=True)
class Cluster:
    """A head and a scheduler that run. `grpc`: the head's address for proxies."""

    endpoint: HeadEndpoint
    head: subprocess.Popen[bytes]
    replicas: Sequence[psutil.Process]


@dataclass(frozen=True)
class System:
    port: int
    proxy: psutil.Process
    replicas: Sequence[psutil.Process]


@contextmanager
def cluster(
    models: Mapping[str, Any],
    replicas: int,
    head_args: Sequence[str],
    folder: Path,
    python: str = sys.executable,
    *,
    proxies: int = 0,
    host: str = "127.0.0.1",
) -> Iterator[Cluster]:
    """A catalog of models, each deployed with so many replicas, and READY. `head_args`: flags, and variables as A=B.

    `host`: the address of head and replicas.
    """
    state = folder / "state"
    catalog = folder / "catalog.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    catalog.write_text(json.dumps({"models": models}))
    run = [python, "-m", "headrace"]
    ports = ["--http_port=0", "--node_port=0", "--grpc_port=0", f"--num_proxies={proxies}", f"--catalog={catalog}"]
    own = [f"--host={host}"]
    flags = [arg for arg in head_args if arg.startswith("-")]
    env = dict(arg.split("=", 1) for arg in head_args if not arg.startswith("-"))
    with ExitStack() as stack:
        log = folder / "headrace.log"
        head = stack.enter_context(logged([*run, "head", *ports, *own, f"--state_dir={state}", *flags], log, env))
        endpoint = _seen(state, head, log)
        at = [
            *own,
            f"--head_address={host}",
            f"--port={endpoint.node.rpartition(':')[2]}",
            "--num_cpus=2",
            "--num_gpus=0",
            f"--state_dir={state}",
        ]
        stack.enter_context(logged([*run, "scheduler", *at, f"--cache_dir={folder}/cache"], folder / "scheduler.log"))
        pids = asyncio.run(_deploy(endpoint.grpc, state, list(models), replicas))
        yield Cluster(endpoint, head, [psutil.Process(pid) for pid in pids])


@contextmanager
def system(
    models: Mapping[str, Any], replicas: int, head_args: Sequence[str], folder: Path, python: str = sys.executable
) -> Iterator[System]:
    """A cluster with one proxy."""
    with cluster(models, replicas, head_args, folder, python, proxies=1) as c:
        proxy = asyncio.run(_proxy(c.endpoint.grpc, folder / "state"))
        port = int(c.endpoint.http.rpartition(":")[2])
        wait_until_it_answers(c.head, port, "/ready", folder / "headrace.log", START_S)
        yield System(port, psutil.Process(proxy), c.replicas)


def headrace(
    name: str, steps: Sequence[float], replicas: int, head_args: Sequence[str], folder: Path
) -> Iterator[Target]:
    """With a model of the simulated engine for each length of a step."""
    with system({model(step): simulated(step) for step in steps}, replicas, head_args, folder) as s:
        yield Target(name, s.port, lambda: [s.proxy], model, said, lambda: s.replicas)


def model(step_s: float) -> str:
    return f"sim-{'held' if step_s > 1e6 else f'{step_s * 1000:g}ms'}"


def said(tokens: int) -> str:
    return "".join(_WORDS[i % len(_WORDS)] for i in range(tokens))


def simulated(step_s: float) -> dict[str, object]:
    options: dict[str, object] = {"text": TEXT, "max_running": 8192, "kv_tokens": 10**9, "answer_tokens": 10**6}
    # One that never says anything takes in a prompt's tokens one by one.
    held = {"step_s": 0.5, "prefill_chunk": 1}
    options |= held if step_s > 1e6 else {"step_s": step_s, "prefill_chunk": 10**9}
    about = {"source": "builtin:demo", "engine": "simulated", "context_tokens": CONTEXT_TOKENS}
    return about | {"engine_args": options, "resources": {"cpus": 0.01}}


def _seen(state: Path, head: subprocess.Popen[bytes], log: Path) -> HeadEndpoint:
    until = time.monotonic() + START_S
    while time.monotonic() < until and head.poll() is None:
        if (endpoint := read_endpoint(state)) is not None:
            return endpoint
        time.sleep(0.05)
    raise DidNotStart(log.read_text(errors="replace")[-1500:])


async def _deploy(address: str, state: Path, models: Sequence[str], replicas: int) -> list[int]:
    """The replicas' process ids, once all are READY."""
    async with open_admin(address, state) as admin, asyncio.timeout(START_S):
        while not any(node.alive for node in (await admin.status()).nodes):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        for model in models:
            await admin.deploy(DeployRequest(model, min_replicas=replicas, max_replicas=replicas))
        while True:
            status = await admin.status()
            if failed := [r.status.reason for r in status.replicas if r.status.phase is Phase.FAILED]:
                raise DidNotStart(failed[0])
            ready = [r.status.pid for r in status.replicas if r.status.phase is Phase.READY]
            if len(ready) == len(models) * replicas:
                return ready
            await asyncio.sleep(0.1)


async def _proxy(address: str, state: Path) -> int:
    """The process id of the head's proxy, once there is one."""
    async with open_admin(address, state) as admin, asyncio.timeout(START_S):
        while not (proxies := (await admin.status()).proxies):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        return proxies[0].pid
