"""What a replica and the process of its engine say to each other, over a socket that only they have.

A message is a tuple of plain values in Python's marshal form, after its length: both ends are the same program.
"""

from __future__ import annotations

import marshal
import socket
import struct
import threading
from array import array
from dataclasses import fields
from typing import Any

from headrace.core.streams import Guide, Sampling
from headrace.core.types import Load
from headrace.replica.engine import EngineRequest, Parsing, Row, Step

Message = tuple[Any, ...]

_LENGTH = struct.Struct("<I")
_BUFFER_BYTES = 64 * 1024
_LOAD = [f.name for f in fields(Load)]
_SAMPLING = [f.name for f in fields(Sampling)]


class Pipe:
    """One end. Any thread may send; one receives."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._file = end.makefile("rb", _BUFFER_BYTES)
        self._sending = threading.Lock()

    def send(self, *message: Any) -> None:
        """Waits while the other end reads nothing and its buffer is full. OSError if it has gone."""
        data = marshal.dumps(message)
        with self._sending:
            self._socket.sendall(_LENGTH.pack(len(data)) + data)

    def close(self) -> None:
        """Nothing is sent or received any more."""
        self._file.close()
        self._socket.close()

    def receive(self) -> Message | None:
        """The next message; None when the other end has gone."""
        try:
            head = self._file.read(_LENGTH.size)
            if len(head) < _LENGTH.size:
                return None
            (length,) = _LENGTH.unpack(head)
            data = self._file.read(length)
        except OSError:
            return None
        return marshal.loads(data) if len(data) == length else None


def from_request(r: EngineRequest) -> Message:
    """An EngineRequest but for its tools, which are the replica's own business."""
    sampling = tuple(getattr(r.sampling, name) for name in _SAMPLING)
    guide = None if r.guide is None else (r.guide.kind, r.guide.value)
    ids = array("q", r.prompt_ids).tobytes()
    stops = tuple(r.stop_token_ids)
    return (
        r.id, ids, r.max_tokens, sampling, stops, r.delivered, r.adapter, guide, r.prompt_logprobs,
        r.parsing is not None,
    )  # fmt: skip


def to_request(m: Message) -> EngineRequest:
    """See from_request."""
    number, ids, max_tokens, sampling, stops, delivered, adapter, guide, prompt_logprobs, parsing = m
    prompt = array("q")
    prompt.frombytes(ids)
    return EngineRequest(
        number, prompt, max_tokens, Sampling(*sampling), stops, delivered, adapter, Guide(*guide) if guide else None,
        prompt_logprobs, Parsing() if parsing else None,
    )  # fmt: skip


def from_step(step: Step) -> Message:
    """The rows of a step as tuples, and its load."""
    return [_from_row(r) for r in step.rows], tuple(getattr(step.load, name) for name in _LOAD)


def _from_row(r: Row) -> Message:
    return r.id, list(r.tokens), r.finish, r.logprobs, r.cached_tokens, r.error, r.kind


def to_step(m: Message) -> Step:
    """See from_step."""
    rows, load = m
    return Step([Row(*row) for row in rows], Load(*load))
