"""Child processes, each the leader of its own session and process group, that can be found again after a restart.

A process is known by its pid together with its start time, because pids are used again. Stopping is TERM to the group,
a wait, KILL to the group: an engine may have children that outlive their parent. Zombies count as gone.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

_PASS = {
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "TERM", "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH",
    "LD_PRELOAD", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
    "http_proxy", "https_proxy", "no_proxy", "CUDA_HOME", "CUDA_DEVICE_ORDER", "HEADRACE_LOG_FORMAT",
}  # fmt: skip
_PASS_PREFIXES = (
    "LC_",
    "XDG_",
    "HF_",
    "VLLM_",
    "OMP_",
    "KMP_",
    "MKL_",
    "OPENBLAS_",
    "NVIDIA_",
    "NCCL_",
    "OV_",
)


def child_env(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The allow-listed part of our environment, and `extra` on top."""
    env = {k: v for k, v in os.environ.items() if k in _PASS or k.startswith(_PASS_PREFIXES)}
    return env | dict(extra or {})


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """Identity of a process across our own restarts. `start_time`: clock ticks on Linux, Unix time elsewhere."""

    pid: int
    start_time: float

    def alive(self) -> bool:
        """True while exactly this process runs (a zombie does not)."""
        seen = _stat(self.pid)
        return seen is not None and seen.start_time == self.start_time and not seen.zombie

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> ProcessRecord:
        """The record of `to_json`; ValueError if `text` is not one."""
        try:
            data = json.loads(text)
            return ProcessRecord(int(data["pid"]), float(data["start_time"]))
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f"not a process record: {text[:80]!r}") from e

    @staticmethod
    def of(pid: int) -> ProcessRecord | None:
        """The record of a running process, or None."""
        seen = _stat(pid)
        return ProcessRecord(pid, seen.start_time) if seen and not seen.zombie else None


@dataclass(frozen=True, slots=True)
class _Stat:
    start_time: float
    zombie: bool
    group: int


def _stat(pid: int) -> _Stat | None:
    if sys.platform == "linux":
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        fields = text.rpartition(")")[2].split()  # the name may hold spaces and brackets
        return _Stat(float(fields[19]), fields[0] in "ZX", int(fields[2]))
    try:
        p = psutil.Process(pid)
        return _Stat(p.create_time(), p.status() == psutil.STATUS_ZOMBIE, os.getpgid(pid))
    except (psutil.Error, ProcessLookupError, PermissionError):
        return None


def group_members(group: int) -> list[int]:
    """Pids of the living members of a process group, zombies left out."""
    found: list[int] = []
    for pid in psutil.pids():
        seen = _stat(pid)
        if seen and seen.group == group and not seen.zombie:
            found.append(pid)
    return found


def signal_group(group: int, signum: int) -> None:
    """Signal a whole process group; one that is gone is no error."""
    try:
        os.killpg(group, signum)
    except ProcessLookupError:
        pass


class Child:
    """A process group that we started, or found again. Wait for it from one task only."""

    def __init__(self, record: ProcessRecord, popen: subprocess.Popen[bytes] | None = None) -> None:
        self.record = record
        self._popen = popen

    @property
    def pid(self) -> int:
        return self.record.pid

    @staticmethod
    def spawn(
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        output: Path | int | None = None,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Child:
        """Start a process in a session of its own. `output` (a file to append to, or an open descriptor) takes stdout and
        stderr; None: ours. OSError if the program cannot be started."""
        own = isinstance(output, Path)
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640) if isinstance(output, Path) else output
        try:
            popen = subprocess.Popen(
                list(argv),
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=fd,
                stderr=fd,
                start_new_session=True,
                pass_fds=tuple(pass_fds),
            )
        finally:
            if own and fd is not None:
                os.close(fd)
        # Our own unreaped child always has a stat entry, even when it died at once.
        seen = _stat(popen.pid)
        return Child(ProcessRecord(popen.pid, seen.start_time if seen else 0.0), popen)

    @staticmethod
    def adopt(record: ProcessRecord) -> Child | None:
        """The process of `record` if it still runs, else None. Its exit code cannot be learned."""
        return Child(record) if record.alive() else None

    def alive(self) -> bool:
        if self._popen is not None:
            return self._popen.poll() is None
        return self.record.alive()

    async def wait(self) -> int | None:
        """Wait for the leader's end. Exit code (negative: signal); None for an adopted process."""
        while self.alive():
            await _wait_pid(self.pid)
        return self._popen.returncode if self._popen is not None else None

    async def stop(self, term_s: float = 5.0, kill_s: float = 5.0) -> int | None:
        """TERM to the group, up to `term_s` of patience, KILL to what is left of the group, reap."""
        if self.alive():
            signal_group(self.pid, signal.SIGTERM)
            try:
                await asyncio.wait_for(self.wait(), term_s)
            except TimeoutError:
                pass
        await self.kill_group(kill_s)
        return self._popen.poll() if self._popen is not None else None

    async def kill_group(self, kill_s: float = 5.0) -> None:
        """KILL what is left of the group, and wait until it is gone or `kill_s` have passed."""
        loop = asyncio.get_running_loop()
        end = loop.time() + kill_s
        while members := group_members(self.pid):
            signal_group(self.pid, signal.SIGKILL)
            if loop.time() > end:
                raise TimeoutError(f"processes {members} of group {self.pid} survive SIGKILL")
            await asyncio.sleep(0.02)
        if self._popen is not None:
            self._popen.poll()


async def _wait_pid(pid: int) -> None:
    """Return when the process may have ended. Costs nothing on Linux; elsewhere a poll ten times a second."""
    if not hasattr(os, "pidfd_open"):
        await asyncio.sleep(0.1)
        return
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def write_atomic(path: Path, text: str) -> None:
    """Replace a file in one step, so that a reader sees the old or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    os.replace(partial, path)


def explain_exit(code: int | None) -> str:
    """An exit code in words: "exited with code 1", "was killed by SIGKILL"."""
    if code is None:
        return "ended"
    if code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    return f"exited with code {code}"


LIFELINE_ENV = "HEADRACE_LIFELINE_FD"


async def told_to_stop() -> str:
    """Wait until this process is to end, and say why: a signal (INT, TERM, HUP), or the end of the lifeline.

    The lifeline is a pipe whose other end the parent holds (its descriptor in HEADRACE_LIFELINE_FD): it ends with the
    parent, however that died. Call once, from the main task.
    """
    loop = asyncio.get_running_loop()
    reason: asyncio.Future[str] = loop.create_future()

    def stop(why: str) -> None:
        if not reason.done():
            reason.set_result(why)

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, stop, signum.name)
    lifeline = os.environ.pop(LIFELINE_ENV, None)
    if lifeline is None:
        return await reason
    fd = int(lifeline)
    os.set_inheritable(fd, False)
    loop.add_reader(fd, stop, "parent ended")
    try:
        return await reason
    finally:
        loop.remove_reader(fd)
        os.close(fd)
