"""One child of `headrace up`: kept running, and ended with it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from headrace.errors import UserError
from headrace.log_files import own_sentence, size
from headrace.process import Child, explain_exit

_BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
_STEADY_S = 30.0
_TRIES_AT_START = 3


def backoff_s(failures: int) -> float:
    """How long to wait after so many ends in a row, the first being 1."""
    return _BACKOFF_S[min(failures, len(_BACKOFF_S)) - 1]


class Part:
    """A command of ours as a child process, which gets the descriptors `inherited`.

    `arguments` is asked at every start, since ports are known better after the first.
    """

    def __init__(
        self,
        command: str,
        arguments: Callable[[], Sequence[str]],
        *,
        env: Mapping[str, str],
        inherited: Sequence[int],
        log_file: Path,
        say: Callable[[str], None],
    ) -> None:
        self.command = command
        self.works = False  # has been seen to do its work: from now on its end is never the end of everything
        self.child: Child | None = None
        self._arguments = arguments
        self._env = env
        self._inherited = inherited
        self.log_file = log_file
        self._say = say

    async def keep(self) -> NoReturn:
        """Start it, and again whenever it ends. UserError if it cannot even start."""
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            written = size(self.log_file)
            started = loop.time()
            self.child = self._spawn()
            code = await self.child.wait()
            await self._end_group()
            failures = 1 if loop.time() - started > _STEADY_S else failures + 1
            sentence = own_sentence(self.log_file, written)
            if not self.works and (failures >= _TRIES_AT_START or (code is not None and code > 0)):
                raise UserError(sentence or f"The {self.command} {explain_exit(code)}; see {self.log_file}")
            pause_s = backoff_s(failures)
            why = f"{explain_exit(code)}: {sentence}" if sentence else explain_exit(code)
            self._say(f"The {self.command} ended ({why}); it starts again in {pause_s:g} s.")
            await asyncio.sleep(pause_s)

    async def stop(self, term_s: float) -> None:
        """End it and its group, politely for `term_s`."""
        if self.child is not None:
            try:
                await self.child.stop(term_s, kill_s=2.0)
            except TimeoutError as e:
                self._say(f"The {self.command} does not end: {e}.")

    def _spawn(self) -> Child:
        # -P: a file in the working directory must not take the place of a module.
        argv = [sys.executable, "-P", "-m", "headrace", self.command, *self._arguments()]
        try:
            return Child.spawn(argv, env=self._env, output=self.log_file, pass_fds=self._inherited)
        except OSError as e:
            raise UserError(f"Cannot start the {self.command}: {e.strerror}.") from e

    async def _end_group(self) -> None:
        try:
            if self.child is not None:
                await self.child.kill_group(2.0)
        except TimeoutError as e:
            self._say(f"The {self.command} left something behind: {e}.")
