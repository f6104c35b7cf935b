"""Joining: a token and a fingerprint become a certificate, which is renewed; and nothing else becomes one."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from head_fixtures import head_process, head_settings, until

from headrace.errors import (
    Conflict,
    Forbidden,
    HeadraceError,
    InvalidRequest,
    Overloaded,
    TlsFailed,
    Unauthorized,
    Unavailable,
    UserError,
)
from headrace.head.controller import Endpoint, serving
from headrace.head.joining import Pace, command, new_line
from headrace.head.tokens import Tokens
from headrace.node import credential
from headrace.rpc import certificates, joining
from headrace.rpc.admin import AdminClient
from headrace.rpc.authority import Authority
from headrace.rpc.channel import open_channel
from headrace.rpc.credentials import Kept
from headrace.rpc.finding import credential_path, find, joined
from headrace.rpc.joining import JoinLine
from headrace.rpc.roles import Role
from headrace.rpc.v1 import join_pb2, join_pb2_grpc
from headrace.settings import SchedulerSettings, TlsSettings


class Cluster:
    def __init__(self, state: Path, endpoint: Endpoint) -> None:
        self.state, self.endpoint = state, endpoint
        self.authority, self.tokens = Authority.open(state), Tokens(state)

    def line(self, role: Role = Role.NODE, **more: object) -> JoinLine:
        return new_line(self.tokens, self.authority, self.endpoint.join, role, **more)  # type: ignore[arg-type]


@asynccontextmanager
async def cluster(tmp_path: Path, life_s: float = 3600.0) -> AsyncIterator[Cluster]:
    state = tmp_path / "head"
    settings = head_settings(state, join_port=0)
    async with serving(replace(settings, tls=TlsSettings(life_s=life_s))) as endpoint:
        yield Cluster(state, endpoint)


async def test_a_node_joins_once_and_finds_its_certificate_again(tmp_path: Path) -> None:
    path = tmp_path / "other" / "credential.json"
    async with cluster(tmp_path) as c:
        line = c.line()
        kept = await joining.ensure_joined(str(line), Role.NODE, "two", path)
        assert os.stat(path).st_mode & 0o777 == 0o600
        assert os.stat(path.parent).st_mode & 0o777 == 0o700
        assert line.token not in path.read_text()
        assert kept.head
        assert f"{kept.head.host}:{kept.head.node_port}" == c.endpoint.node
        assert f"{kept.head.host}:{kept.head.grpc_port}" == c.endpoint.grpc
        assert certificates.belongs(kept.current().certificate, c.authority.pem)
        # The same line stays in a unit file; the token is not asked for again, nor is the head.
        before = path.read_bytes()
        assert (await joining.ensure_joined(str(line), Role.NODE, "two", path)).current() == kept.current()
        assert path.read_bytes() == before
    assert (await joining.ensure_joined(str(line), Role.NODE, "two", path)).current() == kept.current()
    assert [p.name for p in path.parent.iterdir()] == ["credential.json"], "the key that it asked with is gone"


async def test_a_line_can_stand_in_a_file(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        (tmp_path / "line").write_text(f"{c.line()}\n")
        await joining.ensure_joined(str(tmp_path / "line"), Role.NODE, "two", tmp_path / "x" / "credential.json")
    with pytest.raises(UserError, match="or a file of it"):
        JoinLine.read(str(tmp_path / "none"))


@pytest.mark.parametrize(
    "text", ["", "x@y", "a" * 32 + "@host/sha256:" + "0" * 64, "a" * 32 + "@host:0/sha256:" + "0" * 64,
             "a" * 32 + "@host:1/sha256:00", "A" * 32 + "@host:1/sha256:" + "0" * 64]
)  # fmt: skip
def test_what_is_no_line_is_told(text: str) -> None:
    with pytest.raises(UserError, match="--join takes the line that `headrace token` shows"):
        JoinLine.read(text)


@pytest.mark.parametrize("host", ["10.0.0.1", "head.example", "fe80::1", "::1"])
def test_a_line_is_read_as_it_was_written(host: str) -> None:
    line = JoinLine("ab" * 16, host, 50053, "cd" * 32)
    assert JoinLine.read(f" {line}\n") == line


async def refused(line: JoinLine, role: Role, name: str, folder: Path) -> HeadraceError:
    with pytest.raises(HeadraceError) as e:
        await joining.join(line, role, name, folder / "credential.json")
    assert not (folder / "credential.json").exists()
    return e.value


async def test_tokens_are_for_what_they_are_for(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        fresh = (tmp_path / str(n) for n in range(99))
        wrong = replace(c.line(), token="0" * 32)
        assert isinstance(await refused(wrong, Role.NODE, "a", next(fresh)), Unauthorized)
        assert isinstance(await refused(c.line(Role.PROXY), Role.NODE, "a", next(fresh)), Forbidden)
        assert isinstance(await refused(c.line(Role.NODE), Role.ADMIN, "a", next(fresh)), Forbidden)
        assert isinstance(await refused(c.line(name="a"), Role.NODE, "b", next(fresh)), Forbidden)
        assert isinstance(await refused(c.line(Role.NODE), Role.HEAD, "a", next(fresh)), InvalidRequest)
        assert isinstance(await refused(c.line(life_s=-1.0), Role.NODE, "a", next(fresh)), Unauthorized)
        for name in ("", "a\nb", "../up", "x" * 500):
            assert isinstance(await refused(c.line(), Role.NODE, name, next(fresh)), InvalidRequest)
        once = c.line()
        await joining.join(once, Role.NODE, "a", next(fresh) / "credential.json")
        assert "has been used" in (await refused(once, Role.NODE, "b", next(fresh))).message
        many = c.line(uses=2)
        for name in ("c", "d"):
            await joining.join(many, Role.NODE, name, next(fresh) / "credential.json")
        assert "has been used" in (await refused(many, Role.NODE, "e", next(fresh))).message
        any_number = c.line(uses=0)
        for name in ("f", "g", "h"):
            await joining.join(any_number, Role.NODE, name, next(fresh) / "credential.json")


async def test_nobody_takes_another_nodes_name_unless_the_token_names_it(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        await joining.join(c.line(), Role.NODE, "two", tmp_path / "a" / "credential.json")
        assert isinstance(await refused(c.line(), Role.NODE, "two", tmp_path / "b"), Conflict)
        await joining.join(c.line(name="two"), Role.NODE, "two", tmp_path / "c" / "credential.json")


async def test_an_answer_that_was_lost_can_be_asked_for_again(tmp_path: Path) -> None:
    """By the same key, which is kept until the certificate is there."""
    async with cluster(tmp_path) as c:
        line, path = c.line(), tmp_path / "a" / "credential.json"
        path.parent.mkdir()
        key = certificates.key_pem(certificates.new_key())
        for _ in range(2):
            (path.parent / "credential.json.key").write_bytes(key)
            kept = await joining.join(line, Role.NODE, "two", path)
            assert kept.current().key == key


async def test_another_authority_than_the_lines_gets_no_token(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        e = await refused(replace(c.line(), fingerprint="0" * 64), Role.NODE, "a", tmp_path / "a")
        assert isinstance(e, TlsFailed)
        assert c.authority.fingerprint in e.message
        assert not [t for _, t in c.tokens.tokens() if t.used_by]


async def test_what_is_no_join_port_is_told_by_its_kind(tmp_path: Path) -> None:
    heard: list[bytes] = []

    async def mail(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ESMTP\r\n")
        heard.append(await reader.read(1000))
        writer.close()

    line = JoinLine("ab" * 16, "127.0.0.1", 1, "cd" * 32)
    assert "Cannot reach the head's join port" in (await refused(line, Role.NODE, "a", tmp_path / "a")).message
    server = await asyncio.start_server(mail, "127.0.0.1", 0)
    line = replace(line, port=server.sockets[0].getsockname()[1])
    e = await refused(line, Role.NODE, "a", tmp_path / "a")
    assert isinstance(e, TlsFailed)
    assert line.token.encode() not in b"".join(heard)
    server.close()
    await server.wait_closed()
    async with cluster(tmp_path) as c:  # its other ports have a certificate of the authority, and are not it
        port = int(c.endpoint.node.rpartition(":")[2])
        e = await refused(replace(c.line(), port=port), Role.NODE, "a", tmp_path / "a")
        assert isinstance(e, TlsFailed | Unavailable)


async def raw(c: Cluster, message: join_pb2.JoinRequest) -> grpc.StatusCode:
    """As a stranger who trusts whom he likes."""
    options = [("grpc.ssl_target_name_override", "join.headrace")]
    creds = grpc.ssl_channel_credentials(c.authority.pem)
    async with grpc.aio.secure_channel(c.endpoint.join, creds, options=options) as channel:
        try:
            await join_pb2_grpc.JoinServiceStub(channel).Join(message, timeout=30)
        except grpc.aio.AioRpcError as e:
            return e.code()
    return grpc.StatusCode.OK


async def test_the_port_for_strangers_has_bounds(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        token = c.line(uses=0).token
        request = certificates.request_for(certificates.new_key())
        good = {"token": token, "role": "node", "name": "a", "request": request}
        for wrong in (
            {"request": b""},
            {"request": b"x" * 9000},
            {"request": request.replace(b"M", b"N", 1)},
            {"token": "t" * 10_000},
            {"role": "r" * 10_000},
            {"name": "n" * 10_000},
        ):
            assert await raw(c, join_pb2.JoinRequest(**good | wrong)) is grpc.StatusCode.INVALID_ARGUMENT
        huge = join_pb2.JoinRequest(**good | {"request": b"x" * 100_000})
        assert await raw(c, huge) is grpc.StatusCode.RESOURCE_EXHAUSTED
        codes = [await raw(c, join_pb2.JoinRequest(token="0" * 32, role="node", name="a")) for _ in range(40)]
        assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes
        assert not list(c.tokens.members())


def test_pace() -> None:
    pace = Pace(3, 0.5)
    assert [pace.passes(100.0) for _ in range(4)] == [True, True, True, False]
    assert not pace.passes(101.0)
    assert pace.passes(102.0)
    assert [pace.passes(1000.0) for _ in range(4)] == [True, True, True, False], "it saves up no more than at first"
    assert issubclass(Overloaded, HeadraceError)


async def test_who_has_joined_may_do_what_the_role_may_and_renews(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        path = credential_path(tmp_path / "laptop", Role.ADMIN)
        kept = await joining.join(c.line(Role.ADMIN), Role.ADMIN, "laptop", path)
        assert joined(path)
        assert isinstance(found := find(Role.ADMIN, "cli", TlsSettings(), tmp_path / "laptop", ""), Kept)
        assert found.current() == kept.current()
        async with AdminClient(c.endpoint.grpc, kept) as admin:
            assert (await admin.status()).epoch
        before = kept.current()
        await joining.renew(kept, Role.ADMIN)
        assert kept.current() != before
        assert kept.head
        async with AdminClient(c.endpoint.grpc, kept) as admin:
            assert (await admin.status()).epoch
        node = await joining.join(c.line(), Role.NODE, "two", tmp_path / "two" / "credential.json")
        await joining.renew(node, Role.NODE)
        async with AdminClient(c.endpoint.grpc, node) as admin:
            with pytest.raises(Forbidden, match="takes admin"):
                await admin.status()


async def test_who_was_taken_back_gets_no_new_certificate(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        kept = await joining.join(c.line(), Role.NODE, "two", tmp_path / "two" / "credential.json")
        assert c.tokens.revoke("node/two") == "member"
        with pytest.raises(Forbidden, match="not a member"):
            await joining.renew(kept, Role.NODE)
        line = c.line()
        (key,) = [k for k, t in c.tokens.tokens() if not t.used_by]
        assert c.tokens.revoke(key[:8]) == "token"
        assert isinstance(await refused(line, Role.NODE, "three", tmp_path / "three"), Unauthorized)


async def test_the_certificate_of_a_request_is_of_the_signers_choice(tmp_path: Path) -> None:
    """Renewal keeps role and name, whatever the request may say: only its key counts."""
    async with cluster(tmp_path) as c:
        kept = await joining.join(c.line(), Role.NODE, "two", tmp_path / "two" / "credential.json")
        await joining.renew(kept, Role.NODE)
        async with open_channel(c.endpoint.grpc, kept, Role.HEAD) as channel:
            stub = join_pb2_grpc.CertificateServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError, match="INVALID_ARGUMENT"):
                await stub.Renew(join_pb2.RenewRequest(request=b"nothing"))


async def test_the_scheduler_waits_for_the_head_and_says_what_is_wrong_else(tmp_path: Path) -> None:
    state = tmp_path / "head"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    head_settings(state)  # makes the folder
    line = new_line(Tokens(state), Authority.open(state), f"127.0.0.1:{port}", Role.NODE)
    settings = SchedulerSettings(node_id="two", state_dir=tmp_path / "two", join=str(line))
    waiting = asyncio.create_task(credential.obtain(settings))
    await asyncio.sleep(0)
    async with serving(head_settings(state, join_port=port)):
        assert isinstance(await waiting, Kept)
        with pytest.raises(UserError, match="has been used"):
            await credential.obtain(replace(settings, node_id="three"))


async def test_no_certificate_at_all_is_one_sentence(tmp_path: Path) -> None:
    settings = SchedulerSettings(state_dir=tmp_path / "s", head_address="192.0.2.1")
    with pytest.raises(UserError, match=r"`headrace token` shows there \(--join=") as e:
        await credential.obtain(settings)
    assert "192.0.2.1" in e.value.message
    for role, words in ((Role.PROXY, "--role=proxy"), (Role.ADMIN, "headrace join")):
        with pytest.raises(UserError, match=words):
            find(role, "x", TlsSettings(), tmp_path / "s", "192.0.2.1")
    with pytest.raises(UserError, match="run this as the user that runs the head"):
        find(Role.ADMIN, "x", TlsSettings(), tmp_path / "s", "127.0.0.1")
    assert not (tmp_path / "s").exists(), "looking makes no authority"


async def test_one_that_has_ended_says_when_and_what_to_do(tmp_path: Path) -> None:
    async with cluster(tmp_path, life_s=1.0) as c:
        path = tmp_path / "two" / "nodes" / "two" / "credential.json"
        kept = await joining.join(c.line(), Role.NODE, "two", path)
        await until(lambda: kept.ends_at < time.time())
        with pytest.raises(UserError, match=r"ended on \d{4}-\d\d-\d\d: run `headrace token`"):
            await credential.obtain(SchedulerSettings(node_id="two", state_dir=tmp_path / "two"))


async def test_the_head_shows_the_line_where_it_can_be_reached(tmp_path: Path) -> None:
    async with head_process(tmp_path / "a", "--host=127.0.0.1", "--num_proxies=0") as head:
        assert not head.endpoint.join
        assert "--join=" not in head.output.read_text()
    async with head_process(tmp_path / "b", "--host=0.0.0.0", "--join_port=0", "--num_proxies=0") as head:
        await until(lambda: "headrace scheduler --node_id=$(hostname) --join=" in head.output.read_text())
        given = head.output.read_text().split("--join=")[1].split()[0]
        line = replace(JoinLine.read(given), host="127.0.0.1")
        await joining.join(line, Role.NODE, "two", tmp_path / "two" / "credential.json")
    assert json.loads((tmp_path / "two" / "credential.json").read_text())["head"]["host"] == "127.0.0.1"
    assert command(Role.ADMIN, line) == f"headrace join {line}"
