"""Streams that outlive their proxy for a while, so that another proxy can take them over."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b

from headrace.core.streams import Finished, Resume, Submit, Task
from headrace.core.types import Load
from headrace.replica.rows import Stream
from headrace.replica.session import Session

MAX_KEPT = 4096
_Key = tuple[str, str, bytes]


class Limbo(Session):
    """Where a stream is whose proxy was lost: what it brings is in its ids, the frames are nobody's."""

    def send(
        self, load: Load | None, draining: bool, now: float, fingerprint: str = "", keeps_prefixes: bool = False
    ) -> None:
        self.discard()


@dataclass(slots=True)
class Entry:
    """One kept stream. `finished`: it has ended, and the client may not know yet."""

    submit: Submit
    stream: Stream
    prompt_tokens: int
    ids: array[int]
    finished: Finished | None = None
    timer: asyncio.TimerHandle | None = None

    def submit_at(self, asked: Submit) -> Submit:
        """What prepares the state of a reader who has had as much as `asked` says."""
        chars = asked.resume or Resume((), 0)
        resume = Resume(self.ids[: asked.take_over], chars.text_chars, chars.reasoning_chars)
        return replace(self.submit, stream=asked.stream, resume=resume, take_over=asked.take_over)


class Kept:
    """By caller, request id and nonce: who has not seen a stream gets no part of it.

    `on_expired` is called with a stream that nobody took over in time.
    """

    def __init__(self, on_expired: Callable[[Stream], None]) -> None:
        self.limbo = Limbo("")
        self._entries: dict[_Key, Entry] = {}
        self._by_engine_id: dict[int, Entry] = {}
        self._on_expired = on_expired
        self._loop = asyncio.get_running_loop()

    def begin(self, stream: Stream, submit: Submit, prompt_tokens: int) -> None:
        """Keep the ids of a stream from its begin on, if it is to be and can be kept.

        Log-probabilities are not kept, and a tool call that the client has half of cannot be told again.
        """
        if not submit.keep_s or submit.task is not Task.GENERATE:
            return
        if old := self._entries.get(_key(submit)):
            if old.timer is None:
                return  # two that run have the same id: only the first can be taken over
            self._expire(old)  # left behind when the stream moved on, perhaps to here
        if submit.tools_json or submit.sampling.logprobs is not None or len(self._entries) >= MAX_KEPT:
            return
        ids = array("I", submit.resume.token_ids if submit.resume else ())
        stream.ids = ids
        entry = Entry(replace(submit, resume=None, prefix=()), stream, prompt_tokens, ids)
        self._entries[_key(submit)] = self._by_engine_id[stream.engine_id] = entry

    def detach(self, stream: Stream) -> bool:
        """The proxy is gone: whether the stream goes on without it."""
        entry = self._by_engine_id.get(stream.engine_id)
        if entry is None:
            return False
        stream.session = self.limbo
        self._wait(entry)
        return True

    def finished(self, stream: Stream, finished: Finished) -> None:
        """The stream has ended; its end is kept for a client that has not got it."""
        entry = self._by_engine_id.pop(stream.engine_id, None)
        if entry is None:
            return
        if finished.reason in ("stop", "length"):
            entry.finished = finished
            self._wait(entry)
        else:
            self._drop(entry)

    def find(self, asked: Submit) -> Entry | None:
        """The stream that `asked` wants to take over."""
        entry = self._entries.get(_key(asked))
        if entry is None or _essence(asked) != _essence(entry.submit) or (asked.take_over or 0) > len(entry.ids):
            return None
        return entry

    def taken(self, entry: Entry, stream: Stream) -> None:
        """Another proxy has it now."""
        if entry.timer:
            entry.timer.cancel()
            entry.timer = None
        entry.stream = stream
        stream.ids = entry.ids
        if entry.finished:
            self._wait(entry)

    def _wait(self, entry: Entry) -> None:
        if entry.timer:
            entry.timer.cancel()
        entry.timer = self._loop.call_later(entry.submit.keep_s, self._expire, entry)

    def _expire(self, entry: Entry) -> None:
        self._drop(entry)
        if entry.finished is None:
            self._on_expired(entry.stream)

    def _drop(self, entry: Entry) -> None:
        if entry.timer:
            entry.timer.cancel()
        self._entries.pop(_key(entry.submit), None)
        self._by_engine_id.pop(entry.stream.engine_id, None)


def _key(s: Submit) -> _Key:
    # The nonce's digest: how long it takes to find that there is none tells nothing of those that there are.
    return s.owner, s.request_id, blake2b(s.nonce.encode(), digest_size=16).digest()


def _essence(s: Submit) -> Submit:
    """What makes two submits the same request."""
    return replace(s, stream=0, resume=None, take_over=None, received_unix_s=0, keep_s=0.0, prefix=())
