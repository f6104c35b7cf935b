"""Bytes that are nearly HTTP/1.1: broken lines, lengths that disagree, chunks that do not fit, ends that come early."""

from __future__ import annotations

import random

from fuzz.case import Case, rng
from fuzz.rules import SMUGGLED

KIND = "raw"
_BODY = b'{"model":"sim1","messages":[{"role":"user","content":"Hi."}],"max_tokens":2}'
_INNER = b"GET " + SMUGGLED + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
_METHODS = (
    b"GET",
    b"POST",
    b"PUT",
    b"HEAD",
    b"OPTIONS",
    b"TRACE",
    b"CONNECT",
    b"PRI",
    b"get",
    b"G\0T",
    b"",
    b"A" * 9_000,
    b"\xff",
)
_TARGETS = (
    b"/health", b"/v1/models", b"/v1/chat/completions", b"/", b"*", b"//", b"/..", b"http://localhost/health",
    b"/%00", b"/%", b"/v1/chat/%F0%9F", b"health", b"/\x7f", b"/\xff\xfe", b"/a b", b"/?" + b"a" * 70_000, b"/#a",
    b"/v1/models/" + b"x/" * 500, b"", b"/v1/models/%2e%2e%2f%2e%2e", b"localhost:80", b"/docs", b"/openapi.json",
    b"/metrics", b"/ready",
)  # fmt: skip
_VERSIONS = (
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/0.9",
    b"HTTP/2.0",
    b"HTTP/1.1 ",
    b"http/1.1",
    b"HTTP/1.",
    b"HTTP/11",
    b"",
    b"HTTP/1.1\0",
    b"JUNK",
)
_ENDS = (b"\r\n", b"\n", b"\r", b"\n\r", b"\r\r\n", b"\0\r\n", b" \r\n")
_FIELDS = (
    b"Host: a\r\nHost: b", b"Host:", b"Host: a b", b"Host: \0", b": empty", b"No colon", b"A : b", b" Folded: a",
    b"X: a\r\n folded", b"X: \x01\x02", b"X:" + b"a" * 70_000, b"\xff: a", b"X: \xff\xfe",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding:\x0bchunked", b"Transfer-Encoding: xchunked", b"Transfer_Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"Content-Length: 5", b"Content-Length: -1",
    b"Content-Length: +5", b"Content-Length: 5, 5", b"Content-Length: 5\r\nContent-Length: 6", b"Content-Length: 0x5",
    b"Content-Length: 99999999999999999999", b"Content-Length: ", b"Content-Length: 5 5", b"Expect: 100-continue",
    b"Expect: a", b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings",
    b"Upgrade: websocket\r\nConnection: Upgrade", b"Connection: keep-alive", b"Connection: close, a", b"Connection: ",
    b"Cookie: " + b"a=b;" * 500, b"Accept: \0", b"Authorization: Bearer", b"Authorization: Basic \xff",
    b"Content-Type: \0", b"Content-Type: text/plain; charset=\"", b"X-Request-Id: a\tb",
    b"X-Request-Id: " + b"a" * 300, b"Last-Event-ID: \xff", b"Range: bytes=0-", b"If-None-Match: *", b"TE: trailers",
    b"\r\n".join(b"X-%d: a" % i for i in range(300)),
)  # fmt: skip
_CHUNKS = (
    b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"-1\r\n", b"+5\r\nhello\r\n", b"0x5\r\nhello\r\n",
    b"5 \r\nhello\r\n0\r\n\r\n", b"5;a=b\r\nhello\r\n0\r\n\r\n", b"5\nhello\n0\n\n", b"5\r\nhelloX\r\n",
    b"fffffffffffffffff\r\n", b"ffffffff\r\n", b"5;" + b"a" * 70_000 + b"\r\nhello\r\n", b"\r\n", b"g\r\n",
    b"00000000000000005\r\nhello\r\n0\r\n\r\n", b"0\r\nTrailer: a\r\n\r\n", b"0\r\n" + b"T: a\r\n" * 300 + b"\r\n",
    b"1\r\n{\r\n" * 50, b"5\r\nhel", b"\0",
)  # fmt: skip


