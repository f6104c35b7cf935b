"""`headrace up`, from its first word to its last, with the real parts and the simulated engine."""

from __future__ import annotations

import asyncio
import re
import shlex
import signal
import socket
import sys
from pathlib import Path

import httpx
import pytest
from cli_fixtures import run_cli
from terminal_fixtures import Terminal
from up_fixtures import ANY_PORTS, CATALOG, Up, eventually, gone, running, stream

from headrace.process import ProcessRecord, child_env


async def test_the_curl_line_works_when_pasted_and_interrupt_ends_everything(tmp_path: Path) -> None:
    async with running(tmp_path, "--model=sim") as up:
        await up.ready()
        curl = re.search(r"  (curl (?s:.*?)--no-buffer)\n", up.said)
        assert curl, up.said
        process = await asyncio.create_subprocess_exec(
            *shlex.split(curl[1].replace("\\\n", " ")),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdout
        pieces = [piece async for piece in _pieces(process.stdout)]
        assert await process.wait() == 0
        assert len(pieces) > 10, pieces
        assert len(b"".join(pieces).decode()) > 100
        records = up.everything()
        assert len(records) >= 5  # up, head, scheduler, proxy, replica
        assert await up.end(signal.SIGINT) == 130
        assert not [r for r in records if r.alive()]


async def _pieces(reader: asyncio.StreamReader):  # type: ignore[no-untyped-def]
    while data := await reader.read(65536):
        yield data


async def test_progress_is_told_in_lines(tmp_path: Path) -> None:
    async with running(tmp_path, "--model=sim") as up:
        await up.ready()
        assert re.search(r"sim: .*loading.* \d+ %", up.said), up.said
        got = await run_cli("status", f"--state_dir={up.state_dir}")
        assert re.search(r"sim +READY +1/1", got.out), got
        replica = re.search(r"sim-\d+-[0-9a-f]{6}", got.out)
        assert replica
        assert (await run_cli("logs", replica[0], f"--state_dir={up.state_dir}")).code == 0
        for part, says in (("head", "head_ready"), ("scheduler", "joined"), ("proxy-1", "proxy_listening")):
            got = await run_cli("logs", part, f"--state_dir={up.state_dir}")
            assert (got.code, says in got.out) == (0, True), (part, got)
        got = await run_cli("logs", "proxy-9", f"--state_dir={up.state_dir}")
        assert (got.code, got.out) == (1, "")
        assert "No replica or part 'proxy-9'; there are: sim-" in got.err
        assert "head, scheduler, proxy-1" in got.err
        assert "ALIVE" in (await run_cli("nodes", f"--state_dir={up.state_dir}")).out
        assert "broken" in (await run_cli("models", f"--state_dir={up.state_dir}")).out
        chat = await run_cli("chat", "sim", f"--state_dir={up.state_dir}", stdin="hello\n")
        assert (chat.code, chat.err) == (0, "")
        assert len(chat.out) > 100
        assert await up.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("moment", "signum"),
    [
        ("head", signal.SIGINT),
        ("scheduler", signal.SIGTERM),
        ("loading", signal.SIGHUP),
        ("loading", signal.SIGINT),
    ],
)
async def test_ending_during_the_start_leaves_nothing(tmp_path: Path, moment: str, signum: int) -> None:
    async with running(tmp_path, "--model=slow") as up:
        if moment == "loading":
            await up.until("slow: .*loading")
        else:
            await eventually(lambda: _has(up, moment), f"started the {moment}")
        records = up.everything()
        up.process.send_signal(signum)
        up.process.send_signal(signum)  # twice in a row
        assert await up.ended() == (130 if signum == signal.SIGINT else 0)
        assert "Traceback" not in up.said
        assert not [r for r in records | up.everything() if r.alive()]


async def _has(up: Up, part: str) -> bool:
    try:
        return bool(up.part(part))
    except AssertionError:
        return False


