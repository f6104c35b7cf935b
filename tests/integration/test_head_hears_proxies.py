"""A proxy that lives and does not work is replaced; its neighbour notices nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from head_fixtures import Admin, head_settings, until
from test_head_proxies import HEAD, HeadProcess, head_process, pids, running

from headrace.core.types import ClusterStatus
from headrace.head.controller import serving
from headrace.process import ProcessRecord

# A real proxy whose event loop can be kept busy for good, as a bad regular expression would.
PROXY = (
    sys.executable,
    "-c",
    """
import signal, sys

def busy(*_):
    while True:
        pass

signal.signal(signal.SIGUSR1, busy)
from headrace.cli import main
main(["proxy", *sys.argv[1:]])
""",
)


@pytest.fixture(params=[signal.SIGSTOP, signal.SIGUSR1], ids=["stopped", "kept busy"])
def blow(request: pytest.FixtureRequest) -> signal.Signals:
    return request.param


def restarted(n: int) -> object:
    return lambda s: s.proxies[n].restarts == 1 and running(len(s.proxies))(s)  # type: ignore[operator]


async def health(address: str) -> int:
    """From any proxy, on a connection of its own; 0 if it is not answered."""
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=2.0) as client:
            return (await client.get(f"http://{address}/health")).status_code
    except httpx.HTTPError:
        return 0


async def test_a_proxy_that_stands_still_is_replaced_and_its_neighbour_is_not(
    tmp_path: Path, blow: signal.Signals
) -> None:
    async with serving(head_settings(tmp_path, num_proxies=2), PROXY) as head, Admin(head.grpc) as admin:
        before = await admin.status_when(running(2))
        await until(lambda: len(list(tmp_path.glob("head/proxies/*.sock"))) == 2)
        victim, other = pids(before)
        async with _client_of(head.http, other) as kept:
            os.kill(victim, blow)
            after = await admin.status_when(restarted(0))
            assert pids(after)[0] != victim
            assert pids(after)[1] == other
            assert after.proxies[1].restarts == 0
            assert not ProcessRecord.of(victim)
            assert "stood still for" in after.proxies[0].reason
            assert (await kept.get(f"http://{head.http}/health")).status_code == 200
        assert [await health(head.http) for _ in range(10)] == [200] * 10


@asynccontextmanager
async def _client_of(address: str, pid: int) -> AsyncIterator[httpx.AsyncClient]:
    """A client that keeps a connection with the proxy `pid`."""
    while True:
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.get(f"http://{address}/health")
            mine = {c.laddr.port for c in psutil.Process().net_connections()}
            theirs = psutil.Process(pid).net_connections()
            if any(
                c.status == psutil.CONN_ESTABLISHED
                and c.raddr
                and c.raddr.port in mine
                and f":{c.laddr.port}" == address[-len(f":{c.laddr.port}") :]
                for c in theirs
            ):
                yield client
                return


async def test_the_next_head_hears_the_proxies_that_it_adopts(tmp_path: Path) -> None:
    program = tmp_path / "proxy.py"
    program.write_text(PROXY[2])
    argv = (f"--program={sys.executable},{program}", "--num_proxies=1")

    @asynccontextmanager
    async def head() -> AsyncIterator[tuple[HeadProcess, Admin]]:
        async with head_process(tmp_path, *argv, program=HEAD) as process, Admin(process.endpoint.grpc) as admin:
            yield process, admin

    async with head() as (first, admin):
        before = await admin.status_when(running(1))
        await first.kill()
    async with head() as (second, admin):
        assert pids(await admin.status_when(running(1))) == pids(before)
        os.kill(pids(before)[0], signal.SIGSTOP)
        after = await admin.status_when(restarted(0))
        assert pids(after) != pids(before)
        await second.kill()
    # One that stood still already when nobody was there to hear it.
    os.kill(pids(after)[0], signal.SIGSTOP)
    async with head() as (third, admin):
        last: ClusterStatus = await admin.status_when(lambda s: s.proxies[0].restarts == 2 and running(1)(s))  # type: ignore[operator]
        assert pids(last) != pids(after)
        os.kill(third.child.pid, signal.SIGTERM)
        await third.child.wait()
    assert not any(ProcessRecord.of(p) for p in (*pids(before), *pids(after), *pids(last)))


async def test_a_head_that_stood_still_blames_nobody(tmp_path: Path) -> None:
    program = tmp_path / "proxy.py"
    program.write_text(PROXY[2])
    argv = (f"--program={sys.executable},{program}", "--num_proxies=1")
    async with head_process(tmp_path, *argv, program=HEAD) as head, Admin(head.endpoint.grpc) as admin:
        before = await admin.status_when(running(1))
        await until(lambda: list(tmp_path.glob("head/proxies/*.sock")))
        await asyncio.sleep(1.5)  # it has been heard
        os.kill(head.child.pid, signal.SIGSTOP)
        await asyncio.sleep(7.0)
        os.kill(head.child.pid, signal.SIGCONT)
        await asyncio.sleep(2.0)
        after = await admin.status_when(running(1))
        assert (pids(after), after.proxies[0].restarts) == (pids(before), 0)
        os.kill(head.child.pid, signal.SIGTERM)
        await head.child.wait()


async def test_what_troubles_a_proxy_and_why_it_cannot_start_are_in_the_status(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one\n")
    keys.chmod(0o666)
    settings = head_settings(tmp_path, num_proxies=1, api_keys_file=keys)
    async with serving(settings, PROXY) as head, Admin(head.grpc) as admin:
        status = await admin.status_when(lambda s: s.proxies[0].reason)
        assert "exited with code 1: Others than its owner may write" in status.proxies[0].reason
        keys.chmod(0o600)
        await admin.status_when(running(1))
        keys.write_text("# none\n")
        status = await admin.status_when(lambda s: "holds no key" in s.proxies[0].reason)
        assert "still in use" in status.proxies[0].reason
