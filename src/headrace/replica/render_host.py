"""The process of a chat template: `python -m headrace.replica.render_host FD`, started by a replica.

A template is a program that came with a model: it may ask for any time and memory, when it is compiled as well. Here it
has CPU_S for each conversation and MEMORY_BYTES in all; with more the process ends. It ends with its input, too.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
from typing import Any

from headrace.errors import HeadraceError
from headrace.replica.control import Control
from headrace.replica.engines.pipe import Message, Pipe
from headrace.replica.template import ChatTemplate

CPU_S = 5.0
MEMORY_BYTES = 2 * 1024**3


def main() -> None:
    """Answer until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    line = Pipe(socket.socket(fileno=int(sys.argv[1])))
    template: ChatTemplate | None = None
    while (message := line.receive()) is not None:
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        try:
            if template is None:
                template = _open(*message)
                answer: Message = ("opened", template.takes_tools)
            else:
                answer = ("made", *template.prompt(*message))
        except HeadraceError as e:
            answer = ("failed", e.kind, e.message, e.param, e.code)
        except (MemoryError, RecursionError) as e:
            answer = ("failed", HeadraceError.kind, f"The chat template failed: {type(e).__name__}.", None, None)
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        line.send(*answer)


def _open(source: str, tokens: dict[str, str], names: dict[str, str], answers: list[str], always: bool) -> ChatTemplate:
    return ChatTemplate(source, tokens, Control(names, frozenset(answers), always))


def arguments(source: str, tokens: dict[str, str], control: Control) -> tuple[Any, ...]:
    """What the first message says."""
    return source, tokens, dict(control.names), list(control.answers), control.always


if __name__ == "__main__":
    try:
        main()
    except OSError:
        pass  # the replica is gone
    finally:
        os._exit(0)
