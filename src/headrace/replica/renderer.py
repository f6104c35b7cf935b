"""A chat template in a process of its own, so that it holds nobody else and can be ended: see render_host."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.errors import HeadraceError, InvalidRequest, UserError, from_kind
from headrace.replica.control import Control
from headrace.replica.engines.pipe import Message, Pipe
from headrace.replica.render_host import CPU_S, MEMORY_BYTES, arguments

_WAIT_S = 60.0
"""Of a machine full of work: after that the process is taken for one that hangs."""


class Renderer:
    """A Templating. Thread-safe: as many threads as render at a time, so many processes there are."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], control: Control) -> None:
        """UserError if it is not a template, or needs more than it may have to be compiled."""
        self._first = arguments(source, dict(special_tokens), control)
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._closed = False
        process, self.takes_tools = self._start()
        self._idle.append(process)

    def prompt(
        self,
        messages_json: bytes,
        tools: Sequence[Mapping[str, Any]],
        args: Mapping[str, Any],
        now_unix_s: float,
        most_chars: int = 0,
    ) -> tuple[str, bool]:
        with self._lock:
            process = self._idle.pop() if self._idle else None
        if process is None or not process.alive():
            if process is not None:
                process.end()
            process, _ = self._start()
        answer = process.ask(messages_json, list(tools), dict(args), now_unix_s, most_chars)
        if answer is None:
            raise InvalidRequest(f"The model's chat template {process.end()} on these messages.", param="messages")
        with self._lock:
            if not self._closed:
                self._idle.append(process)
                process = None
        if process is not None:
            process.end()
        if answer[0] == "failed":
            _, kind, message, param, code = answer
            raise from_kind(kind, message, param=param, code=code)
        return answer[1], answer[2]

    def close(self) -> None:
        """End the processes that nobody waits for, and the others as soon as they have answered."""
        with self._lock:
            self._closed, idle, self._idle = True, self._idle, []
        for process in idle:
            process.end()

    def _start(self) -> tuple[_Process, bool]:
        process = _Process()
        answer = process.ask(*self._first)
        if answer is None:
            raise UserError(f"The chat template cannot be used: it {process.end()} when it is compiled.")
        if answer[0] == "failed":
            process.end()
            raise UserError(answer[2]) if answer[1] == UserError.kind else HeadraceError(answer[2])
        return process, answer[1]


class _Process:
    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            program = (sys.executable, "-m", "headrace.replica.render_host", str(theirs.fileno()))
            self._process = subprocess.Popen(program, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL)
        self._socket = ours
        ours.settimeout(_WAIT_S)
        self._line = Pipe(ours)

    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, *message: Any) -> Message | None:
        """Its answer; None if it ended or hangs."""
        try:
            self._line.send(*message)
            return self._line.receive()
        except OSError:
            return None

    def end(self) -> str:
        """End it; for people, what was wrong with it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)
        hung = self._process.poll() is None
        self._process.kill()
        self._process.wait()
        self._line.close()
        if self._process.returncode == -signal.SIGPROF:
            return f"takes more than {CPU_S:g} s of CPU time"
        if hung:
            return "does not come to an end"
        return f"fails, perhaps because it needs more than {MEMORY_BYTES // 1024**3} GiB of memory"
