"""The head's disk is full: writes are refused with 503, all else goes on, and nothing that was acknowledged is lost."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from authority_fixtures import trusted
from head_fixtures import Admin, SchedulerDouble, head_process, until
from parts import Load, cluster, loaded
from up_fixtures import eventually

from headrace.core.phase import Phase
from headrace.core.types import DeployRequest
from headrace.errors import Unavailable


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB, by a tmpfs."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("a small tmpfs needs root")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Take the last byte of a disk. The file to delete for room."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as f:
        for size in (65536, 4096, 1):
            try:
                while True:
                    f.write(bytes(size))
            except OSError:
                continue
    return ballast


async def refuses(admin: Admin, disk: Path) -> int:
    """Deploy until one does not fit any more; how many did. A change may find room in what the file has free."""
    for done in range(100):
        try:
            await admin.deploy("demo", name=f"full-{done}", min_replicas=0, max_replicas=1, chat_template="x" * 3000)
        except Unavailable as e:
            refusal = e
            break
    else:
        pytest.fail("the disk is not full")
    assert f"nothing was changed. Free room on the disk of {disk}/head" in refusal.message
    assert (refusal.status, refusal.retry_after_s) == (503, 5.0)
    return done


async def test_writes_are_refused_reads_routes_and_reports_go_on(small_disk: Path) -> None:
    async with (
        head_process(small_disk) as head,
        Admin(head.endpoint.grpc) as admin,
        SchedulerDouble(head.endpoint.node) as node,
    ):
        await admin.deploy("demo", min_replicas=2)
        await admin.table_when(lambda t: len(t.routes["demo"].endpoints) == 2)
        version = (await admin.table_when(lambda t: True)).version
        ballast = fill(small_disk)
        fitted = await refuses(admin, small_disk)

        # What nodes report is seen, routes follow it, and a scheduler that is new is welcome.
        sick = next(iter(node.replicas))
        await node.move(sick, Phase.PENDING, "starts again")
        table = await admin.table_when(lambda t: len(t.routes["demo"].endpoints) == 1)
        assert table.version > version
        await node.move(sick, Phase.READY)
        await admin.table_when(lambda t: len(t.routes["demo"].endpoints) == 2)
        async with SchedulerDouble(head.endpoint.node, node_id="2") as other:
            await until(lambda: other.welcome is not None and other.desired is not None)
        # A change that needs no room is made: a disk that is full must not keep replicas from being stopped.
        await admin.scale("demo", 1, 1)
        await until(lambda: len(node.replicas) == 1)
        names = {d.deployment.name for d in (await admin.status()).deployments}
        await head.kill()
        ballast.unlink()
        async with head_process(small_disk) as again, Admin(again.endpoint.grpc) as admin:
            assert {d.deployment.name for d in (await admin.status()).deployments} == names
            assert "demo" in names
            assert len(names) >= 1 + fitted


async def test_writes_work_again_by_themselves_and_the_reconciler_makes_up_for_them(
    small_disk: Path, tmp_path: Path
) -> None:
    async with (
        head_process(small_disk, log_dir=tmp_path) as head,
        Admin(head.endpoint.grpc) as admin,
        SchedulerDouble(head.endpoint.node, cpus=64) as node,
    ):
        await admin.deploy("demo", min_replicas=0, max_replicas=60, cpus=1)
        ballast = fill(small_disk)
        await refuses(admin, small_disk)
        await admin.scale("demo", 60, 60)  # one row changes, which needs no room; the 60 replicas do
        await until(lambda: "reconcile_failed" in head.output.read_text())
        assert not node.replicas
        ballast.unlink()
        await until(lambda: len(node.replicas) == 60)
        await admin.deploy("gpt2", min_replicas=0, max_replicas=1)


async def test_a_head_that_cannot_start_for_want_of_room_says_what_to_free(small_disk: Path, tmp_path: Path) -> None:
    trusted(small_disk)
    ballast = fill(small_disk)
    with pytest.raises(AssertionError) as caught:
        async with head_process(small_disk, log_dir=tmp_path):
            pass
    assert "Free room on the disk of" in str(caught.value)
    assert "Traceback" not in (tmp_path / "head.log").read_text()
    ballast.unlink()
    async with head_process(small_disk, log_dir=tmp_path) as head, Admin(head.endpoint.grpc) as admin:
        assert (await admin.status()).deployments == ()


async def test_a_proxy_that_dies_meanwhile_comes_back(small_disk: Path) -> None:
    async with cluster(small_disk) as c, c.head(), c.client() as client:
        await client.deploy(DeployRequest("sim"))
        async with c.admin() as admin:
            await admin.table_when(lambda t: t.routes["sim"].endpoints)
        await c.answers()
        fill(small_disk)
        (before,) = (await client.status()).proxies
        os.kill(before.pid, signal.SIGKILL)

        async def another() -> bool:
            return [p.pid != before.pid and p.state == "running" for p in (await client.status()).proxies] == [True]

        await eventually(another, "was started again")
        await c.answers()
        load = Load(c.url, "sim", clients=2)
        async with loaded(load):
            await load.more(20)
        assert load.errors == []


async def test_requests_of_clients_do_not_notice(tmp_path: Path, small_disk: Path) -> None:
    async with cluster(small_disk) as c, c.head(), c.client() as client:
        await client.deploy(DeployRequest("sim"))
        async with c.admin() as admin:
            await admin.table_when(lambda t: t.routes["sim"].endpoints)
        await c.answers()
        async with loaded(Load(c.url, "sim", clients=2)) as load:
            await load.more(4)
            ballast = fill(small_disk)
            async with c.admin() as admin:
                await refuses(admin, small_disk)
                await load.more(10)
                ballast.unlink()
                await admin.deploy("other", min_replicas=0, max_replicas=1)
            await load.more(4)
        assert load.errors == []
