"""Child processes, each the leader of its own session and process group, that can be found again after a restart.

A process is known by its pid together with its start time, because pids are used again. Stopping is TERM to the group,
a wait, KILL to the whole session: an engine may have children that outlive their parent. Zombies count as gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import resource
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
    "VLLM_",
    "OMP_",
    "KMP_",
    "MKL_",
    "OPENBLAS_",
    "NVIDIA_",
    "NCCL_",
    "OV_",
)


# What fetches weights: for those who do, and not for those who talk to the world.
_SOURCES = ("HF_", "AWS_")


def child_env(extra: Mapping[str, str] | None = None, *, sources: bool = False) -> dict[str, str]:
    """The allow-listed part of our environment, and `extra` on top. `sources`: also what gives access to weights."""
    passed = (*_PASS_PREFIXES, *_SOURCES) if sources else _PASS_PREFIXES
    env = {k: v for k, v in os.environ.items() if k in _PASS or k.startswith(passed)}
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
    session: int


def _stat(pid: int) -> _Stat | None:
    if sys.platform == "linux":
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        fields = text.rpartition(")")[2].split()  # the name may hold spaces and brackets
        # A leader thread that ended shows as a zombie while other threads still run (and hold ports and memory).
        zombie = fields[0] in "ZX" and int(fields[17]) <= 1
        return _Stat(float(fields[19]), zombie, int(fields[2]), int(fields[3]))
    try:
        p = psutil.Process(pid)
        zombie = p.status() == psutil.STATUS_ZOMBIE
        return _Stat(p.create_time(), zombie, os.getpgid(pid), os.getsid(pid))
    except (psutil.Error, ProcessLookupError, PermissionError):
        return None


def waited_s(pid: int) -> float:
    """For how long a process's main thread has waited for a core, in all its life; 0 where no kernel counts that."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def group_members(group: int) -> list[int]:
    """Pids of the living processes of a leader's group or session, zombies left out."""
    found: list[int] = []
    for pid in psutil.pids():
        seen = _stat(pid)
        if seen and group in (seen.group, seen.session) and not seen.zombie:
            found.append(pid)
    return found


def processes_with_env(name: str) -> list[tuple[ProcessRecord, dict[str, str]]]:
    """Our user's living processes that were started with the environment variable `name`, each with its environment.

    Finds what left its group and session. Programs that overwrite their title may have overwritten this too.
    """
    found: list[tuple[ProcessRecord, dict[str, str]]] = []
    for pid in psutil.pids():
        if pid == os.getpid():
            continue
        env = environment(pid)
        if name in env and (record := ProcessRecord.of(pid)):
            found.append((record, env))
    return found


def environment(pid: int) -> dict[str, str]:
    """What a process was started with; empty if we may not see it, or if the process wrote its title over it."""
    try:
        if sys.platform != "linux":
            return psutil.Process(pid).environ()
        text = os.fsdecode(Path(f"/proc/{pid}/environ").read_bytes())
    except (psutil.Error, OSError):
        return {}
    return dict(item.split("=", 1) for item in text.split("\0") if "=" in item)


async def kill_all(records: Sequence[ProcessRecord], kill_s: float = 5.0) -> None:
    """KILL each of these processes and wait until they are gone; TimeoutError after `kill_s`."""
    end = asyncio.get_running_loop().time() + kill_s
    while left := [r for r in records if r.alive()]:
        for record in left:
            _kill(record.pid)
        if asyncio.get_running_loop().time() > end:
            raise TimeoutError(f"processes {[r.pid for r in left]} survive SIGKILL")
        await asyncio.sleep(0.02)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def signal_group(group: int, signum: int) -> None:
    """Signal a whole process group; one that is gone is no error."""
    try:
        os.killpg(group, signum)
    except (ProcessLookupError, PermissionError):  # macOS answers EPERM for a group of zombies
        pass


