"""What a role may call: the table, and every method of every service over real gRPC with every kind of certificate."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from authority_fixtures import STATE, credentials

from headrace.rpc import v1
from headrace.rpc.authority import Authority
from headrace.rpc.channel import bind, new_server, open_channel
from headrace.rpc.credentials import Credentials, Issued
from headrace.rpc.guard import caller
from headrace.rpc.roles import MAY_CALL, ROLES, Peer, Role

PACKAGE = "headrace.v1"
NAMES = [m.name for m in pkgutil.iter_modules(v1.__path__) if m.name.endswith("_pb2")]
FILES = [importlib.import_module(f"{v1.__name__}.{name}") for name in NAMES]
METHODS = {
    f"{service.name}/{method.name}": method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def test_every_method_of_every_service_has_a_row_and_every_row_is_a_method() -> None:
    assert len(METHODS) > 20
    assert set(MAY_CALL) == set(METHODS)


def test_what_is_in_no_row_may_be_called_by_nobody() -> None:
    for peer in (Peer(ROLES), Peer(frozenset({Role.STRANGER}))):
        with pytest.raises(Exception, match="takes no"):
            peer.check(f"/{PACKAGE}.AdminService/Destroy")


class Anything(grpc.GenericRpcHandler):
    """Every method, answered by an empty message; those that stream by writing, or by a generator."""

    def __init__(self) -> None:
        self.called: list[tuple[str, Peer]] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        path = str(handler_call_details.method)
        method = METHODS[path.removeprefix(f"/{PACKAGE}.")]

        async def one(request: Any, context: Any) -> bytes:
            self.called.append((path, caller(context)))
            return b""

        async def writes(request: Any, context: Any) -> None:
            await context.write(await one(request, context))

        async def yields(request: Any, context: Any) -> AsyncIterator[bytes]:
            yield await one(request, context)

        if method.client_streaming:
            if method.server_streaming:
                return grpc.stream_stream_rpc_method_handler(writes)
            return grpc.stream_unary_rpc_method_handler(one)
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(yields)
        return grpc.unary_unary_rpc_method_handler(one)


async def call(channel: grpc.aio.Channel, name: str) -> grpc.StatusCode:
    path, method = f"/{PACKAGE}.{name}", METHODS[name]
    try:
        if method.client_streaming:
            stream = channel.stream_stream(path)(iter([b""]), timeout=30)
            _ = [answer async for answer in stream]
        elif method.server_streaming:
            _ = [answer async for answer in channel.unary_stream(path)(b"", timeout=30)]
        else:
            await channel.unary_unary(path)(b"", timeout=30)
    except grpc.aio.AioRpcError as e:
        return e.code()
    return grpc.StatusCode.OK


@asynccontextmanager
async def served(handler: grpc.GenericRpcHandler, mine: Credentials) -> AsyncIterator[str]:
    server = new_server()
    server.add_generic_rpc_handlers((handler,))
    port = bind(server, "127.0.0.1", 0, mine, "")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@pytest.mark.parametrize("role", sorted(ROLES))
async def test_every_method_as_every_role(role: Role) -> None:
    handler = Anything()
    async with (
        served(handler, credentials(Role.HEAD)) as address,
        open_channel(address, credentials(role, "a/b ü"), Role.HEAD) as channel,
    ):
        codes = dict(zip(METHODS, await asyncio.gather(*(call(channel, m) for m in METHODS)), strict=True))
    allowed = {m for m, code in codes.items() if code is grpc.StatusCode.OK}
    assert allowed == {m for m, roles in MAY_CALL.items() if role in roles}
    assert {codes[m] for m in METHODS if m not in allowed} == {grpc.StatusCode.PERMISSION_DENIED}
    assert {path.removeprefix(f"/{PACKAGE}.") for path, _ in handler.called} == allowed, "before a servicer sees it"
    assert {peer for _, peer in handler.called} <= {Peer(frozenset({role}), "a/b ü")}


async def test_nobody_poses_as_the_head_or_as_a_replica_with_another_certificate() -> None:
    """A client names the role that it expects; also proxies and admins hold no certificate of a server at all."""
    for role in (Role.NODE, Role.PROXY, Role.ADMIN):
        async with (
            served(Anything(), credentials(role)) as address,
            open_channel(address, credentials(Role.ADMIN), Role.HEAD) as channel,
        ):
            assert await call(channel, "AdminService/Status") is grpc.StatusCode.UNAVAILABLE
    async with (
        served(Anything(), credentials(Role.HEAD)) as address,
        open_channel(address, credentials(Role.PROXY), Role.NODE) as channel,
    ):
        assert await call(channel, "ReplicaService/Session") is grpc.StatusCode.UNAVAILABLE


async def test_a_certificate_that_has_ended_opens_nothing() -> None:
    ended = Issued(Authority.open(STATE), Role.ADMIN, "late", life_s=-60.0)
    stale = ended.current()
    ended.current = lambda: stale  # type: ignore[method-assign]
    async with (
        served(Anything(), credentials(Role.HEAD)) as address,
        open_channel(address, ended, Role.HEAD) as channel,
    ):
        assert await call(channel, "AdminService/Status") is grpc.StatusCode.UNAVAILABLE
