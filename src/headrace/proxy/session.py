"""The frame session between this proxy and one replica.

One reader per replica hands each row of a frame straight to its stream: no task switch, lock or future per token.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import grpc
import structlog

from headrace.core.prefix import BLOCK_BYTES
from headrace.core.streams import Failure, Parsed, Submit
from headrace.core.types import Endpoint, Load
from headrace.errors import HeadraceError, ReplicaGone
from headrace.proxy.changed import Changed
from headrace.proxy.extras import Extra, PromptLogprobs
from headrace.proxy.prefixes import Prefixes
from headrace.proxy.pulse import Pulse
from headrace.proxy.silence import Silence, Silent, Watch
from headrace.rpc import convert, convert_streams
from headrace.rpc.channel import Connection, from_rpc
from headrace.rpc.credentials import Credentials
from headrace.rpc.roles import Role
from headrace.rpc.v1 import replica_pb2
from headrace.rpc.v1.replica_pb2_grpc import ReplicaServiceStub

log = structlog.get_logger()

_BACK_OFF_S = (0.1, 1.0)
_TOGETHER_BYTES = 64 * 1024  # of messages that leave as one; one that is larger takes none with it


class Receiver(Protocol):
    """What a session tells one stream. After `finished`, `rejected` or `gone` nothing more comes."""

    def started(self, prompt_tokens: int, echo: str = "", delivered: Sequence[int] = ()) -> None: ...
    def extra(self, item: Extra) -> None: ...
    def delta(self, now: float, position: int, ids: Sequence[int], text: str, logprobs: Any) -> None: ...
    def token(self, now: float, position: int, token_id: int, text: str) -> None:
        """A delta of one token, which is what most are."""
        ...

    def finished(self, reason: str, cached_tokens: int, failure: Failure | None) -> None: ...
    def rejected(self, failure: Failure) -> None: ...
    def gone(self, error: HeadraceError) -> None: ...


def _blames(failure: Failure | None) -> bool:
    """Whether the replica failed, and not the request."""
    return failure is not None and failure.kind in (HeadraceError.kind, ReplicaGone.kind)


class _Retired(Exception):
    """Nobody needs the session any more."""


class Session:
    """One replica's session: opened, kept, opened again, until `retire` and the end of its last stream.

    `ready` once a frame has come, which proves that the peer is the replica that the table names.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        proxy_id: str,
        changed: Changed,
        silence: Silence,
        credentials: Credentials,
        *,
        others: Callable[[Session, bool], bool] = lambda session, same_kind: False,
        on_frame: Callable[[], None] = lambda: None,
    ) -> None:
        """`others`: whether there is another sound replica of the model; with True, one of the same kind.

        `on_frame`: called after every frame.
        """
        self.endpoint = endpoint
        self.load = Load()
        self.pulse = Pulse()
        self.prefixes = Prefixes()
        self.reserved = 0  # streams that are about to be submitted here
        self.fingerprint = ""
        self.ready = False
        self.draining = False
        self.retired = False
        self._closed = False
        self._proxy_id = proxy_id
        self._changed = changed
        self._watch = Watch(silence, endpoint.replica_id)
        self._credentials = credentials
        self._streams: dict[int, Receiver] = {}
        self._last_stream = 0
        self._out: asyncio.Queue[replica_pb2.SessionRequest] = asyncio.Queue()
        self._wake = asyncio.Event()
        self._others = others
        self._after_frame = on_frame
        self._loop = asyncio.get_running_loop()

    @property
    def heard_at(self) -> float:
        """Loop time of the last frame."""
        return self._watch.heard_at if self.ready else 0.0

    @property
    def still_s(self) -> float:
        """How long nothing has shown that it works: no frame, or no step although it has requests."""
        return self._watch.still_s

    @property
    def suspect(self) -> bool:
        """Silent for long enough to be avoided."""
        return self._watch.suspect

    @property
    def in_flight(self) -> int:
        return len(self._streams)

    def submit(self, submit: Submit, receiver: Receiver) -> int:
        """Start a stream; `submit.stream` is replaced by the number returned. ReplicaGone if there is no session."""
        if not self.ready:
            raise ReplicaGone(f"Replica {self.endpoint.replica_id} cannot be reached.")
        self._last_stream += 1
        number = self._last_stream
        message = convert_streams.submit_to_pb(submit)
        message.submit.stream = number
        self._streams[number] = receiver
        blocks = message.ByteSize() / BLOCK_BYTES - self.prefixes.matched(submit.prefix)
        self.pulse.sent(number, self._loop.time(), max(blocks, 1.0))
        self.prefixes.sent(number, submit.prefix)
        self._out.put_nowait(message)
        return number

    def abort(self, number: int) -> None:
        """Tell the replica to stop a stream, and hear no more of it. Idempotent."""
        if self._streams.pop(number, None) is not None:
            self.pulse.ended(number, self._loop.time())
            self.prefixes.ended(number)
            self._out.put_nowait(replica_pb2.SessionRequest(abort=replica_pb2.Abort(stream=number)))
            self._check_idle()

    def retire(self) -> None:
        """The table no longer names this replica: no new streams; the session ends with the last one."""
        self.retired = True
        self._check_idle()

    def close(self) -> None:
        """End the session now, whatever runs in it; for the task of `run` to be cancelled beside.

        Cancelling alone may not do: when the session breaks at that moment, the error takes the cancellation's place.
        """
        self._closed = True
        self._wake.set()

    def _check_idle(self) -> None:
        if self.retired and not self._streams:
            self._wake.set()

    async def run(self) -> None:
        """Serve until retired. Never raises but for cancellation."""
        replica = self.endpoint.replica_id
        connection = Connection(self.endpoint.address, self._credentials, Role.NODE)
        delay, expected = _BACK_OFF_S[0], self._credentials.expected(Role.NODE)
        try:
            while not self._closed and not (self.retired and not self._streams):
                why = "it ended the session"
                try:
                    await self._serve(connection.channel())
                except* grpc.RpcError as group:
                    e = group.exceptions[0]
                    why = (
                        from_rpc(e, f"replica {replica}", expected).message if isinstance(e, grpc.RpcError) else str(e)
                    )
                except* _Retired:
                    why = "the session was closed"
                except* Silent as group:
                    why = str(group.exceptions[0])
                except* Exception:
                    log.exception("session_failed", replica=replica)
                    why = "the proxy failed to read from it"
                if self.ready:
                    delay = _BACK_OFF_S[0]
                    if not self._wake.is_set():
                        log.warning("replica_gone", replica=replica, why=why, streams=len(self._streams))
                self._lose(ReplicaGone(f"Replica {replica} stopped answering: {why}"))
                if self.retired or self._closed:
                    break
                try:
                    await asyncio.wait_for(self._wake.wait(), delay * random.uniform(0.5, 1.0))
                except TimeoutError:
                    delay = min(delay * 2, _BACK_OFF_S[1])
        finally:
            self._lose(ReplicaGone(f"The session with replica {replica} was closed."))
            await connection.close()

    def _lose(self, error: ReplicaGone) -> None:
        self.ready = self._watch.suspect = self.draining = False
        self._out = asyncio.Queue()
        self.pulse.lost(failed=not (self.retired or self._closed))
        self.prefixes.clear()
        streams, self._streams = self._streams, {}
        for receiver in streams.values():
            try:
                receiver.gone(error)
            except Exception:
                log.exception("stream_failed", replica=self.endpoint.replica_id)
        self._changed.notify()

    async def _serve(self, channel: grpc.aio.Channel) -> None:
        """One session, from hello to its end; raises why it ended in an ExceptionGroup."""
        call = ReplicaServiceStub(channel).Session()
        try:
            async with asyncio.TaskGroup() as tasks:
                self._watch.heard_at = self._loop.time()
                helpers = [
                    tasks.create_task(self._write(call, self._out)),
                    tasks.create_task(self._watch.run(lambda: bool(self._streams), self._another)),
                    tasks.create_task(self._stop()),
                ]
                async for frame in call:
                    self._on_frame(frame)
                for helper in helpers:
                    helper.cancel()
        finally:
            call.cancel()

    async def _write(self, call: Any, out: asyncio.Queue[replica_pb2.SessionRequest]) -> None:
        hello = replica_pb2.SessionHello(proxy_id=self._proxy_id, replica_id=self.endpoint.replica_id)
        await call.write(replica_pb2.SessionRequest(hello=hello))
        try:
            while True:
                message = await out.get()
                size = message.ByteSize()
                while size < _TOGETHER_BYTES and not out.empty():
                    message.more.append(out.get_nowait())
                    size += message.more[-1].ByteSize()
                await call.write(message)
        except asyncio.InvalidStateError:
            return  # the call has ended; the reader knows why

    async def _stop(self) -> None:
        await self._wake.wait()
        raise _Retired

    def _another(self, same_kind: bool) -> bool:
        return self._others(self, same_kind)

    def _on_frame(self, frame: replica_pb2.Frame) -> None:
        now = self._loop.time()
        told = frame.HasField("load")
        if told:
            self.load = convert.load_from_pb(frame.load)
        self._watch.heard(now, self.load if told else None)
        if frame.draining is not self.draining:
            self.draining = frame.draining
            self._changed.notify()
        if not self.ready:
            self.ready, self.fingerprint = True, frame.fingerprint
            self.prefixes.kept = frame.keeps_prefixes
            self._changed.notify()
        if frame.prefix_added or frame.prefix_removed:
            self.prefixes.told(frame.prefix_added, frame.prefix_removed)
        streams = self._streams
        self.pulse.frame(now, frame, self.load)
        for s in frame.started:
            if receiver := streams.get(s.stream):
                self._tell(s.stream, receiver.started, s.prompt_tokens, s.echo, s.delivered)
        parsed = [convert_streams.parsed_from_pb(x) for x in frame.parsed] if frame.parsed else ()
        if parsed or frame.prompt_logprobs:
            self._before_rows(frame, parsed)
        if frame.stream:
            self._rows(now, frame)
        for p in parsed:
            if p.tool_calls and (receiver := streams.get(p.stream)):
                self._tell(p.stream, receiver.extra, replace(p, reasoning=""))
        for r in frame.results:
            if receiver := streams.get(r.stream):
                self._tell(r.stream, receiver.extra, convert_streams.result_from_pb(r))
        for f in frame.finished:
            if receiver := streams.pop(f.stream, None):
                failure = convert_streams.failure_from_pb(f.error) if f.HasField("error") else None
                self.pulse.ended(f.stream, now, failed=_blames(failure))
                self.prefixes.ended(f.stream)
                self._tell(f.stream, receiver.finished, f.reason, f.cached_tokens, failure)
        for r in frame.rejected:
            if receiver := streams.pop(r.stream, None):
                failure = convert_streams.failure_from_pb(r.error)
                self.pulse.ended(r.stream, now, failed=_blames(failure) or None)
                self.prefixes.ended(r.stream)
                self._tell(r.stream, receiver.rejected, failure)
        if self.retired:
            self._check_idle()
        self._after_frame()

    def _rows(self, now: float, frame: replica_pb2.Frame) -> None:
        streams, ids, counts = self._streams, list(frame.token_id), list(frame.count)
        if len(ids) == len(counts) and min(counts) == 1 and not frame.logprobs:
            for number, position, token_id, text in zip(frame.stream, frame.position, ids, frame.text, strict=True):
                if (receiver := streams.get(number)) is not None:
                    try:
                        receiver.token(now, position, token_id, text)
                    except Exception:
                        self._broken(number, receiver)
            return
        logprobs = dict(convert_streams.frame_logprobs_from_pb(frame)) if frame.logprobs else {}
        at = 0
        for number, position, count, text in zip(frame.stream, frame.position, counts, frame.text, strict=True):
            if (receiver := streams.get(number)) is not None:
                try:
                    receiver.delta(now, position, ids[at : at + count], text, logprobs.get(number))
                except Exception:
                    self._broken(number, receiver)
            at += count

    def _before_rows(self, frame: replica_pb2.Frame, parsed: Sequence[Parsed]) -> None:
        """What stands before the text of the same frame: the prompt, and reasoning."""
        for number, tokens in convert_streams.prompt_logprobs_from_pb(frame):
            if receiver := self._streams.get(number):
                self._tell(number, receiver.extra, PromptLogprobs(tokens))
        for p in parsed:
            if p.reasoning and (receiver := self._streams.get(p.stream)):
                self._tell(p.stream, receiver.extra, replace(p, tool_calls=()))

    def _tell(self, number: int, what: Any, *args: object) -> None:
        try:
            what(*args)
        except Exception:
            log.exception("stream_failed", replica=self.endpoint.replica_id, stream=number)

    def _broken(self, number: int, receiver: Receiver) -> None:
        """Our own handling of one stream failed: it ends, the others go on."""
        log.exception("stream_failed", replica=self.endpoint.replica_id, stream=number)
        self.abort(number)
        self._tell(number, receiver.gone, HeadraceError("The proxy failed on this stream; its log says why."))
