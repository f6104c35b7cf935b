"""Every gRPC connection is mutual TLS, without being asked: certificates renew themselves, and one's own may change."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import grpc
import pytest
import trustme
from authority_fixtures import credentials
from cli_fixtures import run_cli
from up_fixtures import eventually, running, stream

from headrace.errors import TlsFailed
from headrace.rpc import certificates
from headrace.rpc.admin import AdminClient
from headrace.rpc.credentials import Kept
from headrace.rpc.v1 import replica_pb2, replica_pb2_grpc


class Files:
    """Those of an authority of the user's own."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder, self.authority = folder, trustme.CA()
        folder.mkdir()
        self.issue(*names)
        self.authority.cert_pem.write_to_path(folder / "ca.pem")

    def issue(self, *names: str) -> None:
        made = self.authority.issue_cert(*names)
        made.cert_chain_pems[0].write_to_path(self.folder / "cert.pem")
        made.private_key_pem.write_to_path(self.folder / "key.pem")

    @property
    def flags(self) -> list[str]:
        return [f"--tls_{x}={self.folder}/{x}.pem" for x in ("cert", "key", "ca")]


async def test_own_certificates_everywhere_and_strangers_are_refused(tmp_path: Path) -> None:
    ours = Files(tmp_path / "ours", "localhost", "127.0.0.1")
    async with running(tmp_path, "--model=sim", *ours.flags) as up:
        url = await up.ready()
        assert len(await stream(url, "sim", "hello", tokens=20)) > 10
        status = await run_cli("status", f"--state_dir={up.state_dir}", *ours.flags)
        assert status.code == 0, status.err
        head = json.loads((up.state_dir / "head/endpoint.json").read_text())["grpc"]
        async with AdminClient(head, credentials()) as admin:
            with pytest.raises(TlsFailed):
                await admin.status()
        said = await run_cli("status", f"--state_dir={up.state_dir}")
        assert said.code == 1
        assert said.err.startswith("Error: TLS failed: the head at ")
        assert "is it running" not in said.err
        endpoint = next(up.state_dir.glob("nodes/*/replicas/*/endpoint.json"))
        address = json.loads(endpoint.read_text())["address"]
        async with grpc.aio.insecure_channel(address) as channel:
            watching = replica_pb2_grpc.ReplicaServiceStub(channel).Watch(replica_pb2.WatchReplicaRequest())
            with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
                await watching.read()
        assert await up.end(signal.SIGTERM) == 0


async def test_own_certificates_that_change_and_name_no_address(tmp_path: Path) -> None:
    ours = Files(tmp_path / "ours", "cluster.example")
    async with running(tmp_path, "--model=sim", *ours.flags, "--tls_name=cluster.example") as up:
        url = await up.ready()
        before = up.replicas()
        ours.issue("cluster.example")
        # Who starts now has another certificate than those that run, and gets on with all of them.
        proxies = up.proxies()
        for proxy in proxies:
            os.kill(proxy.pid, signal.SIGKILL)

        async def serves_again() -> bool:
            new = up.proxies() - proxies
            return bool(new) and len(await stream(url, "sim", "hello again", tokens=20)) > 10

        await eventually(serves_again, "served by a proxy with the new certificate")
        assert up.replicas() == before
        args = ("status", f"--state_dir={up.state_dir}", *ours.flags)
        assert (await run_cli(*args, "--tls_name=cluster.example")).code == 0
        said = await run_cli(*args)
        assert said.code == 1
        assert "--tls_name" in said.err
        assert await up.end(signal.SIGTERM) == 0


async def test_certificates_that_end_soon_are_renewed_in_a_running_system(tmp_path: Path) -> None:
    async with running(tmp_path, "--model=sim", "--certificate_life=4") as up:
        url = await up.ready()
        kept = Kept(next(up.state_dir.glob("nodes/*/credential.json")))
        first, everything = kept.current(), up.everything()
        end = certificates.ends_at(first.certificate)

        async def long_after() -> bool:
            assert len(await stream(url, "sim", "hello", tokens=5)) > 2
            await asyncio.sleep(0.2)
            return time.time() > end + 4.0

        await eventually(long_after, "went on beyond the life of two certificates")
        assert kept.current() != first
        assert kept.ends_at > time.time()
        # New connections to processes that were started with certificates which have ended.
        for args in (("scale", "sim", "2"), ("status",), ("logs", next(up.state_dir.glob("nodes/*/replicas/*")).name)):
            got = await run_cli(*args, f"--state_dir={up.state_dir}")
            assert got.code == 0, got.err
        assert everything <= up.everything(), "nothing had to start again"
        assert await up.end(signal.SIGTERM) == 0


async def test_a_file_that_is_missing_is_one_sentence(tmp_path: Path) -> None:
    ours = Files(tmp_path / "ours", "localhost", "127.0.0.1")
    (ours.folder / "key.pem").unlink()
    async with running(tmp_path, *ours.flags) as up:
        assert await up.ended() == 1
        assert f"--tls_key: there is no file {ours.folder / 'key.pem'}." in up.said
        assert "Traceback" not in up.said
    async with running(tmp_path, *ours.flags[:1]) as up:
        assert await up.ended() == 1
        assert "TLS needs --tls_cert, --tls_key and --tls_ca together" in up.said
