"""gRPC channels and servers: keepalive, limits, TLS, and the mapping of our errors to gRPC and back."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
import structlog

from headrace import errors
from headrace.rpc.v1 import types_pb2
from headrace.settings import TlsSettings

log = structlog.get_logger()

_ERROR_KEY = "headrace-error-bin"

_OPTIONS: list[tuple[str, int]] = [
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
    *_OPTIONS,
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


@dataclass(frozen=True, slots=True)
class Tls:
    """Mutual TLS: both sides show a certificate that `ca` signed. PEM files."""

    cert: Path
    key: Path
    ca: Path

    def _read(self) -> tuple[bytes, bytes, bytes]:
        try:
            return self.key.read_bytes(), self.cert.read_bytes(), self.ca.read_bytes()
        except OSError as e:
            raise errors.UserError(f"Cannot read the TLS file {e.filename}: {e.strerror}.") from e

    def client(self) -> grpc.ChannelCredentials:
        key, cert, ca = self._read()
        return grpc.ssl_channel_credentials(ca, key, cert)

    def server(self) -> grpc.ServerCredentials:
        key, cert, ca = self._read()
        return grpc.ssl_server_credentials([(key, cert)], ca, require_client_auth=True)


def tls_of(given: TlsSettings) -> Tls | None:
    """The TLS files to use, or None without any. UserError if they are not all there or cannot be read."""
    if not (given.cert or given.key or given.ca):
        return None
    if not (given.cert and given.key and given.ca):
        raise errors.UserError("TLS needs all three files: --tls_cert, --tls_key and --tls_ca.")
    tls = Tls(given.cert, given.key, given.ca)
    tls.client()  # so that a file that cannot be read is told now
    return tls


def open_channel(address: str, tls: Tls | None = None) -> grpc.aio.Channel:
    """A channel to host:port. Connects lazily, again and again, at most a second apart."""
    if tls:
        return grpc.aio.secure_channel(address, tls.client(), options=_OPTIONS)
    return grpc.aio.insecure_channel(address, options=_OPTIONS)


def new_server() -> grpc.aio.Server:
    """A server without ports yet; add services, then `bind`."""
    return grpc.aio.server(options=_SERVER_OPTIONS)


def bind(server: grpc.aio.Server, host: str, port: int, tls: Tls | None, flag: str) -> int:
    """Listen on host:port (0: any) and return the port. UserError, naming `flag`, if it is taken."""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if tls:
            return server.add_secure_port(where, tls.server())
        return server.add_insecure_port(where)
    except RuntimeError as e:
        raise errors.UserError(
            f"Cannot listen on {where}: the port is in use or not allowed. Choose another with {flag}."
        ) from e


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


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


def from_rpc(e: grpc.RpcError, peer: str) -> errors.HeadraceError:
    """Our error that a call ended with, or Unavailable naming `peer` ("the head at …") if the call itself failed."""
    if isinstance(e, grpc.aio.AioRpcError):
        for key, value in e.trailing_metadata() or ():
            if key == _ERROR_KEY and isinstance(value, bytes):
                return from_info(types_pb2.ErrorInfo.FromString(value))
        if e.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.RequestTimeout(f"No answer from {peer} in time.")
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
