"""A replica's life: listen, load, warm up, serve, drain, end. Every way to fail becomes one sentence."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import structlog

from headrace.core.causes import Cause, of_error
from headrace.core.phase import Phase
from headrace.core.specfile import SpecFile, parse_spec
from headrace.core.steps import Steps
from headrace.core.streams import Failure
from headrace.core.types import ModelSpec, ReplicaStatus
from headrace.errors import HeadraceError, ReplicaGone, UserError
from headrace.process import ENDPOINT_ENV, ProcessRecord, told_to_stop, write_atomic
from headrace.replica.adapters import Adapters
from headrace.replica.engine import Engine
from headrace.replica.engines.hosted import Host
from headrace.replica.frontend import FrontEnd, open_front_end
from headrace.replica.opening import Opened, open_engine, prepare
from headrace.replica.renderer import Renderer
from headrace.replica.service import ReplicaServicer
from headrace.replica.status import StatusBoard
from headrace.replica.streams import Streams
from headrace.replica.weights import Cache
from headrace.rpc.channel import bind, new_server
from headrace.rpc.credentials import from_environment
from headrace.rpc.v1 import replica_pb2_grpc
from headrace.settings import ALONE_S

log = structlog.get_logger()

MAX_WAITING = 1024
_TELL_S = 0.5  # how long a failed replica stays to say so
_FLUSH_S = 0.3
_WRITE_AGAIN_S = 1.0

T = TypeVar("T")


def _alone_s() -> float:
    """How long to go on while nobody needs us, as the scheduler says."""
    return float(os.environ.get("HEADRACE_ALONE_S") or ALONE_S)


def _endpoint_pipe() -> int | None:
    """The descriptor that the scheduler gave us to say where we listen. Ours alone: what we start does not get it."""
    number = os.environ.pop(ENDPOINT_ENV, None)
    if number is None:
        return None
    os.set_inheritable(int(number), False)
    return int(number)


class Failed(Exception):
    """The replica cannot serve. The message is for people."""

    def __init__(self, reason: str, cause: Cause = Cause.CRASH) -> None:
        super().__init__(reason)
        self.reason, self.cause = reason, cause


async def run(directory: Path) -> int:
    """Be the replica that `directory`/spec.json describes, until told to end; the exit code. For the main task."""
    pipe = _endpoint_pipe()
    try:
        spec_file = parse_spec((directory / "spec.json").read_text())
    except (OSError, ValueError) as e:
        return _write_failure(directory, Failed(f"Cannot read {directory / 'spec.json'}: {e}", Cause.UNUSABLE))
    host = prepare(spec_file.spec.model, spec_file.spec.resources)
    replica = Replica(spec_file, directory, host, pipe)
    async with asyncio.TaskGroup() as tasks:
        life = tasks.create_task(replica.live())
        ends = [tasks.create_task(told_to_stop()), tasks.create_task(replica.alone(_alone_s()))]
        record = tasks.create_task(replica.record_endpoint())
        await asyncio.wait({life, *ends}, return_when=asyncio.FIRST_COMPLETED)
        for task in (life, *ends, record):
            task.cancel()
    failed = None if life.cancelled() else life.result()
    if failed is None:
        log.info("stopping", why=next((e.result() for e in ends if not e.cancelled()), "drained"))
        await replica.stop()
        return 0
    log.error("replica_failed", reason=failed.reason, cause=failed.cause.value)
    await replica.tell(failed)
    return _write_failure(directory, failed)


class Replica:
    """The parts of one replica process."""

    def __init__(self, spec_file: SpecFile, directory: Path, host: Host | None, pipe: int | None = None) -> None:
        """`pipe`: a descriptor to say into where it listens, to the scheduler that started it."""
        self._file, self._directory, self._host = spec_file, directory, host
        self._pipe = pipe
        self._endpoint: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        spec = spec_file.spec
        self._record = ProcessRecord.of(os.getpid())
        self._board = StatusBoard(
            ReplicaStatus(
                spec.replica_id,
                spec.deployment,
                spec.revision,
                Phase.STARTING,
                pid=os.getpid(),
                gpu_indices=spec.gpu_indices,
                started_at=time.time(),
            )
        )
        self._service = ReplicaServicer(self._board)
        self._server = new_server()
        replica_pb2_grpc.add_ReplicaServiceServicer_to_server(self._service, self._server)
        self._engine: Engine | None = None
        self._cache = Cache(Path(spec_file.cache_dir), spec_file.cache_limit_bytes)
        self._death: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def alone(self, limit_s: float) -> str:
        """Return when nobody has needed this replica for so long: then it would run for ever, and for nobody."""
        return await self._service.presence.alone(limit_s)

    async def live(self) -> Failed | None:
        """Listen, load and serve until drained (None), or until the model cannot be loaded or the engine dies."""
        try:
            await self._listen()
            opened, front_end = await self._load()
            await self._serve(opened.engine, front_end)
        except Failed as e:
            return e
        except Exception as e:
            log.exception("replica_crashed")
            return Failed(f"The replica failed: {_one_line(e)}", of_error(e))
        return None

    async def _serve(self, engine: Engine, front_end: FrontEnd) -> None:
        self._engine = engine
        streams = Streams(engine, front_end, MAX_WAITING, _fingerprint(self._file.spec.model, engine.info.engine))
        loop = asyncio.get_running_loop()
        engine.start(streams.on_step, lambda why: _hand_over(loop, self._died, why))
        self._board.change(activity="warming up", progress=-1.0)
        if why := await self._or_death(streams.warm_up()):
            raise Failed(why)
        self._board.load = engine.load
        # Much has been loaded, and all of it stays: the collector need not look at it again while tokens wait.
        gc.collect()
        gc.freeze()
        self._service.streams = streams
        wanted = self._file.spec.adapters
        adapters = self._service.adapters = Adapters(engine, streams, self._board, self._cache, wanted)
        if self._board.now.phase is Phase.LOADING:
            self._board.change(Phase.READY, activity="", progress=-1.0, model=front_end.info)
        log.info("ready", engine=engine.info.engine, context_tokens=engine.info.context_tokens)
        await self._or_death(
            self._service.drained.wait(), streams.heartbeat(), adapters.run(), self._watch_steps(engine)
        )

    async def _watch_steps(self, engine: Engine) -> None:
        steps, clock = Steps(), asyncio.get_running_loop().time
        every_s = min(1.0, engine.stall_s / 4)
        while True:
            await asyncio.sleep(every_s)
            load = engine.load()
            if steps.stalled_s(load, clock()) >= engine.stall_s:
                count = load.running + load.waiting
                self._died(f"The engine has made no step for {engine.stall_s:g} s while {count} requests run.")
                return

    async def _listen(self) -> None:
        spec_file = self._file
        try:
            port = bind(self._server, spec_file.host, 0, from_environment(), "--host")
        except UserError as e:
            raise Failed(e.message, Cause.BUSY) from e
        await self._server.start()
        host = f"[{spec_file.host}]" if ":" in spec_file.host else spec_file.host
        address = f"{host}:{port}"
        start_time = self._record.start_time if self._record else 0.0
        endpoint = json.dumps({"address": address, "pid": os.getpid(), "start_time": start_time})
        if self._pipe is not None:
            with contextlib.suppress(OSError):  # a scheduler that is gone; the next reads the file
                os.write(self._pipe, f"{endpoint}\n".encode())
            os.close(self._pipe)
        self._endpoint.set_result(endpoint)
        self._board.change(Phase.LOADING, address=address, activity="starting the engine")

    async def record_endpoint(self) -> None:
        """Once it listens, write where to endpoint.json for whoever adopts it; on a full disk when there is room."""
        endpoint, told = await self._endpoint, False
        while True:
            try:
                write_atomic(self._directory / "endpoint.json", endpoint)
                return
            except OSError as e:
                if not told:
                    log.error("endpoint_unwritten", error=str(e))
                told = True
            await asyncio.sleep(_WRITE_AGAIN_S)

    async def _load(self) -> tuple[Opened, FrontEnd]:
        loop, spec = asyncio.get_running_loop(), self._file.spec

        def report(activity: str, progress: float) -> None:
            _hand_over(loop, self._activity, activity, progress)

        cache = self._cache

        def load() -> tuple[Opened, FrontEnd]:
            adapters = bool(spec.adapters)
            opened = open_engine(spec.model, spec.resources, cache, report, adapters=adapters, host=self._host)
            cache.trim()
            e = opened.engine
            return opened, open_front_end(spec.model, opened.model, e.info, e.defaults, e.eos_ids, e.parser, Renderer)

        try:
            return await _in_thread(load)
        except HeadraceError as e:
            raise Failed(e.message, of_error(e)) from e
        except Exception as e:
            log.exception("load_failed")
            raise Failed(f"Loading the model failed: {_one_line(e)}", of_error(e)) from e

    def _activity(self, activity: str, progress: float) -> None:
        now = self._board.now
        # A step of less than a percent is not news.
        if now.phase is Phase.LOADING and (activity != now.activity or abs(progress - now.progress) >= 0.01):
            self._board.change(activity=activity, progress=progress)

    def _died(self, why: str) -> None:
        if not self._death.done():
            self._death.set_result(why)

    async def _or_death(self, work: Coroutine[Any, Any, T], *beside: Coroutine[Any, Any, None]) -> T:
        """The result of `work`, with `beside` running meanwhile; Failed if the engine dies first."""
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(work)
            others = [tasks.create_task(c) for c in beside]
            await asyncio.wait({task, self._death}, return_when=asyncio.FIRST_COMPLETED)
            for other in (task, *others):
                other.cancel()
        if self._death.done():
            raise Failed(self._death.result())
        return task.result()

    async def tell(self, failed: Failed) -> None:
        """Say through the watch, and to every stream, that this replica has failed."""
        self._board.change(Phase.FAILED, reason=failed.reason, cause=failed.cause, activity="", progress=-1.0)
        if streams := self._service.streams:
            streams.drain()
            streams.fail_all(
                Failure(ReplicaGone.kind, f"The replica died: {failed.reason}", code=ReplicaGone.default_code)
            )
            await streams.flush(_FLUSH_S)
        _write_failure(self._directory, failed)
        await asyncio.sleep(_TELL_S)

    async def stop(self) -> None:
        """End every stream, close the engine and stop listening."""
        await self._service.drain(0.0)
        if streams := self._service.streams:
            streams.stop_reading()
        if self._engine is not None:
            await _in_thread(self._engine.close)
        await self._server.stop(_FLUSH_S)


def _fingerprint(model: ModelSpec, engine: str) -> str:
    """What makes a replica's answers what they are: replicas with the same can take up each other's streams."""
    said = json.dumps({**asdict(model), "engine": engine}, sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _write_failure(directory: Path, failed: Failed) -> int:
    """failure.json, for a scheduler that was not watching; the exit code."""
    try:
        write_atomic(directory / "failure.json", json.dumps({"reason": failed.reason, "cause": failed.cause}))
    except OSError as e:
        log.error("cannot_write_failure", error=str(e), reason=failed.reason)
    return 1


async def _in_thread(work: Callable[[], T]) -> T:
    """Run slow work in a thread that does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if result.done():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(value)  # type: ignore[arg-type]

    def body() -> None:
        try:
            value = work()
        except Exception as e:
            _hand_over(loop, settle, None, e)
        else:
            _hand_over(loop, settle, value, None)

    threading.Thread(target=body, daemon=True).start()
    return await result


def _hand_over(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *args: object) -> None:
    """Call something on the loop from any thread; nothing happens when the loop has ended."""
    try:
        loop.call_soon_threadsafe(call, *args)
    except RuntimeError:
        pass


def _one_line(e: BaseException) -> str:
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    return f"{type(e).__name__}: {lines[-1][:300]}" if lines else type(e).__name__
