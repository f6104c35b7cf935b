"""Every server's doorkeeper: a call goes on only if the caller's role may make it."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from headrace.errors import Forbidden
from headrace.rpc.roles import Peer, peer_of

_MAKERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class Guard(grpc.aio.ServerInterceptor):
    """Ends calls that `roles.MAY_CALL` does not allow with PERMISSION_DENIED, before a servicer sees them."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # no such method here
        method = str(handler_call_details.method)
        kind = bool(handler.request_streaming), bool(handler.response_streaming)
        inner = next(
            f
            for f in (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream)
            if f is not None
        )
        return _MAKERS[kind](
            _guarded(inner, method),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def _guarded(inner: Any, method: str) -> Any:
    if inspect.isasyncgenfunction(inner):

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            await _admit(context, method)
            async for item in inner(request, context):
                yield item

        return stream

    async def call(request: Any, context: Any) -> Any:
        await _admit(context, method)
        return await inner(request, context)

    return call


async def _admit(context: grpc.aio.ServicerContext[Any, Any], method: str) -> None:
    try:
        caller(context).check(method)
    except Forbidden as e:
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, e.message)


def caller(context: grpc.aio.ServicerContext[Any, Any]) -> Peer:
    """Who makes this call."""
    return peer_of(context.auth_context())
