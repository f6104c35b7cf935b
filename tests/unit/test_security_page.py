"""SECURITY.md says what the code says, where that can be compared."""

from __future__ import annotations

import re
from pathlib import Path

from headrace.cli.options import FLAGS
from headrace.proxy.security import OPEN_PATHS
from headrace.settings import JOIN_PORT, HeadSettings

TEXT = (Path(__file__).resolve().parents[2] / "SECURITY.md").read_text()


def test_ports_and_open_paths() -> None:
    head = HeadSettings()
    for port in (head.http_port, head.node_port, head.grpc_port, JOIN_PORT):
        assert f" {port} |" in TEXT
    for path in OPEN_PATHS:
        assert f"`{path}`" in TEXT


def test_every_flag_that_it_names_is_one() -> None:
    of_commands = {"trust_remote_code", "revision", "revoke", "version"}
    named = set(re.findall(r"`[^`]*--([a-z_]+)", TEXT))
    assert {"http_port", "api_keys_file", "allow_insecure"} <= named
    assert named - of_commands - {f.name or name for name, f in FLAGS.items()} <= {"cors_origins", "on_demand"}