class Child:
    """A process group that we started, or found again."""

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
        """Start a process in a session of its own. OSError if the program cannot be started.

        `output` (a file to append to, or an open descriptor) takes stdout and stderr; None: ours.
        """
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
            await _wait_pid(self.record)
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
        """KILL what is left of the group and its session, and wait until it is gone; TimeoutError after `kill_s`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + kill_s
        while members := self.members():
            signal_group(self.pid, signal.SIGKILL)
            for pid in members:
                _kill(pid)
            if loop.time() > end:
                raise TimeoutError(f"processes {members} of group {self.pid} survive SIGKILL")
            await asyncio.sleep(0.02)
        await self.wait()

    def members(self) -> list[int]:
        """Pids of what lives of the group and its session."""
        leader = _stat(self.pid)
        # The number of a group is not given to a new process while the group has members: another process of this
        # number means that all of ours had ended.
        if leader is not None and leader.start_time != self.record.start_time:
            return []
        return group_members(self.pid)

    def leave(self) -> None:
        """Give up a running process: it goes on, and a later `adopt` may find it. Not to be waited for any more."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.returncode = 0  # else Popen warns that it was forgotten
            self._popen = None


async def _wait_pid(record: ProcessRecord) -> None:
    """Return when the process may have ended. Costs nothing on Linux; elsewhere a poll ten times a second."""
    try:
        fd = os.pidfd_open(record.pid) if hasattr(os, "pidfd_open") else None
    except ProcessLookupError:
        return
    except OSError:  # an old kernel, a strict sandbox, or no descriptor left
        fd = None
    if fd is None:
        await asyncio.sleep(0.1)
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    try:
        loop.add_reader(fd, ended.set)
        seen = _stat(record.pid)
        if seen and seen.start_time == record.start_time:  # else the number has gone to a later process
            await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def write_atomic(path: Path, text: str, mode: int = 0o666) -> None:
    """Replace a file in one step, so that a reader sees the old or the new one. OSError if that cannot be done.

    On a full disk the new text goes over the old one, which needs no room; spaces make up for the difference.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.unlink(missing_ok=True)  # its mode is that of its making
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as f:
            f.write(text)
        os.replace(partial, path)
    except OSError as e:
        partial.unlink(missing_ok=True)
        if e.errno not in (errno.ENOSPC, errno.EDQUOT) or not path.exists():
            raise
        with path.open("r+b", buffering=0) as f:
            f.write(text.encode().ljust(path.stat().st_size))


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
ENDPOINT_ENV = "HEADRACE_ENDPOINT_FD"
"""Names the descriptor of a pipe in which a replica says where it listens, in one line."""
PARENT_ENDED = "parent ended"


def raise_open_files() -> int:
    """Let this process have as many open files as it may raise its limit to; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # some systems name a limit that they do not allow
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return open_files()


def open_files() -> int:
    """How many open files this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


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
        if signum is signal.SIGHUP and signal.getsignal(signum) is signal.SIG_IGN:
            continue  # nohup: to outlive the terminal is what was asked for
        loop.add_signal_handler(signum, stop, signum.name)
    lifeline = os.environ.pop(LIFELINE_ENV, None)
    if lifeline is None:
        return await reason
    fd = int(lifeline)
    os.set_inheritable(fd, False)
    loop.add_reader(fd, stop, PARENT_ENDED)
    try:
        return await reason
    finally:
        loop.remove_reader(fd)
        os.close(fd)


STANDBY_ENV = "HEADRACE_STANDBY_FD"


def stand_by() -> str | None:
    """Wait until we are needed, and return as whom; None if we were not started to wait. Exits if the parent ends.

    We are told through a pipe (its descriptor in HEADRACE_STANDBY_FD), and to which file our output goes from then on.
    """
    number = os.environ.pop(STANDBY_ENV, None)
    if number is None:
        return None
    with os.fdopen(int(number)) as pipe:
        name, _, output = pipe.readline().rstrip("\n").partition(" ")
    if not name:
        sys.exit(0)
    try:
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.close(fd)
    except OSError:
        pass  # a full disk must not keep us from serving; our output goes where it went
    return name
