"""Whether the kernel killed for want of memory: as the control group of a process counts it, else the whole machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headrace.node.cgroups import ROOT, counter, groups, number, read

_EVENTS = ("memory.events", "memory.oom_control")  # of versions 2 and 1
_LIMITS = ("memory.max", "memory.limit_in_bytes")
_NO_LIMIT = 2**60  # version 1 says a number near 2**63 where there is none


@dataclass(frozen=True, slots=True)
class OomCount:
    """A reading of the counter of such kills: `file` is a control group's, or /proc/vmstat; None: nothing counts."""

    file: Path | None
    kills: int
    own: bool  # it counts the kills of the process's own control group alone

    @staticmethod
    def of(pid: int, root: Path = ROOT) -> OomCount:
        """The reading now, for a process that lives."""
        for group in groups(root, "memory", pid):
            for name in _EVENTS:
                if (kills := counter(group / name, "oom_kill")) is not None:
                    return OomCount(group / name, kills, own=True)
            if group.is_dir():
                break  # it is the process's own and counts nothing; those above count others as well
        vmstat = root / "proc/vmstat"
        kills = counter(vmstat, "oom_kill")
        return OomCount(None if kills is None else vmstat, kills or 0, own=False)

    def grown(self) -> bool:
        """Whether the kernel has killed since this reading."""
        return self.file is not None and (counter(self.file, "oom_kill") or 0) > self.kills

    def limit_bytes(self) -> int:
        """What the control group may have; 0: no limit, or not known."""
        if self.file is None or not self.own:
            return 0
        found = [number(read(self.file.with_name(name))) for name in _LIMITS]
        return next((n for n in found if 0 < n < _NO_LIMIT), 0)


def cause(count: OomCount) -> str:
    """For people: that the kernel killed since `count`, and what to do; "" if it did not."""
    if not count.grown():
        return ""
    if not count.own:
        return "killed, and the machine ran out of memory about then: deploy smaller models or fewer replicas on it"
    limit = count.limit_bytes()
    allowed = f" of {limit / 2**30:.3g} GiB" if limit else ""
    return (
        f"killed by the kernel for memory: its control group{allowed} was full; give it more, or deploy smaller models"
        " or fewer replicas there"
    )
