"""How long it takes from `headrace deploy` to the first token through HTTP, part by part: for startup.py --deploy."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx

from headrace.cli.client import open_admin
from headrace.cli.endpoint import HeadEndpoint, read_endpoint
from headrace.core.types import DeployRequest, ReplicaSpec
from headrace.process import Child, child_env
from headrace.rpc.channel import open_channel
from headrace.rpc.finding import from_state
from headrace.rpc.roles import Role
from headrace.rpc.v1 import replica_pb2_grpc
from headrace.settings import TlsSettings

LIMIT_S = 300.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cluster:
    """A head with two proxies and one scheduler, idle."""

    folder: Path
    head: HeadEndpoint


@asynccontextmanager
async def cluster() -> AsyncIterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="headrace-deploy-"))
    run = [sys.executable, "-m", "headrace"]
    state = [f"--state_dir={folder}"]
    ports = ["--http_port=0", "--node_port=0", "--grpc_port=0"]
    children = [Child.spawn([*run, "head", *state, *ports], env=child_env(), output=folder / "head.log")]
    try:
        async with asyncio.timeout(LIMIT_S):
            head = await seen(lambda: read_endpoint(folder))
            at = [f"--port={head.node.rpartition(':')[2]}", "--head_address=127.0.0.1", f"--cache_dir={folder}/cache"]
            children += [Child.spawn([*run, "scheduler", *state, *at], env=child_env(), output=folder / "node.log")]
            async with open_admin(head.grpc, folder) as admin:
                while not any(n.alive for n in (await admin.status()).nodes):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            async with httpx.AsyncClient(base_url=head.url) as client:
                while not await answers(client):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        await asyncio.sleep(2.0)  # what started has settled: a part of a start is not to be paid by this one
        yield Cluster(folder, head)
    finally:
        for child in reversed(children):
            await child.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def answers(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health")).is_success
    except httpx.TransportError:
        return False


async def measure(spec: ReplicaSpec, watch: Callable[..., AsyncGenerator[tuple[str, bool]]]) -> dict[str, float]:
    """Seconds of each part, in order; "total" last. `watch`: what a replica says it does, and whether it is READY."""
    async with (
        cluster() as c,
        open_admin(c.head.grpc, c.folder) as admin,
        httpx.AsyncClient(base_url=c.head.url) as client,
    ):
        model = spec.model
        request = DeployRequest(model.source, "bench", model.engine, engine_args_json=model.engine_args_json)
        parts: dict[str, float] = {}
        begun = since = time.monotonic()

        def over(part: str) -> None:
            nonlocal since
            now = time.monotonic()
            parts[part] = parts.get(part, 0.0) + now - since
            since = now

        async with asyncio.timeout(LIMIT_S):
            await admin.deploy(request)
            over("deploy is accepted")
            token = asyncio.create_task(first_token(client))
            replica = (await seen(lambda: next(c.folder.glob("nodes/*/replicas/*/process.json"), None))).parent
            over("schedule: placed, told, spawned")
            address = json.loads(await seen(lambda: text_of(replica / "endpoint.json")))["address"]
            over("process, until it listens")
            node = from_state(c.folder, Role.NODE, "bench", TlsSettings())
            async with open_channel(address, node, Role.NODE) as channel:
                stub = replica_pb2_grpc.ReplicaServiceStub(channel)
                async with aclosing(watch(stub, replica.name)) as news:
                    doing = ""
                    async for activity, is_ready in news:
                        if doing and activity != doing:
                            over(doing)
                        doing = activity
                        if is_ready:
                            break
            at_ready = since = time.monotonic()
            first_at = await token
            begun_again = time.monotonic()
            warm_s = await first_token(client) - begun_again
        parts["route published"] = max(0.0, first_at - at_ready - warm_s)
        parts["first token"] = warm_s
        parts["total"] = first_at - begun
        return parts


async def first_token(client: httpx.AsyncClient) -> float:
    """When the first token of an answer came. A proxy may hear of a new deployment a little later than its deployer."""
    body = {"model": "bench", "prompt": "Hello", "max_tokens": 1, "stream": True, "ignore_eos": True}
    while True:
        async with client.stream("POST", "/v1/completions", json=body, timeout=LIMIT_S) as answer:
            if answer.status_code == 404:
                continue
            async for line in answer.aiter_lines():
                if line.startswith("data: {") and "error" not in json.loads(line[6:]):
                    return time.monotonic()
                if not answer.is_success or line.startswith("data: "):
                    raise SystemExit(f"no token: {answer.status_code} {line}")


async def seen(look: Callable[[], T | None]) -> T:
    while (found := look()) is None:  # noqa: ASYNC110
        await asyncio.sleep(0.002)
    return found


def text_of(path: Path) -> str | None:
    try:
        return path.read_text() or None
    except FileNotFoundError:
        return None
