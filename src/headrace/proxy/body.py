"""Reads a request's headers, and its body, up to a limit of bytes and of time."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from starlette.requests import ClientDisconnect, Request

from headrace.errors import Overloaded, RequestTimeout, TooLarge
from headrace.proxy.bodies import Held
from headrace.proxy.unpack import Unpack

BODY_S = 60.0
DISCARD_S = 2.0
_MAX_TYPE_BYTES = 1024

_MEDIA = re.compile(r"[\w.+*!#$&^-]{1,127}/[\w.+*!#$&^-]{1,127}", re.ASCII)
_CHARSET = re.compile(r';\s*charset\s*=\s*(?:"([^"\\;]*)"|([^\s";]*))\s*(?=;|$)', re.IGNORECASE | re.ASCII)


def header(scope: Any, name: bytes) -> bytes | None:
    """The first header of this name, which is to be given in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return value
    return None


async def read_body(request: Request, max_bytes: int, held: Held) -> bytes:
    """The whole body, unpacked if it came compressed.

    TooLarge, also when its length is not announced or it grows when it is unpacked; RequestTimeout if it does not come;
    Overloaded if there is no room for it; UnsupportedMedia if it is packed in a way that is not known.
    """
    unpack = Unpack.of(header(request.scope, b"content-encoding"))
    length = header(request.scope, b"content-length") or b""
    too_large = TooLarge(f"The body is larger than {max_bytes} bytes, which is the most that is taken here.")
    if length.isdigit() and (len(length) > 18 or int(length) > max_bytes):
        if header(request.scope, b"expect") is None:
            await _discard(request, 2 * max_bytes)
        raise too_large
    parts: list[bytes] = []
    size = came = 0
    try:
        async with asyncio.timeout(BODY_S) as limit:
            held.stop_reading = lambda: limit.reschedule(0.0)
            more = True
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                data, more = message.get("body", b""), message.get("more_body", False)
                came += len(data)
                if came <= max_bytes:
                    for part in (data,) if unpack is None else unpack.add(data, not more):
                        parts.append(part)
                        size += len(part)
                        if size > max_bytes:
                            break
                        held.set(size)
                        if unpack is not None:
                            await asyncio.sleep(0)
                if max(size, came) > max_bytes:
                    parts.clear()
                    if more:
                        await _discard(request, 2 * max_bytes)
                    raise too_large
    except TimeoutError:
        if held.stopped:
            raise Overloaded("The body came too slowly while others wait for room.", retry_after_s=1.0) from None
        raise RequestTimeout(f"The body did not come within {BODY_S:g} s.") from None
    finally:
        held.stop_reading = None
    return parts[0] if len(parts) == 1 else b"".join(parts)


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
    text = given[:_MAX_TYPE_BYTES].decode("latin-1").strip()
    media, _, _ = text.partition(";")
    media = media.strip().lower()
    found = _CHARSET.search(text)
    charset = (found[1] or found[2] or "") if found else ""
    return media if _MEDIA.fullmatch(media) else "of that form", charset.lower()
