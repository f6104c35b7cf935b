"""Certificates: made once whoever comes first, renewed, read again, and checked by both sides; and what errors say."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from authority_fixtures import STATE, credentials, trusted
from head_fixtures import SchedulerDouble, head_settings, until

from headrace.errors import Forbidden, HeadraceError, TlsFailed, Unavailable, UserError
from headrace.head.controller import serving
from headrace.rpc import certificates
from headrace.rpc.admin import AdminClient
from headrace.rpc.authority import Authority
from headrace.rpc.channel import Connection, bind, from_rpc, new_server
from headrace.rpc.credentials import Credentials, Issued, Kept, Material, OwnFiles, keep, own_files
from headrace.rpc.finding import from_state
from headrace.rpc.renewal import until_renewed
from headrace.rpc.roles import Role
from headrace.rpc.v1 import head_pb2, head_pb2_grpc
from headrace.settings import TlsSettings

MAKE = """
import sys
from pathlib import Path
from headrace.rpc.authority import Authority
print(Authority.open(Path(sys.argv[1])).fingerprint)
"""


def test_all_who_start_at_once_have_one_authority(tmp_path: Path) -> None:
    state = tmp_path / "a" / "state"
    argv = [sys.executable, "-c", MAKE, str(state)]
    together = [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(6)]
    said = {p.communicate(timeout=60)[0] for p in together}
    assert len(said) == 1
    assert len(said.pop()) == 65
    for path, mode in ((state, 0o700), (state / "authority", 0o700), (state / "authority" / "ca.key", 0o600)):
        assert path.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("name", ["", "ca.key"])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, name: str) -> None:
    Authority.open(tmp_path)
    (tmp_path / "authority" / name).chmod(0o750)
    with pytest.raises(UserError, match=r"can be read by others.*chmod -R go= "):
        Authority.open(tmp_path)


@pytest.mark.parametrize("damage", [lambda f: (f / "ca.key").write_text("x"), lambda f: (f / "ca.pem").write_text("x"),
                                    lambda f: (f / "ca.key").unlink()])  # fmt: skip
def test_a_damaged_authority_is_not_made_anew(tmp_path: Path, damage: Any) -> None:
    Authority.open(tmp_path)
    damage(tmp_path / "authority")
    with pytest.raises(UserError, match="certificate authority"):
        Authority.open(tmp_path)


def test_one_that_was_killed_while_making_it_is_no_harm(tmp_path: Path) -> None:
    (tmp_path / "authority").mkdir(mode=0o700)
    key = tmp_path / "authority" / "ca.key"
    key.write_bytes(certificates.key_pem(certificates.new_key()))
    key.chmod(0o600)
    assert Authority.open(tmp_path).pem


# --- what there is, and when it is read again ---


def test_an_issued_certificate_is_replaced_in_time() -> None:
    short = Issued(Authority.open(STATE), Role.HEAD, "head", life_s=1.5)
    first = short.current()
    assert short.current() is first
    time.sleep(1.1)
    assert short.current() != first
    assert certificates.ends_at(short.current().certificate) > certificates.ends_at(first.certificate)


def test_a_clock_that_is_set_back_leaves_no_certificate_that_is_not_valid_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr("headrace.rpc.credentials.time.time", lambda: now + 86400)
    monkeypatch.setattr("headrace.rpc.authority.time.time", lambda: now + 86400)
    mine = Issued(Authority.open(STATE), Role.HEAD, "head", life_s=1000.0)
    assert certificates.life(mine.current().certificate)[0] > now + 86000
    monkeypatch.undo()
    assert certificates.life(mine.current().certificate)[0] <= now + 60


def test_a_kept_certificate_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    mine = [credentials(Role.NODE, str(n)).current() for n in range(2)]
    kept = keep(path, mine[0])
    assert kept.current() == mine[0]
    keep(path, mine[1])
    assert kept.current() == mine[1]
    path.write_text("{")
    assert kept.current() == mine[1], "a damaged file does not take away what works"
    with pytest.raises(UserError, match="damaged"):
        Kept(path)


class Own:
    """Files of an authority of the user's own."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.authority, self.folder = trustme.CA(), folder
        folder.mkdir()
        self.issue(*names)
        self.authority.cert_pem.write_to_path(folder / "ca.pem")

    def issue(self, *names: str) -> None:
        made = self.authority.issue_cert(*names)
        made.cert_chain_pems[0].write_to_path(self.folder / "cert.pem")
        made.private_key_pem.write_to_path(self.folder / "key.pem")

    def settings(self, name: str = "") -> TlsSettings:
        return TlsSettings(
            cert=self.folder / "cert.pem", key=self.folder / "key.pem", ca=self.folder / "ca.pem", name=name
        )

    def files(self, name: str = "") -> OwnFiles:
        found = own_files(self.settings(name))
        assert found
        return found


