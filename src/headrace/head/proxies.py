"""Keeps the HTTP proxies of the head's machine alive. They outlive a head that dies, and the next head adopts them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import structlog

from headrace import __version__
from headrace.core.restart import NONE, Restart, RestartPolicy, after_failure
from headrace.core.types import ProxyStatus
from headrace.head.hearing import until_silent
from headrace.head.http_port import HttpPort, reserve
from headrace.head.spare import Spare
from headrace.head.topic import Topic
from headrace.heartbeat import Beat
from headrace.log_files import CARE_S, own_sentence, rotate, size
from headrace.process import LIFELINE_ENV, Child, ProcessRecord, child_env, explain_exit, signal_group, write_atomic
from headrace.settings import HeadSettings

log = structlog.get_logger()

PROGRAM = (sys.executable, "-P", "-m", "headrace", "proxy")
_POLICY = RestartPolicy(first_delay_s=0.1, max_delay_s=5.0, steady_s=10.0)
_STOP_S = 4.0
_NOT_THEIRS = (LIFELINE_ENV, "HEADRACE_API_KEY", "HEADRACE_JOIN")  # a person's key; they are of this cluster
_SPARE_S = 5.0  # a start of the system has better things to do first


@dataclass(slots=True)
class _Slot:
    """One proxy that is to run."""

    proxy_id: str
    child: Child | None = None
    restarts: int = 0
    beat: Beat = field(default_factory=Beat)  # the last that was heard of it
    ended: str = ""  # how the one before it did


@dataclass(frozen=True, slots=True)
class _Leftover:
    """A living proxy of an earlier head."""

    proxy_id: str
    child: Child
    argv: list[str]
    version: str
    restarts: int


class ProxyFleet:
    """`prepare`, then `run` until cancelled, then `stop`. `changed` is notified when a proxy starts or ends."""

    def __init__(
        self,
        settings: HeadSettings,
        head_address: str,
        changed: Topic,
        program: Sequence[str] = PROGRAM,
        epoch: int = 0,
    ) -> None:
        self._epoch = epoch
        self._settings, self._head_address, self._changed = settings, head_address, changed
        self._program = list(program)
        self._dir = settings.head_dir / "proxies"
        self._port: HttpPort | None = None
        self._slots = [_Slot(f"proxy-{n + 1}") for n in range(settings.num_proxies)]
        self._spare: Spare | None = None

    @property
    def http_port(self) -> int:
        return self._port.port if self._port else 0

    async def prepare(self) -> None:
        """Adopt the proxies of an earlier head that serve as these would, stop the others, reserve the port.

        UserError if the port is not to be had.
        """
        self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = self._leftovers()
        port = self._settings.http_port or next(filter(None, (_port_of(f.argv) for f in found)), 0)
        kept = {f.proxy_id: f for f in found if port and self._would_be_the_same(f, port)}
        await _stop_all([f.child for f in found if f.proxy_id not in kept])
        if self._slots:
            self._port = reserve(self._settings.http_host, port, shared=bool(kept))
        if not kept:
            shutil.rmtree(self._metrics_dir, ignore_errors=True)
        self._metrics_dir.mkdir(exist_ok=True, mode=0o700)
        for slot in self._slots:
            if there := kept.get(slot.proxy_id):
                slot.child, slot.restarts = there.child, there.restarts
                log.info("proxy_adopted", proxy=slot.proxy_id, proxy_pid=there.child.pid)

    async def run(self) -> None:
        """Keep every proxy running until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for slot in self._slots:
                tasks.create_task(self._keep(slot))
            if self._slots:
                tasks.create_task(self._keep_spare())
                tasks.create_task(self._care_for_logs())

    async def stop(self, drain_s: float = 0.0, hurry: Awaitable[object] | None = None) -> None:
        """End all proxies, which finish what runs for at most `drain_s`, or until `hurry` is done.

        Call it after `run` has been cancelled.
        """
        if self._spare:
            await self._spare.stop()
        children = [s.child for s in self._slots if s.child]
        await _drain_all(children, drain_s, hurry)
        await _stop_all(children)
        for slot in self._slots:
            self._record_path(slot.proxy_id).unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Give up the port; the proxies stay as they are."""
        if self._port:
            self._port.close()

    def statuses(self, watching: Mapping[str, int]) -> tuple[ProxyStatus, ...]:
        """Ours, then those that merely watch routes. `watching`: pid by proxy id of all that do.

        "running" is one that watches routes; "starting" one that has yet to.
        """
        ours = [self._status(s, watching) for s in self._slots]
        ids = {s.proxy_id for s in self._slots}
        others = [ProxyStatus(k, pid, "watching") for k, pid in sorted(watching.items()) if k not in ids]
        return (*ours, *others)

    def _status(self, slot: _Slot, watching: Mapping[str, int]) -> ProxyStatus:
        reason = slot.beat.trouble or slot.ended
        if slot.child is None or not slot.child.alive():
            return ProxyStatus(slot.proxy_id, 0, "restarting", slot.restarts, reason)
        state = "running" if watching.get(slot.proxy_id) == slot.child.pid else "starting"
        return ProxyStatus(slot.proxy_id, slot.child.pid, state, slot.restarts, reason, slot.beat.requests)

    async def _keep(self, slot: _Slot) -> None:
        failures = NONE
        while True:
            started = time.monotonic()
            why = await self._run_once(slot)
            slot.restarts += 1
            slot.ended, slot.beat = why, Beat()
            step = after_failure(failures, started, time.monotonic(), random.random(), why, proven=True, policy=_POLICY)
            assert isinstance(step, Restart)
            failures = step.failures
            log.warning("proxy_ended", proxy=slot.proxy_id, why=why, again_in_s=round(step.delay_s, 2))
            self._changed.notify()
            await asyncio.sleep(step.delay_s)

    async def _run_once(self, slot: _Slot) -> str:
        """Start the proxy, unless it was adopted, and wait for its end; how it ended, in words.

        One whose event loop has come to a stand is ended: it would keep its share of the port's connections.
        """
        output = self._log_path(slot.proxy_id)
        written = size(output)
        try:
            if slot.child is None:
                slot.child = self._spawn(slot)
                log.info("proxy_started", proxy=slot.proxy_id, proxy_pid=slot.child.pid)
            self._changed.notify()
            code, silent_s = await self._end_or_silence(slot, slot.child)
            await slot.child.kill_group()
        except (OSError, TimeoutError) as e:
            return f"could not be run: {e}"
        slot.child = None
        if silent_s:
            return f"stood still for {silent_s:.0f} s and was killed"
        sentence = own_sentence(output, written) if code else ""
        return f"{explain_exit(code)}: {sentence}" if sentence else explain_exit(code)

    async def _end_or_silence(self, slot: _Slot, child: Child) -> tuple[int | None, float]:
        """Its exit code, or after how many seconds without a word it was given up."""

        def heard(beat: Beat) -> None:
            news, slot.beat = beat.trouble != slot.beat.trouble, beat
            if news:
                self._changed.notify()

        async with asyncio.TaskGroup() as tasks:
            end = tasks.create_task(child.wait())
            silence = tasks.create_task(until_silent(self._dir / f"{slot.proxy_id}.sock", child.pid, heard))
            await asyncio.wait({end, silence}, return_when=asyncio.FIRST_COMPLETED)
            ended = end.done()
            for task in (end, silence):
                task.cancel()
        return (end.result(), 0.0) if ended else (None, silence.result())

    async def _care_for_logs(self) -> None:
        """Rotate logs that have grown too large, until cancelled."""
        while True:
            for path in self._dir.glob("*.log"):
                try:
                    rotate(path)
                except OSError as e:
                    log.error("log_not_rotated", path=str(path), error=str(e))
            await asyncio.sleep(CARE_S)

    def _spawn(self, slot: _Slot) -> Child:
        argv = self._argv(slot.proxy_id, self.http_port)
        output = self._log_path(slot.proxy_id)
        spare, self._spare = self._spare, None
        child = spare.wake(slot.proxy_id, output.absolute()) if spare else None
        if child is None:
            child = Child.spawn(argv, env=_environment(self._epoch), output=output)
        record = asdict(child.record) | {"argv": argv, "version": __version__, "restarts": slot.restarts}
        try:
            write_atomic(self._record_path(slot.proxy_id), json.dumps(record))
        except OSError as e:
            # It serves all the same; only a next head could not adopt it.
            log.warning("proxy_not_recorded", proxy=slot.proxy_id, error=str(e))
        return child

    async def _keep_spare(self) -> None:
        """Have a spare, so that a proxy that dies is replaced in a moment, until cancelled."""
        while True:
            await asyncio.sleep(_SPARE_S)
            if self._spare:
                if self._spare.alive():
                    continue
                await self._spare.stop()
            try:
                self._spare = Spare(self._argv("", self.http_port), _environment(self._epoch), self._dir / "spare.log")
            except OSError as e:
                log.warning("no_spare_proxy", error=str(e))

    def _argv(self, proxy_id: str, port: int) -> list[str]:
        s = self._settings
        flags: dict[str, object] = {
            "http_host": s.http_host,
            "http_port": port,
            "head_address": self._head_address,
            "metrics_dir": self._metrics_dir.absolute(),
            "state_dir": s.state_dir.absolute(),
            "certificate_life": f"{s.tls.life_s:g}",
            "heartbeat_dir": self._dir.absolute(),
            "routing": s.routing,
            "drain_s": f"{s.drain_s:g}",
            "log_level": s.log_level,
        }
        files = {"api_keys_file": s.api_keys_file, "tls_cert": s.tls.cert, "tls_key": s.tls.key, "tls_ca": s.tls.ca}
        flags |= {k: path.absolute() for k, path in files.items() if path}
        flags |= {"tls_name": s.tls.name} if s.tls.name else {}
        flags |= {"proxy_id": proxy_id} if proxy_id else {}  # a spare is told when it is needed
        switches = ["--allow_insecure"] if s.allow_insecure else []
        switches += [f"--allowed_hosts={h}" for h in s.allowed_hosts] + [f"--cors_origins={o}" for o in s.cors_origins]
        return [*self._program, *(f"--{k}={v}" for k, v in flags.items()), *switches]

    @property
    def _metrics_dir(self) -> Path:
        return self._settings.head_dir / "metrics"

    def _log_path(self, proxy_id: str) -> Path:
        return self._dir / f"{proxy_id}.log"

    def _record_path(self, proxy_id: str) -> Path:
        return self._dir / f"{proxy_id}.json"

    def _would_be_the_same(self, f: _Leftover, port: int) -> bool:
        wanted = f.proxy_id in {s.proxy_id for s in self._slots}
        return wanted and f.version == __version__ and f.argv == self._argv(f.proxy_id, port)

    def _leftovers(self) -> list[_Leftover]:
        """The proxies of an earlier head that still run; records of others are removed."""
        found: list[_Leftover] = []
        for path in sorted(self._dir.glob("*.json")):
            try:
                text = path.read_text()
                child = Child.adopt(ProcessRecord.from_json(text))
                data = json.loads(text)
                if child:
                    argv, restarts = [str(a) for a in data.get("argv", [])], int(data.get("restarts", 0))
                    found.append(_Leftover(path.stem, child, argv, str(data.get("version")), restarts))
                    continue
            except (OSError, ValueError, TypeError) as e:
                log.warning("proxy_record_unreadable", path=str(path), error=str(e))
            path.unlink(missing_ok=True)
        return found


def _environment(epoch: int) -> dict[str, str]:
    # Its settings may come as variables or from a file, as with one started by hand; our flags go before them.
    ours = {k: v for k, v in os.environ.items() if k.startswith("HEADRACE_") and k not in _NOT_THEIRS}
    # Not a flag: by its flags the next head tells whether it would start the same proxy, and that has another epoch.
    return child_env(ours | {"HEADRACE_LEAST_EPOCH": str(epoch)})


async def _drain_all(children: Sequence[Child], drain_s: float, hurry: Awaitable[object] | None) -> None:
    """Tell them to end, and wait until they have, until their time is over or until `hurry` is done."""
    for child in children:
        signal_group(child.pid, signal.SIGTERM)
    async with asyncio.TaskGroup() as tasks:
        waits: set[asyncio.Task[object]] = {tasks.create_task(_all_ended(children))}
        if hurry is not None:
            waits.add(tasks.create_task(_await(hurry)))
        await asyncio.wait(waits, timeout=drain_s, return_when=asyncio.FIRST_COMPLETED)
        for task in waits:
            task.cancel()


async def _all_ended(children: Sequence[Child]) -> object:
    return await asyncio.gather(*(c.wait() for c in children))


async def _await(what: Awaitable[object]) -> object:
    return await what


async def _stop_all(children: Sequence[Child]) -> None:
    ended = await asyncio.gather(*(c.stop(term_s=_STOP_S) for c in children), return_exceptions=True)
    for child, outcome in zip(children, ended, strict=True):
        if isinstance(outcome, BaseException):
            log.error("proxy_does_not_end", proxy_pid=child.pid, error=str(outcome))


def _port_of(argv: Sequence[str]) -> int:
    found = [a.partition("=")[2] for a in argv if a.startswith("--http_port=")]
    return int(found[0]) if found and found[0].isdigit() else 0
