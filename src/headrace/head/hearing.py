"""Hears whether a proxy's event loop goes round: a process that lives is not yet one that works."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

from headrace.core.heartbeat import LIMIT_S, Heartbeat
from headrace.heartbeat import Beat, listen
from headrace.process import scheduled

_LOOK_S = 0.5


async def until_silent(path: Path, pid: int, heard: Callable[[Beat], None]) -> float:
    """Return when the process `pid`, which is to be heard at `path`, has come to a stand; after how many seconds.

    `heard` is called with all that it says.
    """
    heartbeat, clock = Heartbeat(), asyncio.get_running_loop().time
    async with asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(_listen(path, pid, heartbeat, heard))
        while True:
            asleep_at = clock()
            await asyncio.sleep(_LOOK_S)
            if (late := clock() - asleep_at - _LOOK_S) > _LOOK_S:
                heartbeat.we_stood_still(late)
                continue
            silent_s = heartbeat.silent_s(clock(), *scheduled(pid))
            if silent_s >= LIMIT_S:
                listening.cancel()
                return silent_s


async def _listen(path: Path, pid: int, heartbeat: Heartbeat, heard: Callable[[Beat], None]) -> None:
    clock = asyncio.get_running_loop().time
    while True:
        try:
            async with aclosing(listen(path)) as beats:
                async for beat in beats:
                    heartbeat.heard(clock(), *scheduled(pid))
                    if beat is not None:
                        heard(beat)
        except (OSError, ValueError):  # not there yet, or no longer; or a line without end
            pass
        heartbeat.unheard()
        await asyncio.sleep(_LOOK_S)
