"""Output that goes on until somebody has seen enough."""

from __future__ import annotations

import asyncio
import os
import select
import stat
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")
_LOOK_S = 0.5


async def while_read(work: Coroutine[Any, Any, _T]) -> _T:
    """The outcome of `work`, which goes on by itself; BrokenPipeError once the reader of a pipe at stdout has gone.

    Without this it would go on until there is something to write, which may be never.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_reader_gone())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise BrokenPipeError
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _reader_gone() -> None:
    try:
        fd = sys.stdout.fileno()
        is_pipe = stat.S_ISFIFO(os.fstat(fd).st_mode)
    except (OSError, ValueError):
        is_pipe, fd = False, -1
    if not is_pipe:
        await asyncio.Event().wait()
    poll = select.poll()
    poll.register(fd, 0)
    while not any(e & (select.POLLERR | select.POLLHUP) for _, e in poll.poll(0)):  # noqa: ASYNC110 - nobody tells us
        await asyncio.sleep(_LOOK_S)
