"""Requests, and what came of them."""

from __future__ import annotations

import json
from typing import Any

import httpx

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
STREAM = CHAT | {"stream": True}
TEXT = {"Content-Type": "text/plain"}
LONG = {"tokens": 1_000_000, "step_s": 0.002}


def content(sse: str) -> tuple[str, list[dict[str, Any]], bool]:
    """Text, errors, and whether it ended with [DONE]."""
    text, errors = "", []
    events = [e.removeprefix("data: ") for e in sse.split("\n") if e.startswith("data: ")]
    for e in events:
        if e != "[DONE]":
            chunk = json.loads(e)
            if "error" in chunk:
                errors.append(chunk["error"])
            else:
                text += "".join(c["delta"].get("content", "") for c in chunk["choices"])
    return text, errors, bool(events) and events[-1] == "[DONE]"


def error(r: httpx.Response, status: int, param: str | None = None, code: str | None = None) -> str:
    """Check an answer to be an error in OpenAI's shape; its message."""
    assert r.status_code == status, r.text
    body = r.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert body["param"] == param
    if code is not None:
        assert body["code"] == code
    assert r.headers["x-request-id"]
    return body["message"]