def test_own_files_count_once_they_fit_together(tmp_path: Path) -> None:
    own = Own(tmp_path / "own", "localhost")
    files = own.files()
    first = files.current()
    before = (tmp_path / "own" / "key.pem").read_bytes()
    own.issue("localhost")
    new = (tmp_path / "own" / "key.pem").read_bytes()
    (tmp_path / "own" / "key.pem").write_bytes(before)  # as in the moment between two writes
    assert files.current() == first
    (tmp_path / "own" / "key.pem").write_bytes(new)
    assert files.current() != first
    assert files.current().key == new


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("key.pem", "key or the certificate is no PEM"),
        ("cert.pem", "key or the certificate"),
        ("ca.pem", "authority's"),
    ],
)
def test_own_files_that_cannot_be(tmp_path: Path, file: str, words: str) -> None:
    own = Own(tmp_path / "own", "localhost")
    (tmp_path / "own" / file).write_text("hello")
    with pytest.raises(UserError, match=words):
        own.files()


def test_a_key_of_another_certificate(tmp_path: Path) -> None:
    own, other = Own(tmp_path / "own", "localhost"), Own(tmp_path / "other", "localhost")
    shutil.copy(other.folder / "key.pem", own.folder / "key.pem")
    with pytest.raises(UserError, match="the key is not that of the certificate"):
        own.files()


async def test_one_of_the_future_is_renewed_at_once(tmp_path: Path) -> None:
    authority = Authority.open(STATE)
    key = certificates.new_key()
    early = certificates.sign(
        key.public_key(), Role.NODE, "1", authority=authority.certificate, key=authority.key, now=time.time() + 9999,
        life_s=1000.0,
    )  # fmt: skip
    kept = keep(tmp_path / "c.json", Material(certificates.key_pem(key), early, authority.pem))
    renewed = asyncio.Event()

    async def renew() -> None:
        renewed.set()

    await until_renewed(kept, renew)
    assert renewed.is_set()


async def test_renewal_is_tried_until_it_works(tmp_path: Path) -> None:
    authority, tries = Authority.open(STATE), 0

    def made() -> Material:
        key = certificates.new_key()
        pem = authority.issue(key.public_key(), Role.NODE, "1", 2.0)
        return Material(certificates.key_pem(key), pem, authority.pem)

    kept = keep(tmp_path / "c.json", made())

    async def renew() -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise Unavailable("not now")
        keep(kept.path, made())

    first = kept.current()
    await until_renewed(kept, renew)
    assert tries == 3
    assert kept.current() != first


# --- over real connections ---


class Status(head_pb2_grpc.AdminServiceServicer):
    async def Status(self, request: Any, context: Any) -> head_pb2.ClusterStatus:
        return head_pb2.ClusterStatus(epoch=1)


@asynccontextmanager
async def served(mine: Credentials, host: str = "127.0.0.1") -> AsyncIterator[str]:
    server = new_server()
    head_pb2_grpc.add_AdminServiceServicer_to_server(Status(), server)
    port = bind(server, host, 0, mine, "")
    await server.start()
    try:
        yield f"{host}:{port}"
    finally:
        await server.stop(0)


async def ask(address: str, mine: Credentials) -> HeadraceError | None:
    """What a client of the head's administration gets: None, or the error."""
    async with AdminClient(address, mine) as admin:
        try:
            await admin.status()
        except HeadraceError as e:
            return e
    return None


async def test_a_changed_certificate_is_used_by_both_sides_without_a_restart(tmp_path: Path) -> None:
    kept = {
        r: keep(tmp_path / f"{r}.json", Issued(Authority.open(STATE), r, "x", 2.0).current())
        for r in (Role.HEAD, Role.ADMIN)
    }
    async with (
        served(kept[Role.HEAD]) as address,
        Connection(address, kept[Role.ADMIN], Role.HEAD) as connection,
    ):

        async def works() -> bool:
            try:
                await head_pb2_grpc.AdminServiceStub(connection.channel()).Status(head_pb2.StatusRequest(), timeout=30)
                return True
            except grpc.aio.AioRpcError:
                return False

        assert await works()
        first = connection.channel()
        assert connection.channel() is first
        await until(lambda: all(k.ends_at < time.time() for k in kept.values()))
        assert isinstance(await ask(address, kept[Role.ADMIN]), TlsFailed)
        for role, k in kept.items():
            keep(k.path, Issued(Authority.open(STATE), role, "x", 60.0).current())
        assert await works()
        assert connection.channel() is not first
        assert await ask(address, kept[Role.ADMIN]) is None


