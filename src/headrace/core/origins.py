"""Where a web page's request comes from, by what its browser says of it. Names and origins as they stand in headers."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection

_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._~!$&'()*+,;=%-]{1,255})(?::[0-9]{0,5})?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@,]+")
_PORTS = {"http": "80", "https": "443"}


def valid_host(value: bytes) -> bool:
    """Whether it can be the value of a Host header: a name or an address, and perhaps a port."""
    return _HOST.fullmatch(value) is not None


def name_of(host: str) -> str:
    """The name or address in a Host header: in lower case, without port, brackets and a last dot."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def is_local(name: str) -> bool:
    """Whether a name means the machine itself, whoever asks: no name server can give it to somebody else."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def valid_origin(value: str) -> bool:
    """Whether it can be an origin: scheme://host or scheme://host:port, with nothing behind it."""
    return _ORIGIN.fullmatch(value) is not None


def same_origin(origin: str, host: str) -> bool:
    """Whether a page of `origin` asks where it came from itself. Whether by http or https, who ends TLS knows."""
    scheme, there, authority = origin.lower().partition("://")
    if not there:
        return False  # "null"
    default = _PORTS.get(scheme, "")
    return default != "" and _with_port(authority, default) == _with_port(host.lower(), default)


def _with_port(authority: str, default: str) -> tuple[str, str]:
    after = authority.rpartition("]")[2] if authority.startswith("[") else authority
    return name_of(authority), after.partition(":")[2] or default


def foreign(origin: str | None, fetch_site: str | None, host: str, allowed: Collection[str]) -> bool:
    """Whether a page that is neither of this host nor of an `allowed` origin has its reader's browser ask this.

    What says nothing of where it comes from is no browser, or one that is asked by its user.
    """
    if origin is not None:
        return origin not in allowed and "*" not in allowed and not same_origin(origin, host)
    return fetch_site in ("cross-site", "same-site")


def unusable(origins: Collection[str], keys: bool) -> str:
    """Why these cannot be the origins of pages that may use the server, in a sentence; "" if they can.

    keys: whether API keys protect it.
    """
    for origin in origins:
        if origin == "*" and not keys:
            return (
                "--cors_origins=* would let every web page use the models through its readers' browsers: give"
                " --api_keys_file too, or name the origins."
            )
        if origin != "*" and not valid_origin(origin):
            return f"--cors_origins: {origin!r} is no origin; write http://name:port, without a path."
    return ""
