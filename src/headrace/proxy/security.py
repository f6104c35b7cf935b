"""Who may call: API keys, and the rule that an open port needs them."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from headrace.errors import Unauthorized, UserError
from headrace.rpc.channel import is_loopback
from headrace.settings import ProxySettings

OPEN_PATHS = frozenset({"/health", "/ready"})
_HASHED = "sha256:"


class Keys:
    """API keys, held as SHA-256. The file has one per line: the key, or sha256: and its digest in hex; # comments."""

    def __init__(self, digests: Iterable[bytes]) -> None:
        self._digests = tuple(digests)

    @staticmethod
    def read(path: Path) -> Keys:
        """UserError if the file cannot be read or holds no key."""
        try:
            lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"Cannot read the API keys file {path}: {e}.") from e
        digests: list[bytes] = []
        for line in lines:
            if line.startswith(_HASHED):
                try:
                    digest = bytes.fromhex(line.removeprefix(_HASHED))
                except ValueError:
                    digest = b""
                if len(digest) != hashlib.sha256().digest_size:
                    raise UserError(f"A line of {path} begins with {_HASHED} but is no SHA-256 digest in hex.")
                digests.append(digest)
            elif line and not line.startswith("#"):
                digests.append(hashlib.sha256(line.encode()).digest())
        if not digests:
            raise UserError(f"The API keys file {path} holds no key: write one per line.")
        return Keys(digests)

    def check(self, authorization: bytes) -> None:
        """Unauthorized unless the header's value is "Bearer" and one of the keys. Every key is compared, in full."""
        scheme, _, token = authorization.partition(b" ")
        given = hashlib.sha256(token.strip()).digest()
        known = False
        for digest in self._digests:
            known |= hmac.compare_digest(given, digest)
        if scheme.lower() != b"bearer" or not known:
            raise Unauthorized(
                "No valid API key: send it as 'Authorization: Bearer KEY'."
                if not authorization
                else "The API key is not valid."
            )


def check_bind(settings: ProxySettings) -> None:
    """UserError if the port would be open to others without a key."""
    if settings.api_keys_file or settings.allow_insecure or is_loopback(settings.http_host):
        return
    raise UserError(
        f"Refusing to listen on {settings.http_host} without API keys: give --api_keys_file, "
        "or --allow_insecure if others may call without a key."
    )
