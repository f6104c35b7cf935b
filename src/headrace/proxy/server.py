"""uvicorn, run from code: our socket, our signals, our connections."""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from headrace.errors import UserError
from headrace.proxy.clients import Clients
from headrace.proxy.protocol import ClientProtocol

BACKLOG = 4096
KEEP_ALIVE_S = 75
UNSENT_BYTES = 64 * 1024
"""What the kernel holds of an answer beside what is on its way; it would take megabytes of what nobody reads."""


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: ours decide."""

    clients: Clients

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def new_server(app: Any, clients: Clients) -> Server:
    """A server for an ASGI app; `serve(sockets=[…])` runs it until `should_exit`."""
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    protocol: Any = functools.partial(ClientProtocol, clients)
    server = Server(
        uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            proxy_headers=False,  # no forwarded header is to be trusted
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            backlog=BACKLOG,
        )
    )
    server.clients = clients
    return server


def bind(host: str, port: int) -> socket.socket:
    """A socket for an address that other proxies may share (SO_REUSEPORT), which does not listen yet.

    UserError if the address cannot be had.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, proto)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # Accepted connections inherit it: a token must not wait for the next one.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
            sock.bind(address)
        except OSError:
            sock.close()
            raise
    except OSError as e:
        raise UserError(
            f"Cannot listen on {host}:{port} ({e.strerror or e}): choose another with --http_host and --http_port."
        ) from e
    sock.setblocking(False)
    return sock
