"""All streams of a replica: from engine steps to the frames of the proxies' sessions.

The engine's thread hands each step over once; everything else here runs on the event loop and belongs to it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Mapping, Set
from typing import Any

import structlog

from headrace import errors
from headrace.core.streams import Failure, Finished, Rejected, Started, Submit
from headrace.replica.engine import EncodeRequest, Engine, EngineRequest, Row, Step
from headrace.replica.frontend import FrontEnd
from headrace.replica.kept import Kept
from headrace.replica.prefixes import Prefixes
from headrace.replica.prepared import Prepared, PreparedEncoding, PreparedResult, Ready
from headrace.replica.reading import Reading
from headrace.replica.rows import Stream, put_parsed, put_text, read, take_more, take_values
from headrace.replica.session import Session

log = structlog.get_logger()

HEARTBEAT_S = 0.5
"""A session hears something at least every second: checked this often, sent when it was silent for as long."""

STARTED_S = 0.01
"""How long a proxy may not know that a stream has begun, if no token comes before."""


class Streams:
    """Submits, aborts and the steps' rows, in one place."""

    def __init__(self, engine: Engine, front_end: FrontEnd, max_waiting: int, fingerprint: str = "") -> None:
        self._engine, self._front_end = engine, front_end
        self._max_waiting = max_waiting
        self._fingerprint = fingerprint
        self._sessions: set[Session] = set()
        self._kept = Kept(self._expired)
        self._prefixes = Prefixes(engine.prefix_tokens, self._tell_prefixes) if engine.prefix_tokens else None
        self._by_engine_id: dict[int, Stream] = {}
        self._fresh: set[int] = set()  # at the engine, and no token yet: it takes their prompts in
        self._ids = itertools.count(1)
        self._loop = asyncio.get_running_loop()
        self._reading = Reading(front_end.prepare)
        self._warmed: asyncio.Future[str] = self._loop.create_future()
        self._empty = asyncio.Event()
        self._empty.set()
        self.draining = False
        self.adapters: Set[str] = frozenset()  # that new streams may use
        self.on_adapter_left: Callable[[], object] = lambda: None  # a stream that used one has ended

    # --- engine ---

    def on_step(self, step: Step) -> None:
        """Called by the engine's thread."""
        self._loop.call_soon_threadsafe(self._take, step)

    async def warm_up(self) -> str:
        """Wait for a first token, or first numbers; "" when they are there, else why there are none."""
        request = self._front_end.warm_up(0)
        self._run(request)
        return await self._warmed

    def _run(self, request: EngineRequest | EncodeRequest) -> None:
        if isinstance(request, EngineRequest):
            self._engine.submit(request)
        else:
            self._engine.encode(request)

    def _take(self, step: Step) -> None:
        touched: set[Session] = set()
        codec = self._front_end.codec
        if self._fresh:
            self._fresh.difference_update([row.id for row in step.rows])
            for session in self._sessions:
                session.columns.took_prompts = True
        for row in step.rows:
            stream = self._by_engine_id.get(row.id)
            if stream is None:
                if row.id == 0:
                    self._warm(row)
                continue
            touched.add(stream.session)
            try:
                finished = stream.take(stream, row, codec)
                if finished is not None:
                    if row.finish is None:
                        self._engine.abort(stream.engine_id)
                    self._finish(stream, finished)
            except Exception:  # must end this stream, and no other
                log.exception("row_failed", stream=stream.number, proxy=stream.session.proxy_id)
                self._engine.abort(stream.engine_id)
                failure = Failure("internal", "The replica failed to make text of the answer; its log says more.")
                self._finish(stream, Finished(stream.number, "error", 0, failure))
        now = self._loop.time()
        for session in touched:
            session.send(step.load, self.draining, now)

    def _warm(self, row: Row) -> None:
        if self._warmed.done():
            return
        if row.tokens or row.values:
            self._warmed.set_result("")
        elif row.finish:
            self._warmed.set_result(f"The model produced no token: {row.error or row.finish}")

    def _finish(self, stream: Stream, finished: Finished) -> None:
        stream.session.columns.finished.append(finished)
        if stream.ids is not None:
            self._kept.finished(stream, finished)
        if stream.leaf and self._prefixes:
            self._prefixes.grew(stream.leaf, stream.position)
        self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        stream.session.streams.pop(stream.number, None)
        self._by_engine_id.pop(stream.engine_id, None)
        self._fresh.discard(stream.engine_id)
        if not self._by_engine_id:
            self._empty.set()
        if stream.adapter:
            self.on_adapter_left()

    # --- sessions ---

    def open(self, proxy_id: str) -> Session:
        session = Session(proxy_id)
        self._sessions.add(session)
        if self._prefixes:
            session.columns.prefixes.update(dict.fromkeys(self._prefixes.held(), True))
        keeps = self._prefixes is not None
        session.send(self._engine.load(), self.draining, self._loop.time(), self._fingerprint, keeps)
        return session

    def _tell_prefixes(self, changes: Mapping[int, bool]) -> None:
        """With the next frame of each session, whenever that is: no frame is worth being sent for it alone."""
        for session in self._sessions:
            session.columns.prefixes.update(changes)

    def close(self, session: Session) -> None:
        """The proxy is gone: end its streams at the engine, but for those that are kept for another."""
        self._sessions.discard(session)
        session.end()
        for stream in list(session.streams.values()):
            if stream.ids is None or not self._kept.detach(stream):
                self._engine.abort(stream.engine_id)
                self._forget(stream)

    def _expired(self, stream: Stream) -> None:
        """Nobody took it over."""
        self._engine.abort(stream.engine_id)
        self._forget(stream)

    def submit(self, session: Session, submit: Submit, at_once: bool = True) -> Coroutine[Any, Any, None] | None:
        """Start a stream, or reject it. Returns what is left to be done for that, beside other work; None: nothing.

        `at_once`: read it here and now if that takes a moment only.
        """
        stream = Stream(submit.stream, session, next(self._ids), adapter=submit.adapter)
        try:
            if submit.stream in session.streams:
                raise errors.InvalidRequest(f"Stream {submit.stream} runs already in this session.")
            self._check_room()
            self._check_adapter(submit.adapter)
            session.streams[stream.number] = self._by_engine_id[stream.engine_id] = stream
            self._empty.clear()
            if not (at_once and self._front_end.quick(submit)):
                return self._submit_later(stream, submit)
            prepared = self._front_end.prepare(stream.engine_id, submit)
        except Exception as e:
            self._reject(stream, submit, e)
            return None
        self._start(stream, submit, prepared)
        return None

    async def _submit_later(self, stream: Stream, submit: Submit) -> None:
        try:
            prepared = await self._read(stream, submit)
        except Exception as e:
            if stream.session.streams.get(stream.number) is stream:
                self._reject(stream, submit, e)
            return
        # None, or another one: it was aborted meanwhile, or the proxy is gone.
        if prepared is not None and stream.session.streams.get(stream.number) is stream:
            self._start(stream, submit, prepared)

    async def _read(self, stream: Stream, submit: Submit) -> Ready | None:
        # Of who has no key a proxy does not say more.
        return await self._reading.ready(stream.engine_id, submit, submit.owner or stream.session.proxy_id)

    def _start(self, stream: Stream, submit: Submit, prepared: Ready) -> None:
        session = stream.session
        if isinstance(prepared, Prepared):
            self._kept.begin(stream, submit, prepared.prompt_tokens)
            if self._prefixes:
                stream.leaf = self._prefixes.took(submit.prefix, prepared.prompt_tokens)
        self._begin(stream, prepared)
        if stream.number in session.streams:
            # The next step's frame says it as well, and a frame costs both sides more than what is in it.
            session.send_within(STARTED_S, self._send)
        else:
            self._send(session)

    async def take_over(self, session: Session, submit: Submit) -> None:
        """Go on, for another proxy, with a stream whose own was lost; its client has had a part of what there is."""
        stream = Stream(submit.stream, session, next(self._ids), adapter=submit.adapter)
        entry = self._kept.find(submit)
        try:
            if entry is None or submit.stream in session.streams:
                raise errors.NotHere("This replica does not keep that stream.")
            stream.engine_id = entry.stream.engine_id
            prepared = await self._read(stream, entry.submit_at(submit))
            if self._kept.find(submit) is not entry or not isinstance(prepared, Prepared):
                raise errors.NotHere("This replica does not keep that stream any more.")
        except Exception as e:
            self._reject(stream, submit, e)
            return
        had = submit.take_over or 0
        if (old := entry.stream).session is not self._kept.limbo and not entry.finished:  # it only seemed lost
            old.session.streams.pop(old.number, None)
            old.session.columns.finished.append(Finished(old.number, "abort"))
            self._send(old.session)
        stream.prepared, stream.position = prepared, had
        if not prepared.plain:
            stream.take = take_more
        session.columns.started.append(Started(stream.number, entry.prompt_tokens, delivered=entry.ids[:had]))
        put_parsed(stream, prepared.parsed)
        ended = entry.finished
        if not ended:
            session.streams[stream.number] = self._by_engine_id[stream.engine_id] = stream
        missed = Row(stream.engine_id, tuple(entry.ids[had:]), ended and ended.reason)
        if ended:
            missed.cached_tokens = ended.cached_tokens
        finished = stream.take(stream, missed, self._front_end.codec) if missed.tokens or ended else None
        self._kept.taken(entry, stream)
        if finished and ended:
            session.columns.finished.append(finished)
        elif finished:
            self._engine.abort(stream.engine_id)
            self._finish(stream, finished)
        self._send(session)

    def _begin(self, stream: Stream, ready: Ready) -> None:
        columns = stream.session.columns
        if isinstance(ready, PreparedResult):
            columns.started.append(Started(stream.number, ready.prompt_tokens))
            columns.results.append(ready.result)
            self._finish(stream, Finished(stream.number, "stop"))
            return
        stream.prepared = ready
        if isinstance(ready, PreparedEncoding):
            stream.take = take_values
            columns.started.append(Started(stream.number, ready.prompt_tokens))
            self._engine.encode(ready.request)
            return
        stream.position = ready.position
        if not ready.plain:
            stream.take = take_more
        columns.started.append(Started(stream.number, ready.prompt_tokens, ready.echo))
        put_parsed(stream, ready.parsed)
        if ready.finish:
            tail = "" if ready.finish == "stop" else ready.answer.finish()
            put_text(stream, read(stream, ready, tail, (), last=True))
            self._finish(stream, Finished(stream.number, ready.finish))
        else:
            self._fresh.add(stream.engine_id)
            self._engine.submit(ready.request)

    def _check_room(self) -> None:
        if self.draining:
            raise errors.Draining("This replica is draining and takes nothing new.")
        load = self._engine.load()
        # What has come since the last step waits for the next, and not for one that runs to end.
        if load.waiting >= self._max_waiting + max(0, load.max_running - load.running):
            raise errors.Overloaded(
                f"This replica has {self._max_waiting} requests waiting already.", retry_after_s=1.0
            )

    def _check_adapter(self, name: str) -> None:
        if name and name not in self.adapters:
            raise errors.NotLoaded(f"This replica has no adapter {name[:100]!r} loaded.", retry_after_s=1.0)

    def adapters_in_use(self) -> Set[str]:
        """Names of the adapters that running streams use."""
        return {s.adapter for s in self._by_engine_id.values() if s.adapter}

    def refuse(self, session: Session, number: int, e: errors.HeadraceError) -> None:
        """Reject a stream whose submit cannot be read."""
        failure = Failure(e.kind, e.message, e.param, e.retry_after_s, e.code)
        session.columns.rejected.append(Rejected(number, failure))
        self._send(session)

    def _reject(self, stream: Stream, submit: Submit, e: Exception) -> None:
        self._forget_if_ours(stream)
        if not isinstance(e, errors.HeadraceError):
            log.error("submit_failed", request_id=submit.request_id, exc_info=e)
            e = errors.HeadraceError("The replica failed to read the request; its log says more.")
        failure = Failure(e.kind, e.message, e.param, e.retry_after_s, e.code)
        stream.session.columns.rejected.append(Rejected(stream.number, failure))
        self._send(stream.session)

    def _forget_if_ours(self, stream: Stream) -> None:
        if self._by_engine_id.get(stream.engine_id) is stream:
            self._forget(stream)

    def abort(self, session: Session, number: int) -> None:
        """End a stream; one that is unknown has ended already."""
        stream = session.streams.get(number)
        if stream is None:
            return
        if stream.prepared is None:
            self._reading.forget(stream.engine_id)
            self._finish(stream, Finished(number, "abort"))
            self._send(session)
        else:
            self._engine.abort(stream.engine_id)

    def fail_all(self, failure: Failure) -> None:
        """End every stream with an error: the engine is dead, or the time to drain is over."""
        for stream in list(self._by_engine_id.values()):
            self._engine.abort(stream.engine_id)
            self._finish(stream, Finished(stream.number, "error", 0, failure))
        for session in self._sessions:
            self._send(session)

    # --- keeping in touch ---

    def _send(self, session: Session) -> None:
        session.send(self._engine.load(), self.draining, self._loop.time())

    async def heartbeat(self) -> None:
        """Send the load to every session that has heard nothing. Runs until cancelled."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            now = self._loop.time()
            for session in self._sessions:
                if now - session.sent_at >= HEARTBEAT_S:
                    self._send(session)

    def drain(self) -> None:
        """Take nothing new, and tell all proxies."""
        self.draining = True
        for session in self._sessions:
            self._send(session)

    async def wait_empty(self) -> None:
        """Return when no stream is left."""
        await self._empty.wait()

    def stop_reading(self) -> None:
        """Read no more prompts."""
        self._reading.close()
        self._front_end.close()

    async def flush(self, timeout_s: float) -> None:
        """Wait until all frames are written, or the time has passed."""
        try:
            async with asyncio.timeout(timeout_s):
                for session in list(self._sessions):
                    await session.written()
        except TimeoutError:
            pass
