"""What web pages may have their readers' browsers do here: by default nothing, as far as no API key decides."""

from __future__ import annotations

from typing import NamedTuple

from headrace.core.origins import foreign, is_local, name_of
from headrace.errors import Forbidden, HeadraceError
from headrace.rpc.finding import is_loopback
from headrace.settings import ProxySettings

Headers = list[tuple[bytes, bytes]]

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_METHODS = b"GET, HEAD, POST"
_EXPOSED = b"x-request-id, x-headrace-replica, x-headrace-route-reason, retry-after"
_USUAL = b"authorization, content-type, last-event-id, x-request-id, x-request-timeout, x-session-id"
_KEEP_S = b"600"
_MOST = 4096  # of the names of headers that a page asks for


class Misdirected(HeadraceError):
    kind, status, type, default_code = "misdirected", 421, "invalid_request_error", "host_not_allowed"


class Asker(NamedTuple):
    """What a request's headers say of where it comes from."""

    host: bytes = b""
    origin: bytes | None = None
    fetch_site: bytes | None = None


class Browsers:
    """Pages of other names and addresses than the request is for, and names that this server was not given."""

    def __init__(self, settings: ProxySettings) -> None:
        self._open = settings.api_keys_file is None  # then a page needs nothing that its reader has not
        # Who listens beyond this machine is called by names that we cannot know.
        self._names = (
            frozenset(name_of(h) for h in settings.allowed_hosts)
            if settings.allowed_hosts or (self._open and is_loopback(settings.http_host))
            else None
        )
        self._origins = frozenset(settings.cors_origins)

    def refusal(self, method: str, asker: Asker) -> HeadraceError | None:
        """Why a request is not let in; None if it is."""
        host = asker.host.decode("latin-1")
        if self._names is not None and host:
            name = name_of(host)
            if not is_local(name) and name not in self._names:
                return Misdirected(
                    f"This server is not known as {name[:100]!r}: call it as localhost, or start it with "
                    "--allowed_hosts and that name."
                )
        if not self._open or method in _SAFE:
            return None
        if foreign(_text(asker.origin), _text(asker.fetch_site), host, self._origins):
            who = _text(asker.origin) or "another site"
            return Forbidden(
                f"A web page of {who[:100]!r} may not use this server; if it is to, start it with --cors_origins.",
                code="cross_site",
            )
        return None

    def preflight(self, method: str, asker: Asker, headers: Headers) -> Headers | HeadraceError | None:
        """What answers a browser that asks before it sends a page's request (204); None if this is no such question."""
        given = dict(headers)
        if method != "OPTIONS" or asker.origin is None or b"access-control-request-method" not in given:
            return None
        if not self._allowed(asker.origin):
            return Forbidden(
                f"A web page of {asker.origin.decode('latin-1')[:100]!r} may not use this server; if it is to, start it"
                " with --cors_origins.",
                code="cross_site",
            )
        wanted = given.get(b"access-control-request-headers", b"")
        answer = [
            (b"access-control-allow-methods", _METHODS),
            (b"access-control-allow-headers", wanted if 0 < len(wanted) <= _MOST else _USUAL),
            (b"access-control-max-age", _KEEP_S),
        ]
        if given.get(b"access-control-request-private-network") == b"true":
            answer.append((b"access-control-allow-private-network", b"true"))
        return answer

    def headers(self, asker: Asker) -> Headers:
        """What every answer has, so that a page that may read it can."""
        if not self._origins:
            return []
        if asker.origin is None or not self._allowed(asker.origin):
            return [(b"vary", b"origin")]
        return [
            (b"vary", b"origin"),
            (b"access-control-allow-origin", b"*" if "*" in self._origins else asker.origin),
            (b"access-control-expose-headers", _EXPOSED),
        ]

    def _allowed(self, origin: bytes) -> bool:
        return "*" in self._origins or origin.decode("latin-1") in self._origins


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
