"""Runs `headrace ARGUMENTS…` (or a replica) with a bug planted: part.py MUTANT ARGUMENTS…

Every child of such a part is started through this file as well. Never used without a mutant.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    mutant, command = sys.argv[1], sys.argv[2]
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from harness import planted

    again = (sys.executable, "-P", __file__, mutant)
    if command == "head":
        from headrace.head import proxies

        _default(proxies.ProxyFleet.__init__, (*again, "proxy"))
    elif command == "scheduler":
        from headrace.node import agent

        _default(agent.serve, (*again, "replica"))
    planted.PLANT[mutant](command)
    if command == "replica":
        sys.argv = ["headrace.replica", *sys.argv[3:]]
        import headrace.replica.__main__  # noqa: F401  (it runs)
    else:
        sys.argv = ["headrace", *sys.argv[2:]]
        from headrace.cli import main as headrace

        headrace()


def _default(function: object, program: tuple[str, ...]) -> None:
    """Give a function's last parameter, which is the program to start, another default."""
    before = function.__defaults__  # type: ignore[attr-defined]
    function.__defaults__ = (*before[:-1], program)  # type: ignore[attr-defined]


main()