async def test_own_files_and_the_name_that_is_expected(tmp_path: Path) -> None:
    """An address that no certificate names is dialled with --tls_name."""
    own = Own(tmp_path / "own", "cluster.example")
    async with served(own.files()) as address:
        assert await ask(address, own.files("cluster.example")) is None
        e = await ask(address, own.files())
        assert isinstance(e, TlsFailed)
        assert "does not name 127.0.0.1" in e.message
        assert "--tls_name" in e.message
        e = await ask(address, own.files("another.example"))
        assert isinstance(e, TlsFailed)
        assert "does not name another.example" in e.message


async def test_own_certificates_with_a_roles_name_have_that_role(tmp_path: Path) -> None:
    own = Own(tmp_path / "own", "127.0.0.1", "proxy.headrace")
    async with served(own.files()) as address:
        e = await ask(address, own.files())
        assert isinstance(e, Forbidden)
        assert "role proxy" in e.message
        own.issue("127.0.0.1")
        assert await ask(address, own.files()) is None, "one that names no role may do everything"


@asynccontextmanager
async def plain() -> AsyncIterator[str]:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def test_errors_that_come_from_tls_say_so(tmp_path: Path) -> None:
    admin, other = credentials(Role.ADMIN), from_state(tmp_path, Role.ADMIN, "x", TlsSettings())

    def stale(role: Role) -> Credentials:
        return keep(tmp_path / f"{role}.json", Issued(Authority.open(STATE), role, "x", -1.0).current())

    async def told(served_by: Credentials, mine: Credentials) -> str:
        async with served(served_by) as address:
            e = await ask(address, mine)
            assert isinstance(e, TlsFailed), e
            assert e.message.startswith("TLS failed: ")
            assert address in e.message
            assert "Cannot reach" not in e.message
            return e.message

    head = credentials(Role.HEAD)
    assert "another authority" in await told(from_state(tmp_path, Role.HEAD, "x", TlsSettings()), admin)
    assert "headrace token" in await told(head, other)
    assert "does not name head.headrace" in await told(credentials(Role.NODE), admin)
    assert "has ended, or this machine's clock" in await told(stale(Role.HEAD), admin)
    assert "not one of a server" in await told(credentials(Role.PROXY), admin)
    assert "ended" in await told(head, stale(Role.ADMIN))
    strange = keep(tmp_path / "s.json", Material(*_pair(other), authority=admin.current().authority))
    assert "may not take this certificate" in await told(head, strange)
    async with plain() as address:
        e = await ask(address, admin)
        assert isinstance(e, TlsFailed)
        assert "does not speak TLS" in e.message
    e = await ask("127.0.0.1:1", admin)
    assert type(e) is Unavailable
    assert e.message == "Cannot reach the head at 127.0.0.1:1."


def _pair(of: Credentials) -> tuple[bytes, bytes]:
    return of.current().key, of.current().certificate


async def test_a_node_may_only_be_itself(tmp_path: Path) -> None:
    async with serving(head_settings(tmp_path)) as head:
        double = SchedulerDouble(head.node, "1", incarnation=2**62)
        double.shows = credentials(Role.NODE, "2")
        async with double:
            with pytest.raises(grpc.aio.AioRpcError) as e:
                await double._call.read()
            assert e.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert isinstance(from_rpc(e.value, "the head"), Forbidden)
            assert "--node_id=2" in str(e.value.details())
        async with SchedulerDouble(head.node, "1") as real:
            await until(lambda: real.welcome)


async def test_the_heads_folder_is_for_its_user_alone(tmp_path: Path) -> None:
    state = tmp_path / "new" / "state"
    async with serving(head_settings(state)):
        for folder in (state, state / "head", state / "authority"):
            assert folder.stat().st_mode & 0o077 == 0, folder


def test_the_tests_authority_is_copied_as_it_must_be(tmp_path: Path) -> None:
    folder = trusted(tmp_path / "s")
    assert Authority.open(folder).fingerprint == Authority.open(STATE).fingerprint
    assert os.stat(folder / "authority" / "ca.key").st_mode & 0o777 == 0o600
