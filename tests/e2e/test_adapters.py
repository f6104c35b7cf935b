"""LoRA adapters through the whole system: named with the deployment, added and removed while streams run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
from adapter_fixtures import write_adapter
from cli_fixtures import Result, run_cli
from up_fixtures import Up, eventually, running, stream

from headrace.core import simulated

PROMPT = "Hello"
TOKENS = 150  # what the model "sim" of the fixtures' catalog answers, at 20 ms each


def expected(adapter: str = "") -> str:
    ids = simulated.encode(simulated.chat_prompt([{"role": "user", "content": PROMPT}]))
    return simulated.decode(simulated.answer(ids, None, TOKENS, adapter))


async def cli(up: Up, *args: str) -> Result:
    return await run_cli(*args, env={"HEADRACE_STATE_DIR": str(up.state_dir)})


async def answer(url: str, model: str) -> str:
    return "".join(await stream(url, model, PROMPT, TOKENS))


async def models(url: str) -> dict[str, dict[str, object]]:
    async with httpx.AsyncClient(trust_env=False) as client:
        return {m["id"]: m for m in (await client.get(f"{url}/v1/models")).json()["data"]}


async def listed(url: str, name: str) -> dict[str, dict[str, object]]:
    """All models once `name` is ready, else none."""
    found = await models(url)
    return found if name in found and found[name]["state"] == "ready" else {}


async def test_adapters_from_deploy_to_removal(tmp_path: Path) -> None:
    a, b = write_adapter(tmp_path / "a"), write_adapter(tmp_path / "b")
    async with running(tmp_path, "--model=sim") as up:
        url = await up.ready()
        got = await cli(up, "deploy", "sim", f"--adapter=a={a}")
        assert (got.code, got.out) == (0, "sim is ready (revision 1).\n"), got.err
        replica = up.replicas()
        assert await asyncio.gather(answer(url, "sim"), answer(url, "sim:a")) == [expected(), expected("a")]

        begun = asyncio.Event()
        long = asyncio.create_task(stream(url, "sim:a", PROMPT, TOKENS, begun.set))
        await begun.wait()
        got = await cli(up, "adapters", "add", "sim", f"b={b}")
        assert (got.code, got.out) == (0, "sim:b can be called.\n"), got.err
        found = await eventually(lambda: listed(url, "sim:b"), "ready at the proxy")
        assert (found["sim:b"]["parent"], found["sim:b"]["root"], found["sim:b"]["state"]) == ("sim", "sim", "ready")
        assert (found["sim"]["parent"], found["sim"]["root"]) == (None, "sim")
        assert (await cli(up, "adapters", "remove", "sim", "a")).code == 0
        assert await answer(url, "sim:b") == expected("b")
        assert "".join(await long) == expected("a"), "what ran with a removed adapter comes to its end"

        async def removed() -> bool:
            return "sim:a" not in await models(url)

        await eventually(removed, "gone from the routes")
        async with httpx.AsyncClient(trust_env=False) as client:
            body = {"model": "sim:a", "messages": [{"role": "user", "content": PROMPT}]}
            refused = await client.post(f"{url}/v1/chat/completions", json=body)
        assert refused.status_code == 404
        assert "There is no model 'sim:a' here" in refused.json()["error"]["message"]
        assert up.replicas() == replica, "the same process all along"

        got = await cli(up, "adapters", "add", "sim", f"c={tmp_path}/none")
        assert (got.code, f"There is no folder {tmp_path}/none on this node." in got.err) == (1, True), got.err
        status = (await cli(up, "status")).out
        # A long path is cut, or broken into lines, to fit the width.
        assert "adapter c: There is no folder" in " ".join(status.split())
        assert max(map(len, status.splitlines())) <= 100
        async with httpx.AsyncClient(trust_env=False) as client:
            refused = await client.post(f"{url}/v1/chat/completions", json=body | {"model": "sim:c"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_failed")
