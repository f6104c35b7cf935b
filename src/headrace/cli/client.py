"""What every command that talks to a head shares: how to find it, and what to say when it is not there."""

from __future__ import annotations

import asyncio
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

_T = TypeVar("_T")
_Command = TypeVar("_Command", bound=Callable[..., Any])

_HEAD_ADDRESS = Flag("host:port of the head's grpc_port; without it, what the head wrote into --state_dir.")
STATE_DIR = Flag("State directory of the head, to find its address.", FILE)


def client_options(command: _Command) -> _Command:
    """--head_address, --state_dir and the TLS files."""
    command = flag_options("tls_cert", "tls_key", "tls_ca")(command)
    command = option("state_dir", STATE_DIR, default_state_dir())(command)
    return option("head_address", _HEAD_ADDRESS)(command)


def grpc_address(head_address: str | None, state_dir: Path) -> str:
    """host:port of the head's administration: as said, as the head wrote, or as it is by default."""
    if head_address:
        return with_port(head_address, DEFAULT_GRPC_PORT)
    endpoint = read_endpoint(state_dir)
    return callable_address(endpoint.grpc) if endpoint else f"localhost:{DEFAULT_GRPC_PORT}"


def open_admin(address: str, tls: TlsSettings) -> AdminClient:
    """A client for the head at `address`."""
    from headrace.rpc.admin import AdminClient
    from headrace.rpc.channel import tls_of

    return AdminClient(address, tls_of(tls))


def is_unreachable(error: Unavailable) -> bool:
    """True if the head did not answer at all (an answer may be Unavailable as well)."""
    return error.message.startswith("Cannot reach the head")


def call_head(params: Mapping[str, Any], action: Callable[[AdminClient], Awaitable[_T]]) -> _T:
    """Run `action` with a client for the head that the options name. UserError if there is none."""
    address = grpc_address(params["head_address"], params["state_dir"])
    tls = tls_settings(params)

    async def call() -> _T:
        async with open_admin(address, tls) as admin:
            return await action(admin)

    try:
        return asyncio.run(call())
    except Unavailable as e:
        if is_unreachable(e):
            raise UserError(f"Cannot reach the head at {address}; is it running? Start it with: headrace up") from e
        raise
