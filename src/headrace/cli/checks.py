"""What `headrace doctor` looks at: each check gives findings and changes nothing."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil

from headrace import engines_here
from headrace.cli.endpoint import read_endpoint
from headrace.cli.leftovers import recorded
from headrace.cli.words import size
from headrace.core.state import Goal, State
from headrace.errors import UserError
from headrace.head import salvage
from headrace.head.state_file import is_hot
from headrace.lock import holder
from headrace.node.conditions import NODE_DIR_ENV, REPLICA_ENV
from headrace.node.epoch import EpochFile
from headrace.node.folder import ReplicaFolder
from headrace.process import ProcessRecord, processes_with_env
from headrace.rpc.authority import Authority, has_authority

_FULL_BYTES = {"state": 16 * 2**20, "cache": 2**30}
_TIGHT_BYTES = {"state": 256 * 2**20, "cache": 10 * 2**30}


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's. `todo`: what to do about it, a sentence without its full stop."""

    level: Level
    about: str
    found: str
    todo: str = ""


def state_file_of(state_dir: Path) -> Path:
    return state_dir / "head" / "state.db"


def folder(state_dir: Path) -> Finding:
    if not state_dir.exists():
        return Finding(Level.OK, "state folder", f"{state_dir} is not there yet; nothing has run with it")
    if not os.access(state_dir, os.W_OK | os.X_OK):
        return Finding(
            Level.PROBLEM, "state folder", f"{state_dir} cannot be written", "give this user the right to it"
        )
    return Finding(Level.OK, "state folder", str(state_dir))


def authority(state_dir: Path) -> Finding:
    """The certificate authority, which is made by the first start of a part and not by looking."""
    about = "certificates"
    if not has_authority(state_dir):
        return Finding(Level.OK, about, "there is no authority yet")
    try:
        found = Authority.open(state_dir)
    except UserError as e:
        wrong, _, todo = e.message.partition(": ")
        return Finding(Level.PROBLEM, about, _clause(wrong), _clause(todo))
    return Finding(Level.OK, about, f"the authority is whole: sha256:{found.fingerprint}")


def head(state_dir: Path) -> Finding:
    pid = holder(state_dir / "head" / "lock")
    endpoint = read_endpoint(state_dir)
    if pid is not None:
        where = f", gRPC on {endpoint.grpc}, HTTP on {endpoint.http}" if endpoint else ", and does not listen yet"
        return Finding(Level.OK, "head", f"runs (pid {pid}){where}")
    proxies = [r.pid for r in recorded(state_dir) if r.alive() and r.pid in _proxies(state_dir)]
    if proxies:
        return Finding(
            Level.WARNING, "head", f"does not run; its proxies go on serving (pid {_list(proxies)})",
            "start it again: it takes them over",
        )  # fmt: skip
    return Finding(Level.OK, "head", "does not run" + ("; the last one did not end in order" if endpoint else ""))


def state_file(state_dir: Path) -> Finding:
    path, about = state_file_of(state_dir), "state file"
    live = holder(state_dir / "head" / "lock") is not None
    if not path.exists():
        if path.with_name(path.name + "-wal").exists() or is_hot(path.with_name(path.name + "-journal")):
            found = f"{path} is not there, and an unfinished commit of it is"
            return Finding(Level.PROBLEM, about, found, "restore it from a backup, or move the rest away as well")
        return Finding(Level.OK, about, "there is none yet")
    try:
        state = salvage.examine(path, live)
    except UserError as e:
        found, damaged, _ = e.message.partition(". Headrace does not guess")
        todo = f"headrace doctor --repair --state_dir={state_dir}" if damaged else ""
        return Finding(Level.PROBLEM, about, _clause(found), f"stop the head, then {todo}" if live and todo else todo)
    return Finding(Level.OK, about, f"is whole: {contents(state)}")


def contents(state: State) -> str:
    running = sum(i.goal is Goal.RUN for i in state.intents.values())
    counts = ((len(state.deployments), "deployment"), (running, "replica"), (len(state.entries), "added model"))
    return ", ".join(f"{n} {what}{'' if n == 1 else 's'}" for n, what in counts)


def up_lock(state_dir: Path) -> Finding | None:
    """None if no `headrace up` holds or has held the folder."""
    path = state_dir / "up.lock"
    if not path.exists():
        return None
    if holder(path) is None:
        return Finding(Level.OK, "headrace up", "does not run")
    record = None
    with suppress(OSError, ValueError):
        record = ProcessRecord.from_json(path.read_text())
    if record and record.alive():
        return Finding(Level.OK, "headrace up", f"runs (pid {record.pid})")
    return Finding(
        Level.WARNING, "headrace up", "has ended, and parts of it still hold its lock",
        "wait some seconds; if it stays so, end the head and the scheduler that are told here",
    )  # fmt: skip


