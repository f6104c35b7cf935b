"""Connections: many, slow, silent, broken, unread."""

from __future__ import annotations

from strangers.bodies import CHAT, MOST, body
from strangers.script import Hostile, Script, Talk, Where


def _unfinished(where: Where) -> Script:
    """80 bodies of 8 MB of which the last byte never comes."""
    head = where.head(CHAT, "Content-Type: application/json", f"Content-Length: {MOST}")
    piece = b" " * (MOST - 1)
    return Script((Talk((head, piece), leave_s=6.0),) * 80, 80 * MOST, at_once=80)


def _idle(where: Where) -> Script:
    """500 connections that say nothing."""
    return Script((Talk((), stay_s=5.0),) * 500, 500 * 16_384, at_once=500)


def _slow_heads(where: Where) -> Script:
    head = where.head(CHAT, "X: " + "a" * 50)
    return Script((Talk(tuple(head[i : i + 1] for i in range(60)), 0.1, leave_s=0.0),) * 200, 200 * 16_384, at_once=200)


def _after_401(where: Where) -> Script:
    """No key, and a body that comes a byte at a time after the refusal."""
    head = where.head(CHAT, "Content-Type: application/json", "Content-Length: 1000000", key=False, close=False)
    return Script((Talk((head, *([b" "] * 80)), 0.1, leave_s=0.0),) * 100, 100 * 16_384, at_once=100)


def _garbage(where: Where) -> Script:
    bad = (
        b"\x00\x01\x02 / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01" + b"\xff" * 500,
        b"GET\r\n\r\n\r\n",
    )
    return Script(tuple(Talk((bad[i % 4],)) for i in range(2_000)), 64 * 16_384)


def _pipelined_and_gone(where: Where) -> Script:
    two = where.post(CHAT, body(stream=True, max_tokens=200)).replace(b"Connection: close\r\n", b"")
    return Script((Talk((two + two[:200],), leave_s=0.05),) * 300, 64 * 16_384, at_once=32)


def _pipelined(where: Where) -> Script:
    """5,000 requests in one piece."""
    request = where.head("/health", method="GET", close=False)
    last = where.head("/health", method="GET")
    return Script.of(request * 5_000 + last)


def _unread(where: Where, path: str) -> Script:
    """Answers that nobody reads."""
    request = where.head(path, method="GET", close=False)
    return Script((Talk((request * 500,), stay_s=5.0),) * 20, 20 * 500 * len(request), at_once=20)


def _chunks(where: Where) -> Script:
    """A body in chunks of one byte."""
    head = where.head(CHAT, "Content-Type: application/json", "Transfer-Encoding: chunked")
    return Script.of(head + b"1\r\n \r\n" * 1_300_000 + b"0\r\n\r\n")


def _segments(where: Where) -> Script:
    """A body in 20,000 pieces."""
    head = where.head(CHAT, "Content-Type: application/json", "Content-Length: 20000")
    talk = Talk((head, *([b" "] * 20_000)))
    return Script((talk,), 16_384)


def _query(where: Where) -> Script:
    paths = (
        "/v1/chat/demo?" + "&".join(f"stop={i}" for i in range(6_000)),
        "/v1/chat/demo?" + "&".join(f"a{i}=1" for i in range(6_000)),
        "/v1/chat/demo?seed=" + "9" * 60_000,
        "/v1/chat/demo?temperature=" + "1_" * 30_000,
        "/v1/chat/demo?stop=" + "%F0%9F%98%80" * 5_000,
        "/v1/chat/" + "%2e%2e%2f" * 6_500,
        "/v1/chat/" + "x" * 60_000,
    )
    return Script.of(*(where.post(p, b"hello", media="text/plain") for p in paths))


def _headers(where: Where) -> Script:
    fields = (
        [f"X-{i}: {'a' * 300}" for i in range(190)],
        ["X-Request-Id: " + "a" * 60_000],
        ["X-Session-Id: " + "a" * 60_000],
        ["Last-Event-ID: " + "9" * 60_000],
        ["X-Request-Timeout: " + "9" * 60_000],
        ["Accept: " + "*/*;q=0.1," * 6_000],
    )
    return Script.of(*(where.post(CHAT, body(stream=True), *f) for f in fields))


def _flood(where: Where) -> Script:
    """3,000 connections that close at once."""
    return Script((Talk((), leave_s=0.0),) * 3_000, 64 * 16_384)


def _wrong_keys(where: Where) -> Script:
    wrong = Where(where.host, where.port, "k" * 60_000)
    return Script.of(*([wrong.post(CHAT, body())] * 300), at_once=16)


def _pages(where: Where) -> Script:
    paths = ("/docs", "/openapi.json", "/metrics", "/v1/models")
    return Script.of(*(where.head(p, method="GET") for p in paths for _ in range(40)), at_once=16)


INPUTS = (
    Hostile("bodies-unfinished", "80 bodies of 8 MB that never end", _unfinished, quick=True),
    Hostile("connections-idle", "500 silent connections", _idle, quick=True),
    Hostile("connections-closed", "3,000 connections that close at once", _flood),
    Hostile("heads-slow", "200 heads, ten bytes a second", _slow_heads),
    Hostile("trickle-after-401", "100 bodies that go on after 401, ten bytes a second", _after_401, quick=True),
    Hostile("garbage", "2,000 connections that speak no HTTP", _garbage, quick=True),
    Hostile("pipelined-gone", "300 clients that ask twice at once and leave", _pipelined_and_gone),
    Hostile("pipelined", "5,000 requests in one piece", _pipelined),
    Hostile("unread-docs", "10,000 answers that nobody reads", lambda w: _unread(w, "/openapi.json")),
    Hostile("chunks", "a body in 1.3 million chunks", _chunks),
    Hostile("segments", "a body in 20,000 writes", _segments),
    Hostile("query", "queries and paths of 60 KB", _query),
    Hostile("headers", "heads of 60 KB", _headers),
    Hostile("keys-wrong", "300 wrong keys of 60 KB", _wrong_keys),
    Hostile("pages", "160 pages that are made for each who asks", _pages),
    Hostile("too-large", "a body that is announced with a terabyte", lambda w: Script(
        (Talk((w.head(CHAT, "Content-Type: application/json", "Content-Length: 1000000000000"), b" " * MOST)),), MOST)),
)  # fmt: skip
