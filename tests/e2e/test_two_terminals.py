"""The two terminals of the specification, from a checkout, with the commands as they are written there."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from cli_fixtures import run_cli
from up_fixtures import eventually, stream

from headrace.process import ProcessRecord, child_env

ROOT = Path(__file__).parents[2]
CATALOG = "models:\n" + "".join(
    f"  {name}: {{source: 'builtin:demo', engine: simulated, resources: {{cpus: 0.5}}, "
    f"engine_args: {{answer_tokens: 60, load_s: 0.2}}}}\n"
    for name in ("tinyllama", "gpt2", "phi2")
)


@asynccontextmanager
async def terminal(command: str, tmp_path: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """One terminal with `command`, as typed, in the root of the checkout."""
    argv = [sys.executable if word == "python3" else word for word in command.split()]
    env = {"HEADRACE_STATE_DIR": str(tmp_path / "state"), "HEADRACE_CACHE_DIR": str(tmp_path / "cache")}
    env["HEADRACE_CATALOG"] = str(tmp_path / "catalog.yaml")
    (tmp_path / "catalog.yaml").write_text(CATALOG)
    with (tmp_path / "terminal.log").open("ab") as out:
        process = await asyncio.create_subprocess_exec(*argv, stdout=out, stderr=out, env=child_env(env), cwd=ROOT)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 15)
            except TimeoutError:
                process.kill()
                await process.wait()


HEAD = "python3 -m src.components.headNode.head_controller --http_port=0 --node_port=0 --grpc_port=0"
SCHEDULER = (
    "python3 -m src.components.scheduler --node_id={node} --head_address=localhost --port={port}"
    " --num_cpus=2 --num_gpus=0"
)


async def _endpoint(tmp_path: Path) -> dict[str, str]:
    path = tmp_path / "state/head/endpoint.json"

    async def read() -> dict[str, str]:
        return json.loads(path.read_text())

    return await eventually(read, "listened")


async def _plain(url: str, model: str) -> list[str]:
    """What curl would get, in the pieces in which it comes."""
    pieces: list[str] = []
    async with (
        httpx.AsyncClient(trust_env=False, timeout=60) as client,
        client.stream(
            "POST",
            f"{url}/v1/chat/{model}",
            content="Explain about Machine Learning?",
            headers={"Content-Type": "text/plain"},
        ) as response,
    ):
        async for text in response.aiter_text():
            pieces.append(text)
        assert response.status_code == 200, pieces
        assert response.headers["content-type"].startswith("text/plain")
    return pieces


async def test_the_two_terminals_and_a_second_scheduler(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(terminal(HEAD, tmp_path))
        where = await _endpoint(tmp_path)
        port = where["node"].rpartition(":")[2]
        await stack.enter_async_context(terminal(SCHEDULER.format(node=1, port=port), tmp_path))
        url = f"http://{where['http']}"

        async def healthy() -> bool:
            async with httpx.AsyncClient(trust_env=False) as client:
                return (await client.get(f"{url}/health")).status_code == 200

        await eventually(healthy, "answered")
        for model in ("tinyllama", "gpt2", "phi2"):  # deployed by the request itself
            assert len(await _plain(url, model)) > 5
        await stack.enter_async_context(terminal(SCHEDULER.format(node=2, port=port), tmp_path))
        state = f"--state_dir={tmp_path}/state"
        assert (await run_cli("deploy", "tinyllama", "--replicas=4", state)).code == 0
        status = json.loads((await run_cli("status", "--json", state)).out)
        nodes = {r["node_id"] for r in status["replicas"] if r["status"]["deployment"] == "tinyllama"}
        assert nodes == {"1", "2"}
        assert len(await stream(url, "tinyllama", "hello")) > 5


async def test_the_scheduler_may_come_first(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as s:
        port = s.getsockname()[1]
    head = HEAD.replace("--node_port=0", f"--node_port={port}")
    async with terminal(SCHEDULER.format(node=1, port=port), tmp_path):
        log = tmp_path / "terminal.log"

        async def waits() -> bool:
            return "no head at" in log.read_text()

        await eventually(waits, "said that it waits")
        async with terminal(head, tmp_path):
            await _endpoint(tmp_path)

            async def joined() -> bool:
                return "ALIVE" in (await run_cli("nodes", f"--state_dir={tmp_path}/state")).out

            await eventually(joined, "joined")


async def test_ending_the_terminals_leaves_nothing(tmp_path: Path) -> None:
    async with terminal(HEAD, tmp_path) as head:
        where = await _endpoint(tmp_path)
        port = where["node"].rpartition(":")[2]
        async with terminal(SCHEDULER.format(node=1, port=port), tmp_path) as scheduler:
            assert len(await eventually(lambda: _plain(f"http://{where['http']}", "gpt2"), "answered")) > 5
            pids = [p.pid for x in (head, scheduler) for p in psutil.Process(x.pid).children(recursive=True)]
            records = [r for pid in pids if (r := ProcessRecord.of(pid))]
            assert len(records) >= 3  # two proxies and a replica
            scheduler.terminate()
            assert await asyncio.wait_for(scheduler.wait(), 20) == 0
            head.terminate()
            assert await asyncio.wait_for(head.wait(), 20) == 0
            assert not [r for r in records if r.alive()]


@pytest.mark.parametrize("module", ["headNode.head_controller", "scheduler"])
async def test_help_is_that_of_the_command(module: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"src.components.{module}", "--help",
        stdout=asyncio.subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    out, _ = await process.communicate()
    command = "head" if "head" in module else "scheduler"
    assert re.match(rf"Usage: headrace {command} ", out.decode())


@pytest.mark.parametrize("module", ["headNode.head_controller", "scheduler"])
async def test_without_dependencies_the_command_to_install_them_is_named(module: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-S", "-E", "-m", f"src.components.{module}",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert err.decode() == "Error: The module 'click' is not installed. In the checkout, run: pip install -e '.[cpu]'\n"
