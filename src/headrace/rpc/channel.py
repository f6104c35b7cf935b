"""gRPC channels and servers: keepalive, limits, mutual TLS, and the mapping of our errors to gRPC and back."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
import structlog

from headrace import errors
from headrace.rpc import tls_errors
from headrace.rpc.credentials import Credentials, client_side, server_side
from headrace.rpc.guard import Guard
from headrace.rpc.roles import Role
from headrace.rpc.v1 import types_pb2

log = structlog.get_logger()

_ERROR_KEY = "headrace-error-bin"

OPTIONS: list[tuple[str, int]] = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    # A restarted peer must be found in a second, not after gRPC's two minutes of back-off.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Also the time that one attempt to connect gets: a process that is just starting on a busy machine needs some.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),
]
_SERVER_OPTIONS: list[tuple[str, int]] = [
    *OPTIONS,
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    # Two servers on one port must be an error, not a coin toss.
    ("grpc.so_reuseport", 0),
]

_CODES: dict[str, grpc.StatusCode] = {
    "invalid_request": grpc.StatusCode.INVALID_ARGUMENT,
    "context_exceeded": grpc.StatusCode.INVALID_ARGUMENT,
    "unauthorized": grpc.StatusCode.UNAUTHENTICATED,
    "forbidden": grpc.StatusCode.PERMISSION_DENIED,
    "not_found": grpc.StatusCode.NOT_FOUND,
    "timeout": grpc.StatusCode.DEADLINE_EXCEEDED,
    "conflict": grpc.StatusCode.ALREADY_EXISTS,
    "fenced": grpc.StatusCode.FAILED_PRECONDITION,
    "overloaded": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
    "draining": grpc.StatusCode.UNAVAILABLE,
    "replica_gone": grpc.StatusCode.UNAVAILABLE,
}


def open_channel(address: str, credentials: Credentials, role: Role) -> grpc.aio.Channel:
    """A channel to the peer of this role at host:port. Connects lazily, again and again, at most a second apart.

    It shows the certificate that is current now. Whoever may outlive that opens another channel for another try.
    """
    options: list[tuple[str, Any]] = list(OPTIONS)
    if name := credentials.expected(role):
        options.append(("grpc.ssl_target_name_override", name))
    return grpc.aio.secure_channel(address, client_side(credentials.current()), options=options)


class Connection:
    """The channel to one peer for as long as a process lives: another one whenever the certificate has changed.

    Calls go on over the channel that they were made with.
    """

    def __init__(self, address: str, credentials: Credentials, role: Role) -> None:
        self.address, self._credentials, self._role = address, credentials, role
        self.expected = credentials.expected(role)
        self._shown = credentials.current()
        self._channels = [open_channel(address, credentials, role)]

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    def channel(self) -> grpc.aio.Channel:
        """The one to make the next call with."""
        if self._credentials.current() != self._shown:
            self._shown = self._credentials.current()
            self._channels.append(open_channel(self.address, self._credentials, self._role))
        return self._channels[-1]


def new_server() -> grpc.aio.Server:
    """A server without ports yet, which lets each caller do what its role may; add services, then `bind`."""
    return grpc.aio.server(interceptors=[Guard()], options=_SERVER_OPTIONS)


def bind(server: grpc.aio.Server, host: str, port: int, credentials: Credentials, flag: str) -> int:
    """Listen on host:port (0: any) and return the port. UserError, naming `flag`, if it is taken."""
    return bind_with(server, host, port, server_side(credentials), flag)


def bind_with(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials, flag: str) -> int:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        return server.add_secure_port(where, credentials)
    except RuntimeError as e:
        raise errors.UserError(
            f"Cannot listen on {where}: the port is in use or not allowed. Choose another with {flag}."
        ) from e


def to_info(e: errors.HeadraceError) -> types_pb2.ErrorInfo:
    return types_pb2.ErrorInfo(
        kind=e.kind,
        message=e.message,
        param=e.param or "",
        retry_after_s=e.retry_after_s or 0.0,
        code=e.code or "",
    )


def from_info(info: types_pb2.ErrorInfo) -> errors.HeadraceError:
    return errors.from_kind(
        info.kind,
        info.message,
        param=info.param or None,
        code=info.code or None,
        retry_after_s=info.retry_after_s or None,
    )


def from_rpc(e: grpc.RpcError, peer: str, expected: str = "") -> errors.HeadraceError:
    """Our error that a call ended with, or Unavailable naming `peer` ("the head at …") if the call itself failed.

    expected: the name that its certificate should have, if it was not the address.
    """
    if isinstance(e, grpc.aio.AioRpcError):
        for key, value in e.trailing_metadata() or ():
            if key == _ERROR_KEY and isinstance(value, bytes):
                return from_info(types_pb2.ErrorInfo.FromString(value))
        if e.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.RequestTimeout(f"No answer from {peer} in time.")
        if e.code() is grpc.StatusCode.PERMISSION_DENIED:
            return errors.Forbidden(f"{peer} refuses: {e.details()}")
        if tls := tls_errors.told(e.details() or "", peer, expected):
            return errors.TlsFailed(tls)
        if e.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return errors.HeadraceError(f"{peer} failed: {e.code().name}: {e.details()}")
    return errors.Unavailable(f"Cannot reach {peer}.")


F = TypeVar("F", bound=Callable[..., Any])


def rpc_errors(handler: F) -> F:
    """Decorates a servicer's method: HeadraceErrors travel with all their fields, others are logged."""

    async def _abort(context: grpc.aio.ServicerContext[Any, Any], e: Exception) -> None:
        if not isinstance(e, errors.HeadraceError):
            log.exception("rpc_failed", method=handler.__name__)
            e = errors.HeadraceError("Internal error; the log of the process that answered says more.")
        code = _CODES.get(e.kind, grpc.StatusCode.INTERNAL)
        await context.abort(code, e.message, ((_ERROR_KEY, to_info(e).SerializeToString()),))

    if inspect.isasyncgenfunction(handler):

        @functools.wraps(handler)
        async def stream(self: Any, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            try:
                async for item in handler(self, request, context):
                    yield item
            except (grpc.aio.AbortError, grpc.aio.AioRpcError):
                raise
            except Exception as e:
                await _abort(context, e)

        return stream  # type: ignore[return-value]

    @functools.wraps(handler)
    async def unary(self: Any, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            call: Awaitable[Any] = handler(self, request, context)
            return await call
        except (grpc.aio.AbortError, grpc.aio.AioRpcError):
            raise
        except Exception as e:
            await _abort(context, e)

    return unary  # type: ignore[return-value]
