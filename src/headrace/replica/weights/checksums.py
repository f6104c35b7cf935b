"""The checksums that S3 keeps of an object, and whether a file has them."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

_CHUNK = 4 * 1024 * 1024


def expected(head: Mapping[str, Any], etag: str, bucket: str) -> tuple[str, bytes] | None:
    """The best checksum of a whole object that the answer to HeadObject tells, as (algorithm, digest); None if none.

    That of an object that was uploaded in parts is often one of its parts' checksums ("COMPOSITE"): of no use here.
    """
    if head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT":
        for name in ("SHA256", "CRC64NVME", "CRC32C", "CRC32", "SHA1"):
            value = head.get(f"Checksum{name}")
            if value and "-" not in value:
                return name, base64.b64decode(value)
    # Encrypted with a customer's key, or in a directory bucket, an ETag is something else.
    plain = head.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in head
    if plain and not bucket.endswith("--x-s3") and len(etag) == 32 and all(c in "0123456789abcdef" for c in etag):
        return "MD5", bytes.fromhex(etag)
    return None


def of_file(algorithm: str, path: Path) -> bytes:
    """The digest of a file, as S3 would have it."""
    with path.open("rb") as file:
        return _digest(algorithm, iter(lambda: file.read(_CHUNK), b""))


def _digest(algorithm: str, chunks: Iterable[bytes]) -> bytes:
    if algorithm in ("SHA256", "SHA1", "MD5"):
        hashed = hashlib.new(algorithm.lower(), usedforsecurity=False)
        for chunk in chunks:
            hashed.update(chunk)
        return hashed.digest()
    step, length = _crc(algorithm)
    value = 0
    for chunk in chunks:
        value = step(chunk, value)
    return value.to_bytes(length, "big")


def _crc(algorithm: str) -> tuple[Callable[[bytes, int], int], int]:
    if algorithm == "CRC32":
        return zlib.crc32, 4
    from awscrt import checksums  # pyright: ignore[reportMissingImports]

    return (checksums.crc32c, 4) if algorithm == "CRC32C" else (checksums.crc64nvme, 8)
