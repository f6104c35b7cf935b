"""The specification's two terminals, with small models of GPT-2's, TinyLlama's and Phi-2's architectures, on demand."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from authority_fixtures import credentials, trusted
from up_fixtures import eventually

from headrace.cli.endpoint import HeadEndpoint, read_endpoint
from headrace.process import child_env
from headrace.rpc.admin import AdminClient

if TYPE_CHECKING:
    from model_fixtures import SmallModel

pytestmark = [
    pytest.mark.timeout(400),  # a conversion on a busy machine
    pytest.mark.skipif(not (Path(__file__).parents[2] / "src/components").is_dir(), reason="needs the checkout"),
]

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 180.0
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


class System:
    """A head and a scheduler that run."""

    def __init__(self, endpoint: HeadEndpoint, admin: AdminClient, http: httpx.AsyncClient) -> None:
        self.endpoint, self.admin, self.http = endpoint, admin, http

    async def pieces(self, model: str, text: str, **query: Any) -> list[str]:
        """The answer to a plain-text POST as it came, piece by piece."""
        path, headers = f"/v1/chat/{model}", {"Content-Type": "text/plain"}
        async with self.http.stream("POST", path, content=text, headers=headers, params=query) as response:
            pieces = [piece async for piece in response.aiter_text() if piece]
            assert response.status_code == 200, "".join(pieces)
            assert response.headers["content-type"].startswith("text/plain")
        return pieces

    async def complete(self, model: str, prompt: str, tokens: int) -> str:
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        response = await self.http.post("/v1/completions", json=body)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["text"]

    async def activities(self, model: str, seen: list[tuple[str, float]]) -> None:
        """Note what the replicas of a model are said to be doing, without end."""
        async for status in self.admin.watch_status():
            for r in status.replicas:
                if r.status.deployment == model and r.status.activity:
                    seen.append((r.status.activity, r.status.progress))


@asynccontextmanager
async def terminal(module: str, tmp_path: Path, *flags: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """One of the specification's commands, run in the checkout until the block ends; then told to end."""
    log = tmp_path / f"{module.rpartition('.')[2]}.log"
    env = child_env({"HEADRACE_STATE_DIR": f"{tmp_path}/state", "HEADRACE_CACHE_DIR": f"{tmp_path}/cache"})
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, *flags, cwd=ROOT, env=env, stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield process
        assert process.returncode is None, f"{module} ended with {process.returncode}"
    except BaseException:
        print(log.read_text()[-5000:])
        raise
    finally:
        try:
            if process.returncode is None:
                process.terminate()
                await asyncio.wait_for(process.wait(), 30)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()


@asynccontextmanager
async def two_terminals(tmp_path: Path, catalog: dict[str, Any]) -> AsyncIterator[System]:
    trusted(tmp_path / "state")
    file = tmp_path / "catalog.yaml"
    file.write_text(json.dumps({"models": catalog}))  # JSON is YAML
    head_flags = ("--http_port=0", "--node_port=0", "--grpc_port=0", f"--catalog={file}")
    async with terminal("src.components.headNode.head_controller", tmp_path, *head_flags) as head:

        async def listens() -> HeadEndpoint | None:
            assert head.returncode is None, "the head ended"
            found = read_endpoint(tmp_path / "state")
            return found if found and found.pid == head.pid else None

        endpoint: HeadEndpoint = await eventually(listens, "listened", PATIENCE_S)
        port = endpoint.node.rpartition(":")[2]
        node_flags = ("--node_id=1", "--head_address=localhost", f"--port={port}", "--num_cpus=2", "--num_gpus=0")
        async with (
            terminal("src.components.scheduler", tmp_path, *node_flags),
            AdminClient(endpoint.grpc, credentials()) as admin,
            httpx.AsyncClient(base_url=endpoint.url, timeout=PATIENCE_S, trust_env=False) as http,
        ):

            async def answers() -> bool:
                return (await http.get("/v1/models")).status_code == 200

            async def has_node() -> bool:
                return any(n.alive for n in (await admin.status()).nodes)

            await eventually(answers, "answered over HTTP", PATIENCE_S)
            await eventually(has_node, "had a node", PATIENCE_S)
            yield System(endpoint, admin, http)


def entry(source: Path, **more: Any) -> dict[str, Any]:
    return {"source": str(source), "resources": {"cpus": 0.5, "memory": "256MiB"}, **more}


def reference(model: SmallModel) -> tuple[str, str, int]:
    """A prompt, what transformers answers to it, and in how many tokens."""
    found = json.loads(model["greedy"].read_text())[0]
    return found["prompt"], found["text"], len(found["ids"])


async def test_the_three_models_of_the_specification_answer_on_demand_as_transformers_does(
    tmp_path: Path, small_models: dict[str, SmallModel]
) -> None:
    small = {"tinyllama": small_models["llama"], "gpt2": small_models["gpt2"], "phi2": small_models["phi"]}
    catalog = {
        "tinyllama": entry(small["tinyllama"]["ov"]),
        "gpt2": entry(small["gpt2"]["ov"], chat_template=TEMPLATE),
        "phi2": entry(small["phi2"]["ov"], chat_template=TEMPLATE),
    }
    async with two_terminals(tmp_path, catalog) as system:
        assert (await system.admin.status()).deployments == ()
        for name, model in small.items():
            pieces = await system.pieces(name, "Explain about Machine Learning?", max_tokens=120)
            assert len(pieces) > 5, pieces
            assert "".join(pieces).strip()
            prompt, text, tokens = reference(model)
            assert await system.complete(name, prompt, tokens) == text
        deployed = (await system.admin.status()).deployments
        assert {d.deployment.name for d in deployed} == set(small)


async def test_a_safetensors_folder_is_converted_once_and_status_shows_it(
    tmp_path: Path, small_models: dict[str, SmallModel]
) -> None:
    model = small_models["llama"]
    prompt, text, tokens = reference(model)
    async with two_terminals(tmp_path, {"tinyllama": entry(model["hf"])}) as system:
        seen: list[tuple[str, float]] = []
        async with asyncio.TaskGroup() as tasks:
            watcher = tasks.create_task(system.activities("tinyllama", seen))
            pieces = await system.pieces("tinyllama", "Explain about Machine Learning?", max_tokens=120)
            assert len(pieces) > 5, pieces
            watcher.cancel()
        progress = [p for activity, p in seen if activity.startswith("converting")]
        assert any(0.0 <= p <= 1.0 for p in progress), seen
        assert await system.complete("tinyllama", prompt, tokens) == text

        await system.admin.delete("tinyllama")

        async def is_gone() -> bool:
            return not (await system.admin.status()).replicas

        await eventually(is_gone, "deleted", PATIENCE_S)
        again: list[tuple[str, float]] = []
        async with asyncio.TaskGroup() as tasks:
            watcher = tasks.create_task(system.activities("tinyllama", again))
            assert await system.complete("tinyllama", prompt, tokens) == text
            watcher.cancel()
        assert not [a for a, _ in again if a.startswith("converting")], again
    assert len([p for p in (tmp_path / "cache" / "converted").iterdir() if p.is_dir()]) == 1