def nodes(state_dir: Path) -> Iterator[Finding]:
    marked = [(r, env) for r, env in processes_with_env(REPLICA_ENV) if r.alive()]
    with suppress(FileNotFoundError):
        for node_dir in sorted(p for p in (state_dir / "nodes").iterdir() if p.is_dir()):
            mine = {r.pid: env[REPLICA_ENV] for r, env in marked if env.get(NODE_DIR_ENV) == str(node_dir.absolute())}
            yield _node(node_dir, mine)


def _node(node_dir: Path, alive: Mapping[int, str]) -> Finding:
    about = f"node {node_dir.name}"
    try:
        EpochFile(node_dir / "epoch")
    except UserError as e:
        return Finding(Level.PROBLEM, about, _clause(e.message), f"delete {node_dir / 'epoch'} if only one head runs")
    unreadable = [
        p.name
        for p in sorted(node_dir.glob("replicas/*"))
        if (p / "process.json").exists() and ReplicaFolder(p).life() is None
    ]
    pid = holder(node_dir / "lock")
    count = len(set(alive.values()))
    replicas = "1 replica runs" if count == 1 else f"{count} replicas run"
    if pid is not None:
        return Finding(Level.OK, about, f"its scheduler runs (pid {pid}); {replicas}")
    if alive:
        told = _list([f"{name} (pid {pid})" for pid, name in sorted(alive.items())])
        return Finding(
            Level.WARNING, about, f"its scheduler does not run, and its replicas do: {told}",
            "start it again: it takes over those it knows, and ends the others",
        )  # fmt: skip
    if unreadable:
        found = f"process.json of {_list(unreadable)} is damaged or of an earlier boot; no process of theirs lives"
        return Finding(Level.OK, about, found)
    return Finding(Level.OK, about, "its scheduler does not run, and no replica does")


def room(where: Path, what: str) -> Finding:
    """what: "state" or "cache"."""
    about = f"disk of the {what}"
    there = where
    while not there.exists():
        there = there.parent
    try:
        free = shutil.disk_usage(there).free
        inodes = os.statvfs(there).f_favail
    except OSError as e:
        return Finding(
            Level.PROBLEM, about, f"{there} cannot be looked at: {e.strerror}", "mount it, or choose another"
        )
    if free >= _FULL_BYTES[what] and inodes and os.access(there, os.W_OK):
        try:
            with tempfile.TemporaryFile(dir=there) as f:
                f.write(bytes(65536))
                f.flush()
        except OSError as e:
            return Finding(Level.PROBLEM, about, f"{there} takes no new file: {e.strerror}", "make it writable")
    found = f"{size(free)} free" + ("" if inodes else ", and room for no further file")
    if free < _FULL_BYTES[what] or not inodes:
        return Finding(Level.PROBLEM, about, found, f"free room on the disk of {there}")
    level = Level.WARNING if free < _TIGHT_BYTES[what] else Level.OK
    return Finding(level, about, found, f"free some on the disk of {there}" if level is Level.WARNING else "")


def ports(state_dir: Path, wanted: Mapping[str, int]) -> Iterator[Finding]:
    """Whether a head could listen on `wanted` ports by option name, unless one does already."""
    if holder(state_dir / "head" / "lock") is not None:
        return
    for name, port in wanted.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                yield Finding(Level.OK, f"port {port}", f"is free for --{name}")
                continue
            except OSError:
                pass
        pids = _listeners(port)
        if pids and pids <= _proxies(state_dir):
            yield Finding(Level.OK, f"port {port}", "is held by our own proxies, which the next head takes over")
            continue
        who = f" by pid {_list(sorted(pids))}" if pids else " by a process that this user cannot see"
        yield Finding(Level.PROBLEM, f"port {port}", f"is in use{who}", f"end that, or choose another with --{name}")


def engines() -> Finding:
    found = ", ".join(e for e in engines_here.installed() if e != "simulated")
    if engines_here.vllm_too_old():
        old, _, todo = engines_here.how_to_install("vllm").partition(". ")
        return Finding(Level.WARNING, "engines", f"{found}; {old}" if found else old, _clause(todo))
    if not found:
        todo = "for CPUs: pip install 'headrace[cpu]'; for GPUs: pip install 'headrace[vllm]'"
        return Finding(Level.WARNING, "engines", "none is installed but the simulated one", todo)
    return Finding(Level.OK, "engines", found)


def _proxies(state_dir: Path) -> set[int]:
    found: set[int] = set()
    for path in state_dir.glob("head/proxies/*.json"):
        with suppress(OSError, ValueError):
            found.add(ProcessRecord.from_json(path.read_text()).pid)
    return found


def _listeners(port: int) -> set[int]:
    with suppress(psutil.Error, OSError):
        found = psutil.net_connections("tcp")
        return {c.pid for c in found if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port and c.pid}
    return set()


def _list(things: list[int] | list[str]) -> str:
    told = ", ".join(map(str, things[:10]))
    return f"{told} and {len(things) - 10} more" if len(things) > 10 else told


def _clause(sentence: str) -> str:
    return sentence.rstrip(".")
