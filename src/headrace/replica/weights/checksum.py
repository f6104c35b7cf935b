"""Checksums of whole files, as the places that weights come from state them."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BLOCK = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Checksum:
    """`value`: the digest's bytes. `part_bytes`: if not 0, it is the digest of the digests of parts of that size."""

    algorithm: str  # SHA256, SHA1, MD5, CRC32, CRC32C, CRC64NVME
    value: bytes
    part_bytes: int = 0

    def matches(self, path: Path, progress: Callable[[int], None] = lambda n: None) -> bool:
        """Read the file and compare. `progress` is told of bytes read."""
        with path.open("rb") as file:
            if not self.part_bytes:
                return self._digest(file, None, progress) == self.value
            parts: list[bytes] = []
            while file.tell() < path.stat().st_size:
                parts.append(self._digest(file, self.part_bytes, progress))
        whole = _new(self.algorithm)
        whole.update(b"".join(parts))
        return whole.digest() == self.value

    def _digest(self, file: Any, at_most: int | None, progress: Callable[[int], None]) -> bytes:
        h = _new(self.algorithm)
        left = at_most
        while block := file.read(_BLOCK if left is None else min(left, _BLOCK)):
            h.update(block)
            progress(len(block))
            left = None if left is None else left - len(block)
        return h.digest()


def usable(algorithm: str) -> bool:
    """Whether we can compute it here. CRC32C and CRC64NVME need awscrt, which the extra [s3] brings."""
    return _new(algorithm) is not None


def decoded(text: str) -> bytes:
    """base64, as S3 has it; empty if it is not that."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""


class _Crc:
    def __init__(self, update: Callable[[bytes, int], int], size: int) -> None:
        self._update, self._size, self._now = update, size, 0

    def update(self, data: bytes) -> None:
        self._now = self._update(data, self._now)

    def digest(self) -> bytes:
        return self._now.to_bytes(self._size, "big")


def _new(algorithm: str) -> Any:
    match algorithm:
        case "SHA256" | "SHA1":
            return hashlib.new(algorithm.lower(), usedforsecurity=False)
        case "MD5":
            return hashlib.md5(usedforsecurity=False)
        case "CRC32":
            return _Crc(zlib.crc32, 4)
        case "CRC32C" | "CRC64NVME":
            try:
                from awscrt import checksums  # pyright: ignore[reportMissingImports]
            except ImportError:
                return None
            if algorithm == "CRC32C":
                return _Crc(checksums.crc32c, 4)
            return _Crc(checksums.crc64nvme, 8) if hasattr(checksums, "crc64nvme") else None
    return None
