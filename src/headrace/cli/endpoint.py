"""Where a head and its HTTP API are: what the head wrote into its state directory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

DEFAULT_GRPC_PORT = 50052
_EVERY = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "[::]": "[::1]"}


@dataclass(frozen=True, slots=True)
class HeadEndpoint:
    """Contents of <state_dir>/head/endpoint.json; host:port each."""

    http: str
    node: str
    grpc: str
    pid: int
    join: str = ""

    @property
    def url(self) -> str:
        """Base URL of the HTTP API as this machine can call it."""
        return f"http://{callable_address(self.http)}"


def callable_address(address: str) -> str:
    """host:port to connect to where `address` says what is listened on: every address means this machine's own."""
    host, _, port = address.rpartition(":")
    return f"{_EVERY.get(host, host)}:{port}"


def port_of(address: str) -> int:
    """The port of host:port."""
    return int(address.rpartition(":")[2])


def read_endpoint(state_dir: Path) -> HeadEndpoint | None:
    """What the head of this state directory wrote when it last listened; None if there is nothing (whole) to read."""
    try:
        data = json.loads((state_dir / "head" / "endpoint.json").read_text())
        return HeadEndpoint(
            str(data["http"]), str(data["node"]), str(data["grpc"]), int(data["pid"]), str(data.get("join", ""))
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def with_port(address: str, port: int) -> str:
    """`address`, with a port if it has none."""
    bare_ipv6 = address.count(":") > 1 and not address.startswith("[")
    if bare_ipv6:
        return f"[{address}]:{port}"
    return address if ":" in address.rpartition("]")[2] else f"{address}:{port}"
