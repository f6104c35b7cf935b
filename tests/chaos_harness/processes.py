"""The process table of one system, read from /proc: what lives, whatever its parts believe."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Row:
    role: str  # head, scheduler, proxy, standby, replica, other
    pid: int
    started: int  # clock ticks since the boot
    rss: int
    state: str
    replica: str = ""
    node: str = ""
    proxy: str = ""

    def as_event(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v != ""}


def table(root: Path) -> list[Row]:
    """All living processes whose command or environment names a path under `root`; zombies are dead."""
    found: list[Row] = []
    mark = f"{root}/".encode()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                row = _row(int(name), mark)
            except (OSError, ValueError, IndexError):
                continue  # it ended while we looked
            if row:
                found.append(row)
    return found


def _row(pid: int, mark: bytes) -> Row | None:
    folder = f"/proc/{pid}"
    words = Path(folder, "cmdline").read_bytes().split(b"\0")
    # The program that started us may name the folder too: only children of ours are looked at by their command.
    environment = Path(folder, "environ").read_bytes()
    if not words or (mark not in b"\0".join(words) and mark not in environment):
        return None
    if not any(b"headrace" in w or b"part.py" in w for w in words):
        return None
    stat = Path(folder, "stat").read_text().rpartition(")")[2].split()
    if stat[0] in "ZX":
        return None
    env = dict(item.split(b"=", 1) for item in environment.split(b"\0") if b"=" in item)
    replica = env.get(b"HEADRACE_REPLICA_ID", b"").decode()
    flags = dict(w.removeprefix(b"--").split(b"=", 1) for w in words if w.startswith(b"--") and b"=" in w)
    role = "replica" if replica else next((r for r in ("head", "scheduler", "proxy") if r.encode() in words), "other")
    if role == "proxy" and not flags.get(b"proxy_id"):
        role = "standby"  # a spare, or a proxy that was one
    return Row(
        role=role,
        pid=pid,
        started=int(stat[19]),
        rss=int(stat[21]) * _PAGE,
        state=stat[0],
        replica=replica,
        node=Path(os.fsdecode(env[b"HEADRACE_NODE_DIR"])).name if replica else flags.get(b"node_id", b"").decode(),
        proxy=flags.get(b"proxy_id", b"").decode(),
    )
