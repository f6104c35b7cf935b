"""Why a replica's process ended, in words a person can act on."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

from headrace.node.folder import ReplicaFolder
from headrace.process import explain_exit


@dataclass(frozen=True, slots=True)
class Failure:
    """`reason` reads on from "the replica"; `permanent`: trying again cannot help."""

    reason: str
    permanent: bool = False


def why_ended(folder: ReplicaFolder, code: int | None, *, out_of_memory: bool) -> Failure:
    """The replica's own words if it left any; else what the exit code and the last line of its log tell.

    out_of_memory: the kernel killed some process for want of memory about then.
    """
    if said := folder.failure():
        return Failure(*said)
    how = explain_exit(code)
    if code == -signal.SIGKILL:
        how += " (the machine or its control group ran out of memory)" if out_of_memory else _UNKNOWN_KILLER
    elif code == 0:
        how += " although nobody told it to end"
    elif code is not None and code > 0 and (last := folder.last_line()):
        how += f": {last}"
    return Failure(how)


_UNKNOWN_KILLER = " (out of memory, or by hand)"


def oom_kills(vmstat: Path = Path("/proc/vmstat")) -> int:
    """How many processes this kernel has killed for want of memory, in any control group; 0 where it does not say."""
    try:
        for line in vmstat.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return 0
