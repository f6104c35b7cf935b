"""The commands that administer, against a double of the head."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from adapter_fixtures import write_adapter
from cli_fixtures import FakeHead, Result, fake_head, run_cli

from headrace.core.phase import Phase
from headrace.core.types import Adapter
from headrace.process import child_env


@pytest.fixture
async def head(tmp_path: Path) -> AsyncIterator[FakeHead]:
    async with fake_head(tmp_path) as head:
        yield head


async def cli(tmp_path: Path, *args: str, cwd: Path | None = None) -> Result:
    return await run_cli(*args, env={"HEADRACE_STATE_DIR": str(tmp_path)}, cwd=cwd)


async def test_deploy_waits_and_shows_how_it_loads(head: FakeHead, tmp_path: Path) -> None:
    head.script = [
        head.in_phase(Phase.STARTING),
        head.in_phase(Phase.LOADING, activity="loading", progress=0.4),
        head.in_phase(Phase.READY),
    ]
    got = await cli(tmp_path, "deploy", "demo", "--replicas=2", "--num-gpus=1", "--memory=2GiB", "--engine_arg=a=1")
    assert (got.code, got.out) == (0, "demo is ready (revision 1).\n")
    assert "demo: 0 of 2 ready; loading 40 %\n" in got.err
    request = head.requests[0]
    assert (request.min_replicas, request.max_replicas, request.gpus, request.cpus) == (2, 2, 1, None)
    assert (request.memory_bytes, request.engine_args_json, request.engine) == (2**31, '{"a": 1}', None)


async def test_deploy_tells_why_it_failed(head: FakeHead, tmp_path: Path) -> None:
    head.script = [head.in_phase(Phase.FAILED, "The OpenVINO engine is not installed.")]
    got = await cli(tmp_path, "deploy", "demo")
    assert (got.code, got.err.splitlines()[-1]) == (
        1,
        "Error: demo cannot be served: The OpenVINO engine is not installed.",
    )


async def test_deploy_of_a_relative_folder_without_waiting(head: FakeHead, tmp_path: Path) -> None:
    folder = tmp_path / "models/mine"
    folder.mkdir(parents=True)
    (folder / "config.json").touch()
    got = await cli(tmp_path, "deploy", "./mine", "--name=x", "--no-wait", cwd=folder.parent)
    assert got.code == 0
    assert got.out.startswith("x is deployed (revision 1)")
    assert head.requests[0].model == str(folder)


async def test_variables_that_describe_a_node_do_not_describe_a_model(head: FakeHead, tmp_path: Path) -> None:
    env = {"HEADRACE_STATE_DIR": str(tmp_path), "HEADRACE_NUM_GPUS": "4", "HEADRACE_DEPLOY_NUM_CPUS": "1.5"}
    assert (await run_cli("deploy", "demo", "--no_wait", env=env)).code == 0
    assert (head.requests[0].gpus, head.requests[0].cpus) == (None, 1.5)


async def test_an_error_of_the_head_is_one_sentence(head: FakeHead, tmp_path: Path) -> None:
    got = await cli(tmp_path, "deploy", "nope")
    assert got == Result(1, "", "Error: There is no model 'nope'. Those that exist: demo.\n")


async def test_scale_delete_status(head: FakeHead, tmp_path: Path) -> None:
    await cli(tmp_path, "deploy", "demo", "--no_wait")
    assert (await cli(tmp_path, "scale", "demo", "3")).code == 0
    assert head.deployments["demo"].max_replicas == 3
    assert (await cli(tmp_path, "scale", "demo", "--min=0", "--no_wait")).code == 0
    assert (head.deployments["demo"].min_replicas, head.deployments["demo"].max_replicas) == (0, 3)
    await cli(tmp_path, "scale", "demo", "1")
    got = await cli(tmp_path, "status")
    assert "demo        READY    1/1" in got.out
    assert "demo-1-000000" in got.out
    data = json.loads((await cli(tmp_path, "status", "--json")).out)
    assert data["replicas"][0]["status"]["phase"] == "READY"
    assert "deleted" in (await cli(tmp_path, "delete", "demo")).out
    assert (await cli(tmp_path, "delete", "demo")).err == "Error: 'demo' is not deployed.\n"


async def test_adapters_come_with_a_deployment_are_added_and_removed(head: FakeHead, tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    write_adapter(folder)
    got = await cli(tmp_path, "deploy", "demo", "--adapter=a=./lora", "--adapter", "b=hf://o/b", cwd=tmp_path)
    assert got.code == 0
    assert head.requests[0].adapters == (Adapter("a", str(folder)), Adapter("b", "hf://o/b"))
    got = await cli(tmp_path, "adapters", "add", "demo", "c=hf://o/c", "--revision=v1")
    assert (got.code, got.out) == (0, "demo:c can be called.\n")
    assert head.deployments["demo"].adapters[-1] == Adapter("c", "hf://o/c", "v1")
    lines = (await cli(tmp_path, "adapters", "demo")).out.splitlines()
    assert lines[1].split()[:3] == ["demo:a", "READY", "1/1"]
    assert str(folder).startswith(lines[1].split()[3].rstrip("…")), "a long path is cut"
    assert lines[3].split() == ["demo:c", "READY", "1/1", "v1", "hf://o/c"]
    assert json.loads((await cli(tmp_path, "adapters", "list", "demo", "--json")).out)[1]["source"] == "hf://o/b"
    assert (await cli(tmp_path, "adapters", "remove", "demo", "a")).code == 0
    assert [a.name for a in head.deployments["demo"].adapters] == ["b", "c"]

    head.refuses = "The adapter is for another model."
    sentence = "Error: demo:d cannot be served: The adapter is for another model.\n"
    got = await cli(tmp_path, "adapters", "add", "demo", "d=hf://o/d")
    assert (got.code, got.err.splitlines(keepends=True)[-1]) == (1, sentence)
    assert "    adapter d: The adapter is for another model." in (await cli(tmp_path, "status")).out
    assert "demo:d   FAILED" in (await cli(tmp_path, "adapters", "demo")).out
    got = await cli(tmp_path, "adapters", "nope")
    assert got.err == "Error: No deployment 'nope'; deployed are: demo.\n"
    got = await cli(tmp_path, "models", "add", "m", "--source=hf://a/b", "--adapter=x=hf://o/x")
    assert head.catalog["m"].adapters == (Adapter("x", "hf://o/x"),)
    assert "    adapters: x" in (await cli(tmp_path, "models")).out


@pytest.mark.parametrize(
    ("pair", "told"),
    [
        ("a", "An adapter is given as NAME=SOURCE, not 'a'."),
        ("a=", "An adapter is given as NAME=SOURCE, not 'a='."),
        ("a=none", "There is no folder {here}/none; give a folder with an adapter, or hf://org/name."),
        ("a=.", "{here} is not an adapter: it has no adapter_config.json."),
    ],
)
async def test_what_is_no_adapter_is_told_before_the_head_is_asked(tmp_path: Path, pair: str, told: str) -> None:
    got = await cli(tmp_path, "adapters", "add", "demo", pair, cwd=tmp_path)
    assert got == Result(1, "", f"Error: {told.format(here=tmp_path)}\n")


async def test_nodes_models_logs(head: FakeHead, tmp_path: Path) -> None:
    assert "1/2  2 GiB/4 GiB" in (await cli(tmp_path, "nodes")).out
    assert "A small model." in (await cli(tmp_path, "models")).out
    added = await cli(tmp_path, "models", "add", "mine", "--source=./mine", "--context=512", cwd=_model(tmp_path))
    assert added.code == 0
    entry = head.catalog["mine"]
    assert (entry.model.source, entry.model.context_tokens) == (str(tmp_path / "m/mine"), 512)
    assert (await cli(tmp_path, "models", "remove", "mine")).code == 0
    assert (await cli(tmp_path, "models", "add", "bad name", "--source=hf://a/b")).code == 1
    await cli(tmp_path, "deploy", "demo", "--no_wait")
    assert (await cli(tmp_path, "logs", "demo-1", "--tail=1")).out == "two\n"
    assert (await cli(tmp_path, "logs", "other")).err == "Error: There is no replica 'other'.\n"


def _model(tmp_path: Path) -> Path:
    folder = tmp_path / "m/mine"
    folder.mkdir(parents=True)
    (folder / "config.json").touch()
    return folder.parent


@pytest.mark.parametrize("command", [["status"], ["status", "--watch"], ["deploy", "demo"], ["nodes"], ["logs", "x"]])
async def test_no_head_is_one_sentence(command: list[str], tmp_path: Path) -> None:
    got = await run_cli(*command, "--head_address=127.0.0.1:9", env={"HEADRACE_STATE_DIR": str(tmp_path)})
    sentence = "Error: Cannot reach the head at 127.0.0.1:9; is it running? Start it with: headrace up\n"
    assert got == Result(1, "", sentence)


async def test_interrupting_a_watch_is_quiet(head: FakeHead, tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "headrace", "status", "--watch", "--json",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=child_env({"HEADRACE_STATE_DIR": str(tmp_path)}),
    )  # fmt: skip
    assert process.stdout is not None
    first = json.loads(await asyncio.wait_for(process.stdout.readline(), 60))
    assert first["version"] == "0.1.0"
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, err.strip()) == (130, b"")
    await asyncio.wait_for(head.watch_ended.wait(), 60)
