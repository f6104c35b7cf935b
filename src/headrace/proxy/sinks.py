"""What becomes of an answer's tokens: server-sent events, plain text, or one JSON object at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from headrace.core.types import TokenLogprob
from headrace.errors import HeadraceError
from headrace.proxy.extras import Extra
from headrace.proxy.generation import Usage
from headrace.proxy.shapes import DONE, Choice, Shape, dumps, event, quote
from headrace.proxy.stream import Place
from headrace.proxy.writer import Headers, Writer

_STREAM = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"), (b"x-content-type-options", b"nosniff")]
SSE_HEADERS: Headers = [(b"content-type", b"text/event-stream; charset=utf-8"), *_STREAM]
TEXT_HEADERS: Headers = [(b"content-type", b"text/plain; charset=utf-8"), *_STREAM]


class Answer(Protocol):
    """A stream's Sink that can also end. Until `writer.started` an error may still be an HTTP status."""

    writer: Writer

    def delta(self, index: int, text: str, logprobs: Any, place: Place | None = None) -> None: ...
    def extra(self, index: int, item: Extra, place: Place | None = None) -> None: ...
    def choice_done(self, index: int, reason: str) -> None: ...
    def waiting(self, what: str) -> None: ...
    def restart(self, index: int) -> bool: ...
    def complete(self, usage: Usage) -> None: ...

    def fail(self, error: HeadraceError) -> None:
        """End an answer that has begun."""
        ...


class Events:
    """Server-sent events. An error after the headers is one event `{"error": …}` and the end, without [DONE].

    `taken_over`: the client has had the events before.
    """

    def __init__(
        self,
        writer: Writer,
        shape: Shape,
        choices: int,
        include_usage: bool,
        headers: Headers,
        taken_over: bool = False,
    ) -> None:
        self.writer = writer
        self._shape = shape
        self._heads = [shape.head(i) for i in range(choices)]
        self._tail = shape.tail
        self._include_usage = include_usage
        self._headers = headers
        self._prelude = b"" if taken_over else shape.prelude()

    def _begin(self) -> bytes:
        if not self.writer.started:
            self.writer.start(200, [*SSE_HEADERS, *self._headers])
        prelude, self._prelude = self._prelude, b""
        return prelude

    def delta(self, index: int, text: str, logprobs: Sequence[TokenLogprob] | None, place: Place | None = None) -> None:
        if logprobs is None:
            data = self._heads[index] + quote(text).encode() + self._tail
        else:
            data = self._shape.with_logprobs(index, text, logprobs)
        if place is not None:
            data = b"id: %d.%d.%d.%d\n" % place + data
        if self._prelude or not self.writer.started:
            data = self._begin() + data
        self.writer.write(data)

    def extra(self, index: int, item: Extra, place: Place | None = None) -> None:
        if data := self._shape.extra(index, item):
            if place is not None:
                data = b"id: %d.%d.%d.%d\n" % place + data
            self.writer.write(self._begin() + data)

    def choice_done(self, index: int, reason: str) -> None:
        self.writer.write(self._begin() + self._shape.finish(index, reason))

    def waiting(self, what: str) -> None:
        """A comment, which keeps the connection alive and tells a person what is going on."""
        if not self.writer.started:
            self.writer.start(200, [*SSE_HEADERS, *self._headers])
        self.writer.write(b": " + " ".join(what.split()).encode() + b"\n\n")

    def restart(self, index: int) -> bool:
        return False

    def complete(self, usage: Usage) -> None:
        self.writer.end((self._shape.usage(usage) if self._include_usage else b"") + DONE)

    def fail(self, error: HeadraceError) -> None:
        self.writer.end(event(error.body()))


class Text:
    """Plain text, piece by piece. An error after the headers is a last line, and the connection is cut."""

    def __init__(self, writer: Writer, headers: Headers) -> None:
        self.writer = writer
        self._headers = headers

    def delta(self, index: int, text: str, logprobs: Any, place: Place | None = None) -> None:
        if not self.writer.started:
            self.writer.start(200, [*TEXT_HEADERS, *self._headers])
        self.writer.write(text.encode())

    def extra(self, index: int, item: Extra, place: Place | None = None) -> None:
        """The plain text is the answer alone."""

    def choice_done(self, index: int, reason: str) -> None:
        pass

    def waiting(self, what: str) -> None:
        """Without headers, so that a failure keeps its status."""

    def restart(self, index: int) -> bool:
        return False

    def complete(self, usage: Usage) -> None:
        if not self.writer.started:
            self.writer.start(200, [*TEXT_HEADERS, *self._headers])
        self.writer.end()

    def fail(self, error: HeadraceError) -> None:
        self.writer.write(f"\n[error: {error.message}]\n".encode())
        self.writer.break_off()


class Collected:
    """All choices, sent as one object when the last is done."""

    def __init__(self, writer: Writer, shape: Shape, choices: int, headers: Headers) -> None:
        self.writer = writer
        self._shape = shape
        self._choices = [Choice() for _ in range(choices)]
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self._headers = headers

    def delta(self, index: int, text: str, logprobs: Sequence[TokenLogprob] | None, place: Place | None = None) -> None:
        self._texts[index].append(text)
        if logprobs:
            self._choices[index].logprobs.extend(logprobs)

    def extra(self, index: int, item: Extra, place: Place | None = None) -> None:
        self._choices[index].add(item)

    def choice_done(self, index: int, reason: str) -> None:
        self._choices[index].reason = reason

    def waiting(self, what: str) -> None:
        """Without headers, so that a failure keeps its status."""

    def restart(self, index: int) -> bool:
        self._choices[index], self._texts[index] = Choice(), []
        return True

    def complete(self, usage: Usage) -> None:
        for choice, texts in zip(self._choices, self._texts, strict=True):
            choice.text = "".join(texts)
        body = dumps(self._shape.whole(self._choices, usage))
        length = (b"content-length", str(len(body)).encode())
        self.writer.start(200, [(b"content-type", b"application/json"), length, *self._headers])
        self.writer.end(body)

    def fail(self, error: HeadraceError) -> None:
        self.writer.break_off()
