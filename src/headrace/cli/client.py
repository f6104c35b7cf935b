"""What every command that talks to a head shares: how to find it, and what to say when it is not there."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from headrace.cli.endpoint import DEFAULT_GRPC_PORT, callable_address, read_endpoint, with_port
from headrace.cli.kinds import FILE
from headrace.cli.options import Flag, flag_options, option, tls_settings
from headrace.errors import Unavailable, UserError
from headrace.settings import TlsSettings, default_state_dir

if TYPE_CHECKING:
    from headrace.rpc.admin import AdminClient
    from headrace.rpc.credentials import Kept

_T = TypeVar("_T")
_Command = TypeVar("_Command", bound=Callable[..., Any])

_LOOK_S = 3.0
_HEAD_ADDRESS = Flag("host:port of the head's grpc_port; without it, what the head wrote into --state_dir.")
STATE_DIR = Flag("State directory of the head, to find its address.", FILE)


def client_options(command: _Command) -> _Command:
    """--head_address, --state_dir and the TLS files."""
    command = flag_options("tls_cert", "tls_key", "tls_ca", "tls_name")(command)
    command = option("state_dir", STATE_DIR, default_state_dir())(command)
    return option("head_address", _HEAD_ADDRESS)(command)


def grpc_address(head_address: str | None, state_dir: Path) -> str:
    """host:port of the head's administration: as said, as the head wrote, or as it is by default."""
    if head_address:
        return with_port(head_address, DEFAULT_GRPC_PORT)
    endpoint = read_endpoint(state_dir)
    from headrace.rpc.finding import at

    if endpoint is None and (kept := _joined(state_dir)) and kept.head:
        return at(kept.head.host, kept.head.grpc_port)
    return callable_address(endpoint.grpc) if endpoint else f"localhost:{DEFAULT_GRPC_PORT}"


def _joined(state_dir: Path) -> Kept | None:
    from headrace.rpc.finding import credential_path, joined
    from headrace.rpc.roles import Role

    return joined(credential_path(state_dir, Role.ADMIN))


def open_admin(address: str, state_dir: Path, tls: TlsSettings | None = None) -> AdminClient:
    """A client for the head at `address`. UserError if there are no credentials for it."""
    from headrace.rpc.admin import AdminClient
    from headrace.rpc.finding import find, host_of
    from headrace.rpc.roles import Role

    return AdminClient(address, find(Role.ADMIN, "cli", tls or TlsSettings(), state_dir, host_of(address)))


def is_unreachable(error: Unavailable) -> bool:
    """True if the head did not answer at all (an answer may be Unavailable as well)."""
    return error.message.startswith("Cannot reach the head")


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _LOOK_S).close()
        return True
    except (OSError, ValueError):
        return False


def call_head(params: Mapping[str, Any], action: Callable[[AdminClient], Awaitable[_T]]) -> _T:
    """Run `action` with a client for the head that the options name. UserError if there is none."""
    from headrace.rpc.finding import NoCredential

    address = grpc_address(params["head_address"], params["state_dir"])
    tls = tls_settings(params)

    async def call() -> _T:
        try:
            client = open_admin(address, params["state_dir"], tls)
        except NoCredential as e:
            if await asyncio.to_thread(_listens, address):
                raise
            raise Unavailable(f"Cannot reach the head at {address}.") from e
        async with client as admin:
            return await action(admin)

    try:
        return asyncio.run(call())
    except Unavailable as e:
        if is_unreachable(e):
            raise UserError(f"Cannot reach the head at {address}; is it running? Start it with: headrace up") from e
        raise
