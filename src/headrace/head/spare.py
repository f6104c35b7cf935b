"""A proxy that waits to be needed: it has imported all it needs, which is most of what a start takes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from headrace.process import STANDBY_ENV, Child


class Spare:
    """A process that stands by (see process.stand_by). It ends with us, however we end."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], output: Path) -> None:
        """Start it. OSError if that cannot be done."""
        theirs, self._ours = os.pipe()
        try:
            told = {**env, STANDBY_ENV: str(theirs)}
            self._child = Child.spawn(argv, env=told, output=output, pass_fds=(theirs,))
        except OSError:
            os.close(self._ours)
            raise
        finally:
            os.close(theirs)

    def alive(self) -> bool:
        return self._child.alive()

    def wake(self, proxy_id: str, output: Path) -> Child | None:
        """Have it be this proxy and write to `output` from now on; None if it has ended. Not to be used afterwards."""
        try:
            if self._child.alive():
                os.write(self._ours, f"{proxy_id} {output}\n".encode())
                return self._child
        except OSError:
            pass  # it ended just now
        finally:
            os.close(self._ours)
        return None

    async def stop(self) -> None:
        """End it."""
        os.close(self._ours)
        await self._child.stop(term_s=1.0)
