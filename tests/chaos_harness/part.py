"""Runs `headrace ARGUMENTS…` (or a replica) with a bug planted: part.py MUTANT ARGUMENTS…

Every child of such a part is started through this file as well. Never used without a mutant.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import FunctionType


def main() -> None:
    mutant, command = sys.argv[1], sys.argv[2]
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from chaos_harness import planted

    again = (sys.executable, "-P", __file__, mutant)
    if command == "head":
        from headrace.head import controller, proxies

        _default(controller.serving.__wrapped__, proxies.PROGRAM, (*again, "proxy"))
    elif command == "scheduler":
        from headrace.node import agent

        _default(agent.serve, agent._REPLICA, (*again, "replica"))
    planted.PLANT[mutant](command)
    if command == "replica":
        sys.argv = ["headrace.replica", *sys.argv[3:]]
        import headrace.replica.__main__
    else:
        sys.argv = ["headrace", *sys.argv[2:]]
        from headrace.cli import main as headrace

        headrace()


def _default(function: FunctionType, before: tuple[str, ...], program: tuple[str, ...]) -> None:
    """Have a function start another program where it is not told which."""
    defaults = function.__defaults__ or ()
    assert before in defaults
    function.__defaults__ = tuple(program if d == before else d for d in defaults)


main()
