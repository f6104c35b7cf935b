"""An engine in a process of its own, for one that holds Python's interpreter while it computes.

OpenVINO's step does (openvino-genai 2026.4 does not let go of it), and a step of a large model takes seconds. In one
process the front end would stand still meanwhile: no heartbeat, tokens a step late for every hop that they take.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, replace
from pathlib import Path

import psutil

from headrace.core.streams import Sampling
from headrace.core.types import Load, ModelInfo, Resources
from headrace.errors import HeadraceError, from_kind
from headrace.replica.engine import EncodeRequest, EngineRequest, OutputParser, Parsing, Row, Step
from headrace.replica.engines import pipe
from headrace.replica.engines.guide_checker import GuideChecker
from headrace.replica.engines.openvino_options import OpenVinoOptions
from headrace.replica.engines.openvino_parsers import Parsers
from headrace.replica.engines.pipe import Message, Pipe

_CLOSE_S = 5.0
_CPU_KNOWN_S = 0.25


class Host:
    """The process, from its start on: it imports the engine while the replica does other things.

    To be made by the main thread: the process ends with the thread that started it.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            program = (sys.executable, "-m", "headrace.replica.engines.host", str(theirs.fileno()))
            self.process = subprocess.Popen(program, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL)
        self.line = Pipe(ours)
        self._cpu_s, self._cpu_at = 0.0, -_CPU_KNOWN_S

    def load(
        self, folder: Path, options: OpenVinoOptions, resources: Resources, context_tokens: int, parsers: Parsers
    ) -> Message:
        """What the engine says of itself when it has its model. UserError or HeadraceError if it cannot load it."""
        answer = None
        with contextlib.suppress(OSError):
            self.line.send(str(folder), asdict(options), astuple(resources), context_tokens, *parsers.names)
            answer = self.line.receive()
        if answer is None:
            raise HeadraceError(f"OpenVINO cannot load {folder}: {self.end()}")
        if answer[0] == "failed":
            raise from_kind(*answer[1:])
        return answer[1:]

    def cpu_s(self) -> float:
        """CPU time that the process has used, as of a moment ago; 0: it has ended."""
        now = time.monotonic()
        if now - self._cpu_at >= _CPU_KNOWN_S:
            self._cpu_at = now
            try:
                times = psutil.Process(self.process.pid).cpu_times()
                self._cpu_s = times.user + times.system
            except psutil.Error:
                self._cpu_s = 0.0
        return self._cpu_s

    def end(self) -> str:
        """End the process if it lives; for people, how it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
            return "its process stopped talking"
        code = self.process.returncode
        if code < 0:
            return f"its process was killed by {signal.Signals(-code).name}"
        return f"its process ended with code {code}"


class HostedEngine:
    """The Engine that a Host runs. Only its reader thread receives; a writer sends, so that nobody waits for a step."""

    def __init__(self, host: Host, loaded: Message, options: OpenVinoOptions, parsers: Parsers) -> None:
        """`loaded`: what Host.load returned."""
        info, eos_ids, defaults, self.prefix_tokens = loaded
        self.stall_s = options.stall_s
        self.info = ModelInfo(*info)
        self.eos_ids: tuple[int, ...] = eos_ids
        self.defaults = Sampling(*defaults)
        self._host, self._parsers, self._on_cpu = host, parsers, options.device == "CPU"
        self._lock = threading.Lock()
        self._load = Load(max_running=options.max_running)
        self._pending = 0  # requests without a last row, that the engine has
        self._guides = GuideChecker(self._checked, options.guide_trial_s)
        self._checking: set[int] = set()  # requests whose guide is being tried: not the engine's work yet
        self._closing = False
        self._out: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._adapters: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="engine-reader", daemon=True)
        self._writer = threading.Thread(target=self._write, name="engine-writer", daemon=True)

    def start(self, on_step: Callable[[Step], None], on_death: Callable[[str], None]) -> None:
        self._on_step, self._on_death = on_step, on_death
        self._reader.start()
        self._writer.start()
        self._out.put(("start",))

    def submit(self, request: EngineRequest) -> None:
        if request.guide is None:
            self._send(request)
            return
        with self._lock:
            self._checking.add(request.id)
        self._guides.check(request)

    def _send(self, request: EngineRequest) -> None:
        with self._lock:
            self._pending += 1
        self._out.put(("submit", *pipe.from_request(request)))

    def _checked(self, request: EngineRequest, why: str, kind: str) -> None:
        """Called when the request's guide has been tried, by the thread that did so."""
        with self._lock:
            if request.id not in self._checking:
                return  # aborted meanwhile
            if not why:
                # Whoever aborts it from now on does so after this.
                self._checking.discard(request.id)
                self._pending += 1
                self._out.put(("submit", *pipe.from_request(request)))
                return
        self._end(Row(request.id, (), "error", error=why, kind=kind))

    def _end(self, row: Row) -> None:
        """Of a request that never came to the engine. Once."""
        with self._lock:
            if row.id not in self._checking:
                return
            self._checking.discard(row.id)
        self._on_step(Step([row], self.load()))

    def encode(self, request: EncodeRequest) -> None:
        raise NotImplementedError  # `info.tasks` does not name it

    def abort(self, request_id: int) -> None:
        with self._lock:
            if request_id not in self._checking:
                self._out.put(("abort", request_id))
                return
        self._guides.cancel(request_id)
        self._end(Row(request_id, (), "abort"))

    def parser(self, parsing: Parsing) -> OutputParser | None:
        return self._parsers.new(parsing)

    def set_adapters(self, adapters: Mapping[str, Path]) -> Mapping[str, str]:
        self._out.put(("adapters", {name: str(folder) for name, folder in adapters.items()}))
        return dict(self._adapters.get())

    def load(self) -> Load:
        with self._lock:
            return replace(self._now(), cpu_s=self._host.cpu_s() if self._on_cpu else 0.0)

    def close(self) -> None:
        self._closing = True
        self._guides.close()
        self._out.put(("close",))
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._host.process.wait(_CLOSE_S)
        self._host.end()

    def _now(self) -> Load:
        """The load as of the last step, with what has been submitted since. Hold the lock."""
        running = min(self._load.running, self._pending)
        return replace(self._load, running=running, waiting=self._pending - running)

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # the reader sees it too
            while True:
                self._host.line.send(*self._out.get())

    def _read(self) -> None:
        while (message := self._host.line.receive()) is not None:
            what, *more = message
            match what:
                case "step":
                    self._on_step(self._stepped(pipe.to_step(tuple(more))))
                case "adapters":
                    self._adapters.put(more[0])
                case _:
                    self._closing = True
                    self._on_death(more[0])
        self._adapters.put(())  # for who waits
        if not self._closing:
            self._on_death(f"The OpenVINO engine is gone: {self._host.end()}.")

    def _stepped(self, step: Step) -> Step:
        with self._lock:
            self._pending -= sum(row.finish is not None for row in step.rows)
            self._load = step.load
            step.load = self._now()
        return step