def _whole(r: random.Random, version: bytes = b"HTTP/1.1") -> bytes:
    """A request that is right."""
    if r.random() < 0.5:
        path = r.choice((b"/health", b"/v1/models", b"/nosuch", b"/ready"))
        return b"GET %b %b\r\nHost: localhost\r\n\r\n" % (path, version)
    head = b"POST /v1/chat/completions %b\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return head % version + b"Content-Length: %d\r\n\r\n" % len(_BODY) + _BODY


def _edit(data: bytes, r: random.Random) -> bytes:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *fields = head.split(b"\r\n")
    method, target, version = (*first.split(b" "), b"", b"")[:3]
    end = b"\r\n"
    match r.randrange(11):
        case 0:
            method = r.choice(_METHODS)
        case 1:
            target = r.choice(_TARGETS)
        case 2:
            version = r.choice(_VERSIONS)
        case 3 | 4:
            fields.insert(r.randint(0, len(fields)), r.choice(_FIELDS))
        case 5:
            end = r.choice(_ENDS)
        case 6:
            fields = [f for f in fields if not f.startswith(b"Content-Length")] + [b"Transfer-Encoding: chunked"]
            body = r.choice(_CHUNKS) if r.random() < 0.7 else b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        case 7:  # both lengths, and a request in the body
            fields = [f for f in fields if not f.startswith(b"Content-Length")]
            fields += [b"Content-Length: %d" % len(b"0\r\n\r\n" + _INNER), b"Transfer-Encoding: chunked"]
            r.shuffle(fields)
            body = b"0\r\n\r\n" + _INNER
        case 8:
            whole = end.join((first, *fields)) + end + end + body
            return whole[: r.randrange(len(whole) + 1)]
        case 9:
            at = r.randrange(len(data) + 1)
            return data[:at] + r.randbytes(r.choice((1, 1, 3, 40))) + data[at + r.choice((0, 1)) :]
        case _:
            return (
                r.choice(
                    (b"\r\n" * 5, b"\0" * 20, r.randbytes(200), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"")
                )
                + data
            )
    return end.join((b" ".join((method, target, version)), *fields)) + end + end + body


_POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
_KNOWN = (
    (b"GET /health HTTP/1.1\r\n\r\n", 400, "without Host"),
    (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400, "two Hosts"),
    (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: b\r\n\r\n", 400, "two Hosts that differ"),
    (_POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400, "two lengths"),
    (_POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400, "a length and chunks"),
    (b"GET /health HTTP/1.0\r\n\r\n", 200, "HTTP/1.0 needs no Host"),
)  # fmt: skip


def make(seed: int, number: int, without: frozenset[int] = frozenset()) -> Case:
    """Case `number`: one to four requests on a connection, of which some are right, with up to three changes."""
    if number < len(_KNOWN):
        data, status, what = _KNOWN[number]
        return Case((data,), "close", must=(status,), what=what)
    r = rng(seed, KIND, number)
    version = b"HTTP/1.0" if r.random() < 0.1 else b"HTTP/1.1"
    requests = [_whole(r, version) for _ in range(r.choice((1, 1, 1, 2, 4)))]
    changed, edits = r.randrange(len(requests)), r.randint(1, 3)
    for i in range(edits):
        if i not in without:
            requests[changed] = _edit(requests[changed], rng(seed, KIND, number, i))
    data = b"".join(requests)
    after = r.choice(("close",) * 6 + ("reset", "leave"))
    if r.random() < 0.15:  # in pieces
        size = max(1, len(data) // 20)
        return Case(tuple(data[i : i + size] for i in range(0, len(data), size)), after, 0.002, edits)
    return Case((data,), after, 0.0 if after == "close" else r.choice((0.0, 0.01)), edits)
