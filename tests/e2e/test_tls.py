"""With certificates every gRPC connection is mutual TLS: between all parts, and nobody else gets in."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import grpc
import pytest
import trustme
from cli_fixtures import run_cli
from up_fixtures import running, stream

from headrace.errors import Unavailable
from headrace.rpc.admin import AdminClient
from headrace.rpc.channel import Tls
from headrace.rpc.v1 import replica_pb2, replica_pb2_grpc


def certificates(folder: Path) -> Tls:
    """Files of a new authority and of one certificate for this machine."""
    folder.mkdir()
    authority = trustme.CA()
    ours = authority.issue_cert("localhost", "127.0.0.1")
    tls = Tls(cert=folder / "cert.pem", key=folder / "key.pem", ca=folder / "ca.pem")
    ours.cert_chain_pems[0].write_to_path(tls.cert)
    ours.private_key_pem.write_to_path(tls.key)
    authority.cert_pem.write_to_path(tls.ca)
    return tls


def flags(tls: Tls) -> list[str]:
    return [f"--tls_cert={tls.cert}", f"--tls_key={tls.key}", f"--tls_ca={tls.ca}"]


async def test_everything_works_and_strangers_are_refused(tmp_path: Path) -> None:
    ours, theirs = certificates(tmp_path / "ours"), certificates(tmp_path / "theirs")
    async with running(tmp_path, "--model=sim", *flags(ours)) as up:
        url = await up.ready()
        assert len(await stream(url, "sim", "hello", tokens=20)) > 10
        status = await run_cli("status", f"--state_dir={up.state_dir}", *flags(ours))
        assert status.code == 0, status.err

        head = json.loads((up.state_dir / "head/endpoint.json").read_text())["grpc"]
        for stranger in (theirs, None):
            async with AdminClient(head, stranger) as admin:
                with pytest.raises(Unavailable):
                    await admin.status()
        endpoint = next(up.state_dir.glob("nodes/*/replicas/*/endpoint.json"))
        address = json.loads(endpoint.read_text())["address"]
        async with grpc.aio.insecure_channel(address) as channel:
            watching = replica_pb2_grpc.ReplicaServiceStub(channel).Watch(replica_pb2.WatchReplicaRequest())
            with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
                await watching.read()
        assert await up.end(signal.SIGTERM) == 0


async def test_a_file_that_is_missing_is_one_sentence(tmp_path: Path) -> None:
    ours = certificates(tmp_path / "ours")
    ours.key.unlink()
    async with running(tmp_path, *flags(ours)) as up:
        assert await up.ended() == 1
        assert f"--tls_key: there is no file {ours.key}." in up.said
        assert "Traceback" not in up.said
    async with running(tmp_path, *flags(ours)[:1]) as up:
        assert await up.ended() == 1
        assert "TLS needs --tls_cert, --tls_key and --tls_ca together" in up.said
