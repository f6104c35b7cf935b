"""The port that all HTTP proxies share, kept for them while none of them runs."""

from __future__ import annotations

import errno
import socket

from headrace.errors import UserError


class HttpPort:
    """A bound socket that never listens: no connection comes to it, and nobody else can take the port meanwhile."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.port: int = sock.getsockname()[1]

    def close(self) -> None:
        self._socket.close()


def reserve(host: str, port: int, shared: bool) -> HttpPort:
    """Reserve host:port (0: a free one) for processes of this user. UserError if it is not to be had.

    shared: proxies of ours listen there already. Otherwise nobody may: one that shares the port (SO_REUSEPORT) would
    get some of our requests.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as e:
        raise UserError(f"Cannot listen on {host!r}: {e.strerror}; choose another with --http_host.") from e
    try:
        if port and not shared:
            with socket.socket(family, kind, protocol) as probe:
                # Connections that have just ended (TIME_WAIT) are no hindrance, a listener is.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(address)
            return HttpPort(sock)
        except BaseException:
            sock.close()
            raise
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            raise UserError(f"Port {port} is in use; choose another with --http_port.") from e
        if e.errno == errno.EACCES:
            raise UserError(f"Port {port} needs more rights than we have; choose another with --http_port.") from e
        raise UserError(f"Cannot listen on {host}:{port}: {e.strerror}; see --http_host and --http_port.") from e
