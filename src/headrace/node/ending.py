"""Why a replica's process ended, in words a person can act on."""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace

from headrace.core.causes import Cause
from headrace.node.folder import ReplicaFolder
from headrace.process import explain_exit


@dataclass(frozen=True, slots=True)
class Failure:
    """`reason` reads on from "the replica"."""

    reason: str
    cause: Cause = Cause.CRASH


def why_ended(said: Failure | None, code: int | None, folder: ReplicaFolder, out_of_memory: str = "") -> Failure:
    """What was said of it if anything was; else what the exit code and the last line of its log tell.

    out_of_memory: what to say of the kernel's killing for want of memory meanwhile; "": it did not. The kernel may have
    taken a child of the replica's and left the replica to fail.
    """
    if said:
        return replace(said, reason=f"{said.reason} ({out_of_memory})") if out_of_memory else said
    if out_of_memory and code in (None, -signal.SIGKILL):
        return Failure(f"was {out_of_memory}", Cause.OUT_OF_MEMORY)
    how = explain_exit(code)
    if code == -signal.SIGKILL:
        how += _UNKNOWN_KILLER
    elif code == 0:
        how += " although nobody told it to end"
    elif code is not None and code > 0 and (last := folder.last_line()):
        how += f": {last}"
    if out_of_memory:
        how += f" ({out_of_memory})"
    return Failure(how)


_UNKNOWN_KILLER = " (out of memory, or by hand)"
