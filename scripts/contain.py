#!/usr/bin/env python3
"""Runs a command, and ends all that it has started, however the command or this ends: scripts/contain.py COMMAND…

INT, TERM and HUP go to the command; what is left of it and of its descendants is killed once it has ended, or has not
for 15 s. So it is when the parent of this (make, say) is killed. On Linux that holds for orphans and for those in
sessions of their own as well. The exit code is the command's, or 128 and the number of the signal that ended it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

import psutil

_GRACE_S = 15.0
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _end_all() -> None:
    """Kill every descendant, and those that they start meanwhile."""
    while left := psutil.Process().children(recursive=True):
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        _bury()
        time.sleep(0.02)


def _bury(but: int = 0) -> None:
    """Take the exit codes of orphans that came to us; of the child `but`, somebody else does."""
    if not hasattr(os, "waitid"):
        return  # where no orphan comes to us
    try:
        while (dead := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and dead.si_pid != but:
            os.waitpid(dead.si_pid, 0)
    except ChildProcessError:
        return


def main(command: list[str]) -> int:
    parent = os.getppid()
    told: list[int] = []
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup
            signal.signal(signum, lambda number, _: told.append(number))
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        return 1  # it ended before we could ask to be told
    # A group of its own: a terminal's Ctrl-C reaches it once, through us.
    child = subprocess.Popen(
        command, process_group=0, preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM), stdin=subprocess.DEVNULL
    )
    passed_on, since = 0, 0.0
    try:
        while child.poll() is None:
            if len(told) > passed_on:
                child.send_signal(told[-1])
                passed_on, since = len(told), since or time.monotonic()
            if since and time.monotonic() - since > _GRACE_S:
                break
            _bury(but=child.pid)
            time.sleep(0.05)
    finally:
        child.kill()
        code = child.wait()
        _end_all()
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
