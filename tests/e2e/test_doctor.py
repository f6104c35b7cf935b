"""`headrace doctor` as a person runs it: what it says of a sick state folder, and what --repair makes of it."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
from authority_fixtures import credentials, trusted
from cli_fixtures import Result, run_cli
from head_fixtures import Admin, SchedulerDouble, free_port, head_process, head_settings
from up_fixtures import eventually, running

from headrace.head.controller import serving
from headrace.rpc.admin import AdminClient


async def doctor(state_dir: Path, *args: str) -> Result:
    ports = [f"--{name}={free_port()}" for name in ("http_port", "node_port", "grpc_port")]
    return await run_cli("doctor", f"--state_dir={state_dir}", f"--cache_dir={state_dir}", *ports, *args)


def line(got: Result, about: str) -> str:
    """The one line about something."""
    (found,) = [x for x in got.out.splitlines() if f"  {about}: " in x]
    return found


async def filled(state_dir: Path) -> set[str]:
    async with serving(head_settings(state_dir)) as head, Admin(head.grpc) as admin, SchedulerDouble(head.node):
        for n in range(30):
            await admin.deploy("demo", name=f"d{n}", min_replicas=0, max_replicas=1, chat_template="x" * 700)
        await admin.deploy("demo")
        await admin.table_when(lambda t: t.routes["demo"].endpoints)
        return {d.deployment.name for d in (await admin.status()).deployments}


async def test_a_healthy_folder_with_a_head_and_without_one(tmp_path: Path) -> None:
    got = await doctor(tmp_path)
    assert got.code == 0, got.out
    assert "there is none yet" in line(got, "state file")
    await filled(tmp_path)
    got = await doctor(tmp_path)
    assert got.code == 0, got.out
    assert "ok       state file: is whole: 31 deployments, 1 replica, 0 added models." in got.out
    assert "does not run" in line(got, "head")
    async with head_process(tmp_path) as head:
        before = (tmp_path / "head" / "state.db").read_bytes()
        got = await doctor(tmp_path)
        assert got.code == 0, got.out
        assert f"runs (pid {head.child.pid}), gRPC on {head.endpoint.grpc}" in line(got, "head")
        assert "is whole" in line(got, "state file")
        assert (tmp_path / "head" / "state.db").read_bytes() == before
        refused = await doctor(tmp_path, "--repair")  # nothing is wrong, so nothing is done
        assert refused.code == 0
        assert (tmp_path / "head" / "state.db").read_bytes() == before


async def test_a_damaged_file_is_explained_and_repaired_after_a_copy(tmp_path: Path) -> None:
    names = await filled(tmp_path)
    path = tmp_path / "head" / "state.db"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4])
    got = await doctor(tmp_path)
    assert got.code == 1
    told = line(got, "state file")
    assert told.startswith("problem")
    assert "is damaged (" in told
    assert f"headrace doctor --repair --state_dir={tmp_path}" in told
    assert got.out.splitlines()[-1] == "Problems were found."
    assert path.read_bytes() == data[: len(data) * 3 // 4], "looking changes nothing"

    done = await doctor(tmp_path, "--repair")
    assert done.code == 0, done.out
    assert "Repaired: " in done.out
    copies = [p for p in os.listdir(tmp_path / "head") if ".damaged-" in p and not p.endswith("-journal")]
    assert len(copies) == 1
    assert str(tmp_path / "head" / copies[0]) in done.out
    assert (tmp_path / "head" / copies[0]).read_bytes() == data[: len(data) * 3 // 4]
    async with head_process(tmp_path) as head, AdminClient(head.endpoint.grpc, credentials()) as client:
        found = {d.deployment.name for d in (await client.status()).deployments}
    assert found < names
    assert len(found) > 5


async def test_no_repair_while_a_head_runs_and_none_of_what_cannot_be_read(tmp_path: Path) -> None:
    async with head_process(tmp_path) as head:
        path = tmp_path / "head" / "state.db"
        with path.open("r+b") as f:
            f.seek(4096)
            f.write(bytes(4096))
        got = await doctor(tmp_path)
        assert got.code == 1
        assert "→ stop the head, then headrace doctor --repair" in line(got, "state file")
        got = await doctor(tmp_path, "--repair")
        assert (got.code, got.err) == (
            1, f"Error: The head (pid {head.child.pid}) runs with this state directory; stop it, then repair.\n"
        )  # fmt: skip
        await head.kill()
    path.write_bytes(b"")
    got = await doctor(tmp_path, "--repair")
    assert got.code == 1
    assert "Nothing can be read of" in got.err
    assert path.read_bytes() == b""


async def test_a_port_that_is_taken_names_who_has_it(tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        got = await doctor(tmp_path, f"--grpc_port={port}")
    assert got.code == 1
    assert (
        f"problem  port {port}: is in use by pid {os.getpid()} → end that, or choose another with --grpc_port"
        in got.out
    )


async def test_replicas_without_a_scheduler_and_proxies_without_a_head_are_told(tmp_path: Path) -> None:
    async with running(tmp_path, "--model=sim") as up:
        await up.ready()
        head, scheduler = up.part("head"), up.part("scheduler")
        (replica,), (proxy,) = up.replicas(), up.proxies()
        healthy = await doctor(up.state_dir)
        assert healthy.code == 0, healthy.out
        assert f"its scheduler runs (pid {scheduler.pid}); 1 replica runs" in line(healthy, "node 1")
        # Their parent is stopped, so that it starts neither again; both are dead and not yet missed.
        up.process.send_signal(signal.SIGSTOP)
        head.kill()
        scheduler.kill()

        async def told() -> Result | None:
            got = await doctor(up.state_dir)
            return got if "does not run" in line(got, "head") and "scheduler does not run" in got.out else None

        got = await eventually(told, "saw both dead")
        assert got.code == 0, "warnings are no problem"
        assert f"its proxies go on serving (pid {proxy.pid}) → start it again" in line(got, "head")
        assert f"(pid {replica.pid}) → start it again: it takes over those it knows" in line(got, "node 1")
        up.process.send_signal(signal.SIGCONT)
        assert await up.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("text", ["nonsense", ""])
async def test_an_epoch_that_cannot_be_read_is_a_problem(tmp_path: Path, text: str) -> None:
    node = tmp_path / "nodes" / "7"
    node.mkdir(parents=True)
    (node / "epoch").write_text(text)
    got = await doctor(tmp_path)
    assert got.code == 1
    assert f"→ delete {node / 'epoch'} if only one head runs" in line(got, "node 7")


async def test_an_authority_that_others_can_read_is_a_problem(tmp_path: Path) -> None:
    assert "there is no authority yet" in line(await doctor(tmp_path), "certificates")
    assert not (tmp_path / "authority").exists(), "looking makes none"
    trusted(tmp_path)
    fine = await doctor(tmp_path)
    assert "the authority is whole: sha256:" in line(fine, "certificates")
    (tmp_path / "authority" / "ca.key").chmod(0o644)
    got = await doctor(tmp_path)
    assert got.code == 1
    assert "can be read by others" in line(got, "certificates")
    assert "→ run chmod -R go=" in line(got, "certificates")
