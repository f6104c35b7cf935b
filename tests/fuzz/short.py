"""Connections that come and go: many requests in a short time, left at any point of their lives."""

from __future__ import annotations

from fuzz.case import Case, rng

KIND = "short"
_STREAM = b'{"model":"%b","messages":[{"role":"user","content":"Hi %d."}],"max_tokens":%d,"stream":%b}'


def make(seed: int, number: int, without: frozenset[int] = frozenset()) -> Case:
    """Case `number`. There is nothing to leave out of it."""
    r = rng(seed, KIND, number)
    body = _STREAM % (r.choice((b"sim1", b"demo")), number, r.choice((1, 5, 200)), r.choice((b"true", b"false")))
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"X-Request-Id: fuzz-short-%d-%d\r\nContent-Length: %d\r\n\r\n%b" % (seed, number, len(body), body)
    )
    get = b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % r.choice((b"/health", b"/v1/models", b"/nosuch", b"/metrics"))
    last = get.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    pause_s = r.choice((0.0, 0.0, 0.001, 0.01, 0.05, 0.2))
    match r.randrange(10):
        case 0:
            return Case((), "reset", pause_s)
        case 1:
            return Case((request[: r.randrange(len(request))],), "reset", pause_s)
        case 2:
            return Case((get * r.randint(1, 30),), "reset", pause_s)
        case 3:
            return Case((get, get, last), "answer", pause_s)
        case 4:
            return Case((request + get, get), "leave", pause_s)
        case 5:
            return Case((request, request[: r.randrange(len(request))]), "reset", pause_s)
        case 6 | 7:
            return Case((request,), r.choice(("reset", "leave")), pause_s)
        case 8:
            return Case((request.replace(b"\r\nHost", b"\r\nConnection: close\r\nHost", 1),), "answer")
        case _:
            at = r.randrange(len(request))
            return Case((request[:at], request[at:]), "leave", pause_s)
