"""Bodies whose coding is the trouble: charsets, encodings, media types."""

from __future__ import annotations

import gzip
import zlib
from encodings.aliases import aliases

from strangers.bodies import CHAT, MOST, body
from strangers.script import Hostile, Script, Where

PLAIN = "/v1/chat/demo?max_tokens=4"


def _plain(where: Where, charset: str, data: bytes) -> bytes:
    return where.post(PLAIN, data, media=f"text/plain; charset={charset}")


def _every_codec(where: Where) -> Script:
    """One small body for each codec that Python has; large ones would take minutes where all are taken."""
    data = b"zaaaaaaa-" * 2_000
    return Script.of(*(_plain(where, name, data) for name in sorted(set(aliases.values()))))


def _bomb(where: Where, coding: str) -> bytes:
    plain = b'{"model":"demo","messages":[{"role":"user","content":"' + b"a" * 500_000_000 + b'"}]}'
    packer = zlib.compressobj(9, zlib.DEFLATED, 31 if coding == "gzip" else 15)
    packed = packer.compress(plain) + packer.flush()
    return where.post(CHAT, packed, f"Content-Encoding: {coding}")


def _bombs(where: Where) -> Script:
    return Script.of(_bomb(where, "gzip"), _bomb(where, "deflate"))


def _many_members(where: Where) -> Script:
    """400,000 empty members of gzip, one after another."""
    return Script.of(where.post(CHAT, gzip.compress(b"", mtime=0) * 400_000, "Content-Encoding: gzip"))


INPUTS = (
    Hostile("charset-punycode", "a codec of Python's that takes quadratic time, 300 kB",
            lambda w: Script.of(_plain(w, "punycode", b"zaaaaaaa" * 37_500)), quick=True),
    Hostile("charset-idna", "a codec that is none for text, 100 kB",
            lambda w: Script.of(_plain(w, "idna", b"xn--" + b"zaaaaaaa" * 12_500))),
    Hostile("charset-undefined", "a codec that always fails", lambda w: Script.of(_plain(w, "undefined", b"a" * 100))),
    Hostile("charset-every", "each codec that Python knows, 18 kB", _every_codec),
    Hostile("charset-utf7", "8 MB of UTF-7", lambda w: Script.of(_plain(w, "utf-7", b"+AGE-" * (MOST // 5 - 100)))),
    Hostile("charset-2231", "a charset in the pieces of RFC 2231, 60 KB of them", lambda w: Script.of(w.post(
        PLAIN, b"hello", media="text/plain" + "".join(f"; charset*{i}*=a" for i in range(3_500))))),
    Hostile("media-parameters", "a Content-Type with 60 KB of parameters", lambda w: Script.of(w.post(
        PLAIN, b"hello", media="text/plain" + '; a="\\""' * 6_500))),
    Hostile("gzip-bomb", "half a gigabyte packed into half a megabyte", _bombs, quick=True),
    Hostile("gzip-members", "400,000 empty gzip members", _many_members),
    Hostile("gzip-false", "8 MB that claim to be gzip", lambda w: Script.of(w.post(
        CHAT, b"\x1f\x8b\x08" + body() + b"a" * (MOST - 1000), "Content-Encoding: gzip"))),
)  # fmt: skip
