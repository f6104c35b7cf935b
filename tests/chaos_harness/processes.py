"""The process table of one system, read from /proc: what lives, whatever its parts believe."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Row:
    role: str  # head, scheduler, proxy, standby, replica, child (of a replica), other
    pid: int
    started: int  # clock ticks since the boot
    rss: int
    state: str
    replica: str = ""
    node: str = ""
    proxy: str = ""
    leader: int = 0  # of a child: the replica's process, which may be gone

    def as_event(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v not in ("", 0) or k == "rss"}


class Table:
    """All living processes whose command or environment names a path under `root`; zombies are dead.

    An engine's own processes may say neither. They are known by their session, which is their replica's.
    """

    def __init__(self, root: Path) -> None:
        self._mark = f"{root}/".encode()
        self._replicas: dict[int, Row] = {}  # that were seen, by process

    def rows(self) -> list[Row]:
        found: list[Row] = []
        others: list[int] = []
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            if pid != os.getpid():
                try:
                    row = _row(pid, self._mark)
                except (OSError, ValueError, IndexError):
                    continue  # it ended while we looked
                found += [row] if row else []
                others += [] if row else [pid]
        self._replicas |= {r.pid: r for r in found if r.role == "replica"}
        return found + [row for pid in others if (row := self._child(pid))]

    def _child(self, pid: int) -> Row | None:
        try:
            stat = _stat(pid)
        except (OSError, IndexError):
            return None
        leader = self._replicas.get(int(stat[3]))
        if leader is None or stat[0] in "ZX":
            return None
        return replace(
            leader, role="child", pid=pid, started=int(stat[19]), rss=int(stat[21]) * _PAGE, state=stat[0],
            leader=leader.pid,
        )  # fmt: skip


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _row(pid: int, mark: bytes) -> Row | None:
    folder = f"/proc/{pid}"
    words = Path(folder, "cmdline").read_bytes().split(b"\0")
    # The program that started us may name the folder too: only children of ours are looked at by their command.
    environment = Path(folder, "environ").read_bytes()
    if not words or (mark not in b"\0".join(words) and mark not in environment):
        return None
    if not any(b"headrace" in w or b"part.py" in w for w in words):
        return None
    stat = _stat(pid)
    if stat[0] in "ZX":
        return None
    env = dict(item.split(b"=", 1) for item in environment.split(b"\0") if b"=" in item)
    replica = env.get(b"HEADRACE_REPLICA_ID", b"").decode()
    flags = dict(w.removeprefix(b"--").split(b"=", 1) for w in words if w.startswith(b"--") and b"=" in w)
    role = "replica" if replica else next((r for r in ("head", "scheduler", "proxy") if r.encode() in words), "other")
    if role == "proxy" and not flags.get(b"proxy_id"):
        role = "standby"  # a spare, or a proxy that was one
    leader = int(stat[3])
    if role == "replica" and leader != pid:
        role = "child"
    return Row(
        role=role,
        pid=pid,
        started=int(stat[19]),
        rss=int(stat[21]) * _PAGE,
        state=stat[0],
        replica=replica,
        node=Path(os.fsdecode(env[b"HEADRACE_NODE_DIR"])).name if replica else flags.get(b"node_id", b"").decode(),
        proxy=flags.get(b"proxy_id", b"").decode(),
        leader=leader if role == "child" else 0,
    )