async def test_a_terminal_shows_bars_and_closing_it_ends_everything(tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(CATALOG)
    state_dir = tmp_path / "state"
    argv = [sys.executable, "-m", "headrace", "up", f"--state_dir={state_dir}", f"--catalog={catalog}"]
    for how in ("ctrl-c", "close"):
        async with Terminal([*argv, *ANY_PORTS, "--model=sim", "--num_proxies=1"], child_env()) as terminal:
            await terminal.until("sim")
            await terminal.until("Ctrl-C ends everything.")
            assert "━" in terminal.text
            up = Up(terminal.process, state_dir)  # type: ignore[arg-type]
            records = up.everything()
            assert len(records) >= 5
            if how == "close":
                terminal.close()
            else:
                terminal.type("\x03")
                terminal.type("\x03")
            assert await terminal.ended() == (0 if how == "close" else 130)
            assert not [r for r in records if r.alive()]
            assert "Traceback" not in terminal.text


async def test_killed_hard_the_rest_ends_by_itself_and_the_next_one_starts(tmp_path: Path) -> None:
    async with running(tmp_path, "--model=sim") as up:
        await up.ready()
        records = up.everything()
        up.process.kill()
        await up.process.wait()
        # At once: it waits for what is left of the first.
        async with running(tmp_path, "--model=sim") as again:
            await again.ready()
            await gone(records)
            assert await again.end(signal.SIGTERM) == 0


async def test_ending_while_the_head_is_dead_takes_its_proxies_along(tmp_path: Path) -> None:
    async with running(tmp_path, "--model=sim") as up:
        await up.ready()
        records = up.everything()
        assert up.proxies()
        up.part("head").kill()
        up.part("scheduler").kill()
        assert await up.end(signal.SIGTERM) == 0
        assert not [r for r in records | up.everything() if r.alive()]


async def test_a_stubborn_replica_is_ended_too(tmp_path: Path) -> None:
    async with running(tmp_path, "--model=stubborn") as up:
        await up.ready()
        records = up.everything()
        assert await up.end(signal.SIGTERM) == 0
        assert not [r for r in records if r.alive()]


async def test_a_second_one_is_refused_in_a_sentence(tmp_path: Path) -> None:
    async with running(tmp_path, "--model=sim") as up:
        await up.ready()
        records = up.everything()
        got = await run_cli("up", f"--state_dir={up.state_dir}", "--model=sim", *ANY_PORTS)
        assert got.code == 1
        assert got.err.startswith(f"Error: Headrace runs from {up.state_dir} already (process {up.process.pid});")
        assert got.err.count("\n") == 1
        assert all(r.alive() for r in records)
        assert await up.end() == 130


@pytest.mark.parametrize("flag", ["http_port", "node_port", "grpc_port"])
async def test_a_port_in_use_is_told_in_a_sentence(tmp_path: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with running(tmp_path, f"--{flag}={port}", "--model=sim") as up:
            assert await up.ended() == 1
            assert re.fullmatch(rf"Error: .*{port}.*--{flag}.*\n", up.said), up.said
            assert not up.everything()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--model=smi"], r"Error: No model 'smi' in the catalog; .*Did you mean sim\?\n"),
        (["--model=sim", "--model=/nowhere"], r"Error: There is no folder /nowhere;.*\n"),
        (["--catalog=/nowhere.yaml"], r"Error: .*/nowhere\.yaml.*\n"),
        (["--http_host=0.0.0.0"], r"Error: .*--api_keys_file.*\n"),
    ],
)
async def test_what_cannot_be_is_told_and_nothing_is_left(tmp_path: Path, args: list[str], says: str) -> None:
    async with running(tmp_path, *args) as up:
        assert await up.ended() == 1
        assert re.fullmatch(says, up.said), up.said
        assert not up.everything()


async def test_a_model_that_fails_says_why_and_ends_it_if_it_was_the_only_one(tmp_path: Path) -> None:
    async with running(tmp_path, "--model=broken") as up:
        assert await up.ended() == 1
        assert re.search(r"^Error: broken cannot be served: .*The disk is made of cheese\.\n", up.said, re.M), up.said
        assert not up.everything()


async def test_a_missing_engine_is_told_with_what_to_install(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import sys\nsys.modules['openvino_genai'] = None\n")
    async with running(tmp_path, "--engine=openvino", PYTHONPATH=str(site)) as up:
        assert await up.ended() == 1
        assert re.search(r"^Error: .*OpenVINO engine is not installed.*pip install 'headrace\[cpu\]'", up.said, re.M)
        assert up.said.count("Error:") == 1
        assert not up.everything()


async def test_a_model_that_fails_leaves_the_others_serving(tmp_path: Path) -> None:
    async with running(tmp_path, "--model=broken", "--model=sim") as up:
        url = await up.ready()
        assert "broken cannot be served:" in up.said
        assert len(await stream(url, "sim", "hello")) > 10
        assert await up.end() == 130


async def test_a_folder_is_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    async with running(tmp_path, f"--model={folder}", "--engine=simulated") as up:
        url = await up.ready()
        assert len(await stream(url, "mine", "hello")) > 10
        assert await up.end() == 130


async def test_deployments_last_until_the_next_time(tmp_path: Path) -> None:
    async with running(tmp_path, "--model=sim") as up:
        await up.ready()
        assert (await run_cli("scale", "sim", "2", f"--state_dir={up.state_dir}")).code == 0
        assert len(up.replicas()) == 2
        assert await up.end() == 130
    async with running(tmp_path, "--model=sim") as up:
        url = await up.ready()

        async def two() -> bool:
            return len(up.replicas()) == 2

        await eventually(two, "had two replicas again")
        assert len(await stream(url, "sim", "hello")) > 10
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"{url}/health")).status_code == 200
        records: set[ProcessRecord] = up.everything()
        assert await up.end() == 130
        assert not [r for r in records if r.alive()]


async def test_one_file_reaches_every_part_and_nohup_is_respected(tmp_path: Path) -> None:
    config = tmp_path / "headrace.toml"
    config.write_text('[up]\nmodel = "sim"\n[scheduler]\nnum_cpus = 1.5\n[proxy]\nmax_body_bytes = "4KiB"\n')
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited, as from nohup
    try:
        async with running(tmp_path, f"--config={config}") as up:
            url = await up.ready()
            up.process.send_signal(signal.SIGHUP)
            assert "/1.5 " in (await run_cli("nodes", f"--state_dir={up.state_dir}")).out
            async with httpx.AsyncClient(trust_env=False) as client:
                answer = await client.post(f"{url}/v1/chat/sim", content="x" * 5000)
            assert answer.status_code == 413
            assert up.process.returncode is None
            assert await up.end(signal.SIGTERM) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
