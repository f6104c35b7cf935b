"""Makes a store and commits STEPS one after another: again and again, each time in a child of its own.

die_at_syscall.c kills the first child at its first call that changes the file, the next at the second, until one comes
to its end. A line for each: its wait status, and how many steps were acknowledged.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from headrace.core.state import Change, DropDeployment, PutDeployment
from headrace.core.types import Deployment, ModelSpec, Resources
from headrace.head.store import SqliteStore


def _put(name: str, n: int, text: int = 0) -> Change:
    model = ModelSpec(f"/m{n}", chat_template="x" * text)
    return PutDeployment(Deployment(name, n, model, Resources(1.0), 1, 1, 1, 7))


# Rows come, change, grow over pages, go; several at once.
STEPS: tuple[tuple[Change, ...], ...] = (
    (_put("a", 1), _put("b", 1)),
    (_put("a", 2, 9000), _put("c", 1)),
    (DropDeployment("b"), _put("a", 3)),
    (DropDeployment("a"),),
)


async def main(path: Path, told: int) -> None:
    store = await SqliteStore.open(path)
    for n, changes in enumerate(STEPS):
        await store.commit(changes)
        os.write(told, str(n).encode())
    await store.close()


def one(path: Path, at: int) -> tuple[int, int]:
    """The wait status of a child that dies at its call number `at`, and how many steps were acknowledged to it."""
    path.parent.mkdir(parents=True)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.environ["DIE_AT"] = str(at)
        asyncio.run(main(path, writing))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as f:
        acknowledged = len(f.read())
    return os.waitpid(pid, 0)[1], acknowledged


if __name__ == "__main__":
    for at in range(1, 1000):
        status, acknowledged = one(Path(sys.argv[1]) / str(at) / "head" / "state.db", at)
        print(status, acknowledged, flush=True)
        if status != 9:
            break
