"""One run of all kinds against the real system, and what it found."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from chaos_harness.system import Size, System

from fuzz import bodies, openapi, raw, short
from fuzz.bystander import Bystanders
from fuzz.case import Case, Make, Outcome, send
from fuzz.rules import complaint
from fuzz.watch import Watch
from headrace.core.types import DeployRequest

MAKES: dict[str, Make] = {bodies.KIND: bodies.make, raw.KIND: raw.make, short.KIND: short.make}
KINDS = (openapi.KIND, *MAKES)
_AT_ONCE = 6
_MOST_FINDINGS = 8  # of one kind: others are counted
_SIZE = Size(proxies=2, nodes=1, models=1, replicas=2, step_s=0.005, answer_tokens=150)


@dataclass(frozen=True)
class Plan:
    """`cases`: how many of each kind at most; `examples`: of each operation that the OpenAPI document has.

    `seconds`: for each kind, 0 for no limit; operations are then tried again and again.
    `only`: one kind; `case`: one case of it. `demo`: also the demo model, where OpenVINO is installed.
    """

    seed: int = 1
    seconds: float = 0.0
    cases: int = 10**9
    examples: int = 100
    only: str = ""
    case: int | None = None
    demo: bool = True

    def kinds(self) -> tuple[str, ...]:
        return tuple(k for k in KINDS if self.only in ("", k))


@dataclass
class Finding:
    kind: str
    number: int
    complaint: str
    sent: bytes = b""
    got: bytes = b""

    def told(self, seed: int) -> str:
        again = f"make fuzz KIND={self.kind} SEED={seed} CASE={self.number}"
        shown = f"\n    sent: {self.sent[:700]!r}\n    got: {self.got[:300]!r}" if self.sent else ""
        return f"{self.kind} {self.number}: {self.complaint}{shown}\n    again: {again}"


@dataclass
class Report:
    findings: list[Finding] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)  # about the system as a whole
    sent: dict[str, int] = field(default_factory=dict)
    answers: int = 0  # that bystanders had
    more: int = 0  # findings that are not told

    def wrong(self) -> bool:
        return bool(self.findings or self.complaints)

    def told(self, seed: int) -> str:
        counts = ", ".join(f"{n} of {kind}" for kind, n in self.sent.items())
        lines = [f"seed {seed}: {counts}; bystanders had {self.answers} answers"]
        lines += [f.told(seed) for f in self.findings] + self.complaints
        lines += [f"and {self.more} more findings"] if self.more else []
        return "\n".join(lines if self.wrong() else [*lines, "nothing is wrong"])


@asynccontextmanager
async def running(folder: Path, demo: bool) -> AsyncIterator[System]:
    """The system, ready; whatever happens, no process of it is left."""
    system = System(folder, _SIZE)
    try:
        await system.start()
        if demo and find_spec("openvino_genai"):
            await system.admin.deploy(DeployRequest(model="builtin:demo", name="demo", engine="openvino", cpus=0.5))
            await system.until(system.well)
        yield system
    finally:
        await system.stop()


async def run(plan: Plan, folder: Path, say: Callable[[str], None] = print) -> Report:
    """Do what the plan says."""
    report = Report()
    async with running(folder, plan.demo) as system, AsyncExitStack() as stack:
        await _warm(system)
        others = await stack.enter_async_context(Bystanders(system.address, *next(iter(_SIZE.ends().items()))))
        async with asyncio.timeout(60):  # the head has a spare proxy only after a while
            while not any(r.role == "standby" for r in system.processes()):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        for kind in plan.kinds():
            watch = Watch(system)
            if kind == openapi.KIND:
                await _documented(system, plan, report)
            else:
                await _cases(system, kind, plan, report)
            found = [f"after {kind}: {c}" for c in await watch.complaints()]
            report.complaints += found
            say(f"{kind}: {report.sent.get(kind, 0)} sent, {len(found)} complaints, "
                f"{sum(f.kind == kind for f in report.findings)} findings")  # fmt: skip
        await stack.aclose()
        report.answers = others.answers
        report.complaints += [f"a bystander: {w}" for w in others.wrong]
    return report


async def _warm(system: System) -> None:
    """A few requests of each kind, so that what a process needs once is not taken for growth."""
    for number in range(40):
        await send(system.address, bodies.make(0, number))


async def _cases(system: System, kind: str, plan: Plan, report: Report) -> None:
    make = MAKES[kind]
    numbers = iter(range(plan.cases) if plan.case is None else [plan.case])
    end = time.monotonic() + plan.seconds if plan.seconds else float("inf")
    found: list[Finding] = []

    async def worker() -> None:
        for number in numbers:
            case = make(plan.seed, number, frozenset())
            report.sent[kind] = report.sent.get(kind, 0) + 1
            wrong = complaint(case, await send(system.address, case))
            if wrong and len(found) >= _MOST_FINDINGS:
                report.more += 1
            elif wrong:
                case, outcome, wrong = await _smallest(system.address, make, plan.seed, number, case, wrong)
                found.append(Finding(kind, number, wrong, case.sent(), bytes(outcome.data)))
            if time.monotonic() > end:
                return

    await asyncio.gather(*(worker() for _ in range(_AT_ONCE)))
    report.findings += found


async def _smallest(
    address: tuple[str, int], make: Make, seed: int, number: int, case: Case, wrong: str
) -> tuple[Case, Outcome, str]:
    """The case without the changes that it does not need for the complaint."""
    without: frozenset[int] = frozenset()
    best, outcome = case, Outcome()
    for edit in range(case.edits):
        tried = make(seed, number, without | {edit})
        got = await send(address, tried)
        if now := complaint(tried, got):
            without, best, outcome, wrong = without | {edit}, tried, got, now
    return best, outcome if outcome.size else await send(address, best), wrong


async def _documented(system: System, plan: Plan, report: Report) -> None:
    url = "http://{}:{}".format(*system.address)
    operations = await asyncio.to_thread(openapi.operations, url)
    end = time.monotonic() + plan.seconds if plan.seconds else float("inf")

    over = threading.Event()

    def count() -> None:
        if over.is_set() or time.monotonic() > end:
            raise openapi.Enough
        report.sent[openapi.KIND] = report.sent.get(openapi.KIND, 0) + 1

    try:
        for round_ in itertools.count():
            for number, (label, operation) in enumerate(operations):
                if plan.case not in (None, number) or any(
                    f.number == number for f in report.findings if f.kind == openapi.KIND
                ):
                    continue
                wrong = await asyncio.to_thread(
                    openapi.try_operation, url, operation, plan.seed + round_, plan.examples, count
                )
                if wrong:
                    report.findings.append(Finding(openapi.KIND, number, f"{label}: {wrong}"))
            if not plan.seconds or plan.case is not None or time.monotonic() > end:
                return
    finally:
        over.set()  # for the thread, which nobody can cancel
