"""Ends what is left of a system whose head or scheduler could not: its proxies and replicas."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

from headrace.node.conditions import NODE_DIR_ENV, REPLICA_ENV
from headrace.process import Child, ProcessRecord, processes_with_env


def recorded(state_dir: Path) -> list[ProcessRecord]:
    """The processes that a head and its schedulers wrote down in a state directory. They may have ended since."""
    paths = [*state_dir.glob("head/proxies/*.json"), *state_dir.glob("nodes/*/replicas/*/process.json")]
    return [record for path in sorted(paths) if (record := _read(path))]


def _read(path: Path) -> ProcessRecord | None:
    try:
        data = json.loads(path.read_text())
        # The record may be the file, or a part of it beside restarts and the like.
        inner = data.get("process") or data.get("record") or data
        return ProcessRecord.from_json(json.dumps(inner))
    except (OSError, ValueError, AttributeError):
        return None


def marked(state_dir: Path) -> list[ProcessRecord]:
    """Processes of replicas that were started under a state directory, wherever they have gone since."""
    nodes = state_dir / "nodes"
    return [
        record for record, env in processes_with_env(REPLICA_ENV) if nodes in Path(env.get(NODE_DIR_ENV, "/")).parents
    ]


async def end_leftovers(state_dir: Path, say: Callable[[str], None], term_s: float = 1.0) -> None:
    """End every process of this state directory that still runs, with its group, all at once."""

    async def end(record: ProcessRecord) -> None:
        try:
            await Child(record).stop(term_s, kill_s=1.0)
        except TimeoutError as e:
            say(f"{e}.")

    async with asyncio.TaskGroup() as group:
        for record in {*recorded(state_dir), *marked(state_dir)}:
            group.create_task(end(record))
