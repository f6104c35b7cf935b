"""Reads a request's headers, and its body, up to a limit of bytes and of time."""

from __future__ import annotations

import asyncio
from email.message import Message as MimeHeader
from typing import Any

from starlette.requests import ClientDisconnect, Request

from headrace.errors import RequestTimeout, TooLarge

BODY_S = 60.0
DISCARD_S = 2.0


def header(scope: Any, name: bytes) -> bytes | None:
    """The first header of this name, which is to be given in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return value
    return None


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body. TooLarge, also when its length is not announced; RequestTimeout if it does not come."""
    length = header(request.scope, b"content-length") or b""
    too_large = TooLarge(f"The body is larger than {max_bytes} bytes, which is the most that is taken here.")
    if length.isdigit() and int(length) > max_bytes:
        if header(request.scope, b"expect") is None:
            await _discard(request, 2 * max_bytes)
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                body += message.get("body", b"")
                if len(body) > max_bytes:
                    if message.get("more_body", False):
                        await _discard(request, 2 * max_bytes)
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise RequestTimeout(f"The body did not come within {BODY_S:g} s.") from None


async def _discard(request: Request, max_bytes: int) -> None:
    """Read on for a moment: a connection that is closed on unread data takes the error with it."""
    seen = 0
    try:
        async with asyncio.timeout(DISCARD_S):
            while seen < max_bytes:
                message = await request.receive()
                seen += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def content_type(request: Request) -> tuple[str, str]:
    """The body's media type in lower case, and its charset; both may be empty."""
    given = header(request.scope, b"content-type") or b""
    if given in (b"application/json", b""):
        return given.decode(), ""
    parsed = MimeHeader()
    parsed["content-type"] = given.decode("latin-1")
    charset = parsed.get_param("charset", "")
    return parsed.get_content_type(), str(charset).lower()
