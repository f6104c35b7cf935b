"""Starts processes of a benchmark in groups of their own, and ends them."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from peers.generator import KEY

END_S = 20.0


def end_on_term() -> None:
    """Have SIGTERM and SIGHUP unwind this program, so that it ends what it has started."""
    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is signal.SIG_DFL:
            signal.signal(signum, lambda number, _: sys.exit(128 + number))


def _end_on_term_too() -> None:
    if threading.current_thread() is threading.main_thread():
        end_on_term()


class DidNotStart(Exception):
    """With the end of what it wrote."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def process(argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process with a pipe to its standard input and from its standard output; the rest goes to `log`."""
    _end_on_term_too()
    with log.open("ab") as errors:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=dict(os.environ) | dict(env or {}),
            start_new_session=True,
        )
    try:
        yield child
    finally:
        end(child)


@contextmanager
def logged(argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process all of whose output goes to `log`."""
    _end_on_term_too()
    with log.open("ab") as output:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(os.environ) | dict(env or {}),
            start_new_session=True,
        )
    try:
        yield child
    finally:
        end(child)


def end(child: subprocess.Popen[bytes]) -> None:
    """TERM, then KILL to the group."""
    if child.stdin:
        child.stdin.close()
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(END_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdout:
        child.stdout.close()


def wait_until_it_answers(
    child: subprocess.Popen[bytes], port: int, path: str, log: Path, limit_s: float, body: bytes | None = None
) -> None:
    """Until a GET of `path`, or a POST of `body`, is answered with 200. DidNotStart if it ends or takes too long."""
    last = "it does not listen"
    until = time.monotonic() + limit_s
    while time.monotonic() < until and child.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
            connection.request("POST" if body else "GET", path, body, headers)
            answer = connection.getresponse()
            said = answer.read()
            if answer.status == 200:
                return
            last = f"{answer.status} {said[-300:].decode(errors='replace')}"
        except (OSError, http.client.HTTPException) as e:
            last = str(e) or type(e).__name__
        finally:
            connection.close()
        time.sleep(0.1)
    raise DidNotStart(f"{last}\n{log.read_text(errors='replace')[-1500:]}")
