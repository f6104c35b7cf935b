"""Who may call: API keys, and the rule that an open port needs them."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from headrace.core.origins import unusable
from headrace.errors import Unauthorized, UserError
from headrace.proxy.ticket import PRIORITIES, Caller
from headrace.rpc.finding import is_loopback
from headrace.settings import ProxySettings

log = structlog.get_logger()

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS_READ = stat.S_IRGRP | stat.S_IROTH
OPEN_PATHS = frozenset({"/", "/health", "/ready"})
_HASHED = "sha256:"
_SETTINGS = ("name", "weight", "priority", "max_streams", "models")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Keys:
    """API keys, held as SHA-256, and whose they are.

    The file has one per line: the key, or sha256: and its digest in hex, then settings as name=value; # comments. Keys
    of one name are one caller, so that a key can be replaced while the old one is still in use.
    """

    def __init__(self, callers: Mapping[bytes, Caller]) -> None:
        self._callers = dict(callers)

    @staticmethod
    def read(path: Path) -> Keys:
        """UserError if the file cannot be read, holds no key, a line of it is wrong, or others may write to it."""
        try:
            with path.open(encoding="utf-8") as file:
                mode = os.fstat(file.fileno()).st_mode
                lines = [line.strip() for line in file.read().splitlines()]
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"Cannot read the API keys file {path}: {e}.") from e
        if mode & _OTHERS_WRITE:
            raise UserError(
                f"Others than its owner may write to the API keys file {path}, and so give themselves a key: "
                f"chmod go-w {path}"
            )
        callers: dict[bytes, Caller] = {}
        named: dict[str, Caller] = {}
        for number, line in enumerate(lines, 1):
            if not line or line.startswith("#"):
                continue
            where = f"Line {number} of {path}"
            key, *settings = line.split()
            digest = _digest(key, where)
            caller = _caller(settings, f"key-{digest.hex()[:8]}", where)
            if named.setdefault(caller.name, caller) != caller:
                raise UserError(f"{where} gives {caller.name!r} other settings than a line before it does.")
            callers[digest] = caller
        if not callers:
            raise UserError(f"The API keys file {path} holds no key: write one per line.")
        if mode & _OTHERS_READ and not all(li.startswith((_HASHED, "#")) for li in lines if li):
            log.warning("api_keys_readable", path=str(path), hint=f"chmod go-r {path}, or write {_HASHED} digests")
        return Keys(callers)

    def check(self, authorization: bytes) -> Caller:
        """Who calls. Unauthorized unless the header's value is "Bearer" and one of the keys.

        Every key is compared, in full.
        """
        scheme, _, token = authorization.partition(b" ")
        given = hashlib.sha256(token.strip()).digest()
        found: Caller | None = None
        for digest, caller in self._callers.items():
            if hmac.compare_digest(given, digest):
                found = caller
        if scheme.lower() != b"bearer" or found is None:
            raise Unauthorized(
                "No valid API key: send it as 'Authorization: Bearer KEY'."
                if not authorization
                else "The API key is not valid."
            )
        return found


def _digest(key: str, where: str) -> bytes:
    if not key.startswith(_HASHED):
        return hashlib.sha256(key.encode()).digest()
    try:
        digest = bytes.fromhex(key.removeprefix(_HASHED))
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise UserError(f"{where} begins with {_HASHED} but is no SHA-256 digest in hex.")
    return digest


def _caller(settings: Sequence[str], name: str, where: str) -> Caller:
    given: dict[str, str] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if key not in _SETTINGS or not equals or key in given:
            there = ", ".join(_SETTINGS)
            raise UserError(f"{where}: {setting[:40]!r} is no setting of a key; there are {there}, as name=value.")
        given[key] = value
    name = given.get("name", name)
    if not _NAME.fullmatch(name):
        raise UserError(f"{where}: a name has up to 64 letters, digits and ._- only.")

    def number(key: str, kind: type[int] | type[float], default: float, least: float, most: float) -> Any:
        text = given.get(key)
        try:
            value = default if text is None else kind(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise UserError(f"{where}: {key} must be a number from {least:g} to {most:g}, not {text!r}.")
        return value

    return Caller(
        name,
        weight=number("weight", float, 1.0, 0.01, 1000),
        priority=number("priority", int, 0, *PRIORITIES),
        max_streams=number("max_streams", int, 0, 0, 10**6),
        models=frozenset(filter(None, given["models"].split(","))) if "models" in given else None,
    )


def check_bind(settings: ProxySettings) -> None:
    """UserError if the port would be open to others, or to every web page, without a key."""
    if why := unusable(settings.cors_origins, settings.api_keys_file is not None):
        raise UserError(why)
    if settings.api_keys_file or settings.allow_insecure or is_loopback(settings.http_host):
        return
    raise UserError(
        f"Refusing to listen on {settings.http_host} without API keys: give --api_keys_file, "
        "or --allow_insecure if others may call without a key."
    )
