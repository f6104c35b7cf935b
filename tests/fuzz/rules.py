"""What must be true of every answer, whatever was asked."""

from __future__ import annotations

import json
import re

from fuzz.case import KEPT, Case, Outcome

SMUGGLED = b"/fuzz-smuggled"
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
# What may be said with 500 and above: that nothing can serve it now, that HTTP has no such method or version.
_HONEST = {503: "service_unavailable_error", 501: "invalid_request_error", 505: "invalid_request_error"}
_CODE = ("Traceback", " object at 0x", "pydantic", "NoneType", '  File "')  # what belongs into a log


def complaint(case: Case, outcome: Outcome) -> str:
    """What is wrong with the answer, or nothing."""
    if outcome.ended == "refused":
        return f"no connection: {outcome.data.decode()}"
    if outcome.ended == "silent":
        return f"nothing came for too long; so far {outcome.size} bytes"
    if case.after in ("reset", "leave"):
        return ""
    data = bytes(outcome.data)
    if not data:
        return "closed without an answer" if case.after == "answer" else ""
    found = _STATUS.match(data)
    if not found:
        return "the answer is no HTTP/1.1"
    status = int(found[1])
    if case.must and status not in case.must:
        return f"answered {status}, where {' or '.join(map(str, case.must))} is due ({case.what})"
    if SMUGGLED in data:
        return "what was in a body was taken for a request"
    if b" HTTP/1.0\r\n" in case.sent()[:200] and b"transfer-encoding" in _head(data).lower():
        return "a client of HTTP/1.0 got chunks"
    return _of_one(status, data, len(data) < KEPT)


def _head(data: bytes) -> bytes:
    return data.partition(b"\r\n\r\n")[0]


def of_status(status: int, text: str) -> str:
    """What is wrong with an answer of this status and body, or nothing."""
    if status < 400:
        return ""
    if told := next((c for c in _CODE if c in text), ""):
        return f"{status} shows our insides: {told!r}"
    if status >= 500 and not (status in _HONEST and _HONEST[status] in text):
        return f"{status}"
    if not text:
        return ""  # to HEAD
    try:
        message = json.loads(text)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return f"{status} without an error's object"
    return "" if str(message).strip() else f"{status} without a message"


def _of_one(status: int, data: bytes, whole: bool) -> str:
    """The first answer of a connection."""
    head, _, rest = data.partition(b"\r\n\r\n")
    lines = head.lower()
    if status >= 400:
        length = re.search(rb"\ncontent-length: (\d+)", lines)
        return of_status(status, rest[: int(length[1]) if length else None].decode("utf-8", "replace"))
    streamed = b"text/event-stream" in lines and b"connection: close" in lines
    ended = b"data: [DONE]" in rest or b'"error"' in rest
    return "a stream without an end" if streamed and whole and not ended else ""
