"""Bodies that come compressed (Content-Encoding), unpacked piece by piece, so that no small one becomes a huge one."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from headrace.errors import InvalidRequest, UnsupportedMedia

_PIECE = 128 * 1024
_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS


class Unpack:
    """One body, as its pieces come."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._first = b""
        self._inflate = zlib.decompressobj(_GZIP) if name == "gzip" else None

    @staticmethod
    def of(encoding: bytes | None) -> Unpack | None:
        """What unpacks a body of this Content-Encoding; None if it is not packed. UnsupportedMedia if it is unknown."""
        name = (encoding or b"").decode("latin-1").strip().lower()
        if name in ("", "identity"):
            return None
        if name in ("gzip", "x-gzip", "deflate"):
            return Unpack(name.removeprefix("x-"))
        raise UnsupportedMedia(
            f"A body with the Content-Encoding {name[:40]} is not taken: send it as gzip, as deflate, or as it is."
        )

    def add(self, data: bytes, last: bool) -> Iterator[bytes]:
        """What `data` becomes, in pieces of bounded size. InvalidRequest if it is not so packed, or cut short."""
        if self._inflate is None:
            self._first += data
            if len(self._first) < 2 and not last:
                return
            data, head = self._first, self._first[:2]
            # "deflate" is zlib's format by the standard, but some send the bare one.
            zlibs = len(head) == 2 and head[0] & 15 == 8 and (head[0] << 8 | head[1]) % 31 == 0
            self._inflate = zlib.decompressobj(_ZLIB if zlibs else _RAW)
        inflate = self._inflate
        try:
            whole = False
            while not (whole or inflate.eof):
                part = inflate.decompress(data, _PIECE)
                data = inflate.unconsumed_tail
                whole = not data and len(part) < _PIECE
                if part:
                    yield part
        except zlib.error as e:
            raise InvalidRequest(f"The body is not {self._name}, as its Content-Encoding says.") from e
        if inflate.unused_data or data:
            raise InvalidRequest(f"Something follows the {self._name} data of the body.")
        if last and not inflate.eof:
            raise InvalidRequest(f"The {self._name} data of the body is cut short.")
