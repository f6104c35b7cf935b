"""What becomes of an answer's tokens: server-sent events, plain text, or one JSON object at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from headrace.core.streams import TokenLogprob
from headrace.errors import HeadraceError
from headrace.proxy.coalescer import NEVER, Coalescer
from headrace.proxy.extras import Extra
from headrace.proxy.generation import Usage
from headrace.proxy.place import HasPlace
from headrace.proxy.shapes import DONE, Choice, Shape, dumps_in_turns, event, quote
from headrace.proxy.writer import Headers, Writer

_STREAM = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"), (b"x-content-type-options", b"nosniff")]
SSE_HEADERS: Headers = [(b"content-type", b"text/event-stream; charset=utf-8"), *_STREAM]
TEXT_HEADERS: Headers = [(b"content-type", b"text/plain; charset=utf-8"), *_STREAM]

_STRAIGHT = 8
"""How many texts go out at once before the next one may be held."""
_MOST_HELD_CHARS = 2048
"""Where texts are long a write is not what they cost, and one must not outgrow what a slow client may leave unread."""


class Answer(Protocol):
    """A stream's Sink that can also end. Until `writer.started` an error may still be an HTTP status."""

    writer: Writer

    def delta(self, index: int, text: str, logprobs: Any, place: HasPlace | None = None) -> None: ...
    def extra(self, index: int, item: Extra, place: HasPlace | None = None) -> None: ...
    def choice_done(self, index: int, reason: str) -> None: ...
    def waiting(self, what: str) -> None: ...
    def restart(self, index: int) -> bool: ...
    async def complete(self, usage: Usage) -> None: ...

    def fail(self, error: HeadraceError) -> None:
        """End an answer that has begun."""
        ...


class Events:
    """Server-sent events. An error after the headers is one event `{"error": …}` and the end, without [DONE].

    `taken_over`: the client has had the events before. `nonce`: see Submit; it is part of the events' ids.
    """

    def __init__(
        self,
        writer: Writer,
        shape: Shape,
        choices: int,
        include_usage: bool,
        headers: Headers,
        taken_over: bool = False,
        coalescer: Coalescer = NEVER,
        nonce: str = "",
    ) -> None:
        self.writer = writer
        self._shape = shape
        self._heads = [shape.head(i).decode() for i in range(choices)]
        self._tail = shape.tail.decode()
        # An event's id comes after its data: many clients look for "data: " at its start only.
        self._tail_id = self._tail[:-1] + "id: "
        self._id_end = f".{nonce}\n\n"
        self._include_usage = include_usage
        self._headers = headers
        self._prelude = b"" if taken_over else shape.prelude()
        self._coalescer = coalescer if choices == 1 else NEVER
        self._held = ""  # text that waits for more, of the only choice
        self._held_place: tuple[int, int, int, int] | None = None
        self._pieces = 0  # that were held
        self._straight = _STRAIGHT  # how many texts more are sent at once; the first is not to wait

    def delta(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob] | None, place: HasPlace | None = None
    ) -> None:
        if logprobs is not None:
            self._write(self._named(self._shape.with_logprobs(index, text, logprobs), place))
        elif self._coalescer.active and self._held_back(text, place):
            return
        else:
            if self._held:
                text, self._held = self._held + text, ""
            if place:
                at = f"{place.moves}.{place.tokens}.{place.chars}.{place.reasoning_chars}"
                data = f"{self._heads[index]}{quote(text)}{self._tail_id}{at}{self._id_end}".encode()
            else:
                data = f"{self._heads[index]}{quote(text)}{self._tail}".encode()
            if self._prelude or not self.writer.started:
                data = self._begin() + data
            self.writer.write(data)

    def _held_back(self, text: str, place: HasPlace | None) -> bool:
        if self._straight:
            self._straight -= 1
            return False
        if not self._held:
            self._pieces = 0
            self._coalescer.hold(self)
        self._held += text
        self._pieces += 1
        if place is not None:
            self._held_place = place.moves, place.tokens, place.chars, place.reasoning_chars
        if len(self._held) > _MOST_HELD_CHARS:
            self.writer.write(self._take_held())
        return True

    def flush(self) -> None:
        if self._held:
            if self._pieces == 1:
                self._straight = _STRAIGHT  # nothing came to join it: this stream's tokens are too far apart
            self.writer.write(self._take_held())

    def _take_held(self) -> bytes:
        if not self._held:
            return b""
        text, self._held = self._held, ""
        if self._held_place is None:
            return f"{self._heads[0]}{quote(text)}{self._tail}".encode()
        at = ".".join(map(str, self._held_place))
        return f"{self._heads[0]}{quote(text)}{self._tail_id}{at}{self._id_end}".encode()

    def _named(self, data: bytes, place: HasPlace | None) -> bytes:
        """One event, with its id."""
        if place is None:
            return data
        at = f"{place.moves}.{place.tokens}.{place.chars}.{place.reasoning_chars}"
        return data[:-1] + f"id: {at}{self._id_end}".encode()

    def _begin(self) -> bytes:
        if not self.writer.started:
            self.writer.start(200, [*SSE_HEADERS, *self._headers])
        prelude, self._prelude = self._prelude, b""
        return prelude

    def _write(self, data: bytes) -> None:
        """After what came before it."""
        self.writer.write(self._begin() + self._take_held() + data)

    def extra(self, index: int, item: Extra, place: HasPlace | None = None) -> None:
        if data := self._shape.extra(index, item):
            self._write(self._named(data, place))

    def choice_done(self, index: int, reason: str) -> None:
        self._write(self._shape.finish(index, reason))

    def waiting(self, what: str) -> None:
        """A comment, which keeps the connection alive and tells a person what is going on."""
        if not self.writer.started:
            self.writer.start(200, [*SSE_HEADERS, *self._headers])
        self.writer.write(b": " + " ".join(what.split()).encode() + b"\n\n")

    def restart(self, index: int) -> bool:
        return False

    async def complete(self, usage: Usage) -> None:
        self.writer.end(self._take_held() + (self._shape.usage(usage) if self._include_usage else b"") + DONE)

    def fail(self, error: HeadraceError) -> None:
        self.writer.end(self._take_held() + event(error.body()))


class Text:
    """Plain text, piece by piece. An error after the headers is a last line, and the connection is cut."""

    def __init__(self, writer: Writer, headers: Headers) -> None:
        self.writer = writer
        self._headers = headers

    def delta(self, index: int, text: str, logprobs: Any, place: HasPlace | None = None) -> None:
        if not self.writer.started:
            self.writer.start(200, [*TEXT_HEADERS, *self._headers])
        self.writer.write(text.encode())

    def extra(self, index: int, item: Extra, place: HasPlace | None = None) -> None:
        """The plain text is the answer alone."""

    def choice_done(self, index: int, reason: str) -> None:
        pass

    def waiting(self, what: str) -> None:
        """Without headers, so that a failure keeps its status."""

    def restart(self, index: int) -> bool:
        return False

    async def complete(self, usage: Usage) -> None:
        if not self.writer.started:
            self.writer.start(200, [*TEXT_HEADERS, *self._headers])
        self.writer.end()

    def fail(self, error: HeadraceError) -> None:
        self.writer.write(f"\n[error: {error.told}]\n".encode())
        self.writer.break_off()


class Collected:
    """All choices, sent as one object when the last is done."""

    def __init__(self, writer: Writer, shape: Shape, choices: int, headers: Headers) -> None:
        self.writer = writer
        self._shape = shape
        self._choices = [Choice() for _ in range(choices)]
        self._texts: list[list[str]] = [[] for _ in range(choices)]
        self._headers = headers

    def delta(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob] | None, place: HasPlace | None = None
    ) -> None:
        self._texts[index].append(text)
        if logprobs:
            self._choices[index].logprobs.extend(logprobs)

    def extra(self, index: int, item: Extra, place: HasPlace | None = None) -> None:
        self._choices[index].add(item)

    def choice_done(self, index: int, reason: str) -> None:
        self._choices[index].reason = reason

    def waiting(self, what: str) -> None:
        """Without headers, so that a failure keeps its status."""

    def restart(self, index: int) -> bool:
        self._choices[index], self._texts[index] = Choice(), []
        return True

    async def complete(self, usage: Usage) -> None:
        for choice, texts in zip(self._choices, self._texts, strict=True):
            choice.text = "".join(texts)
        body = await dumps_in_turns(self._shape.whole(self._choices, usage))
        length = (b"content-length", str(len(body)).encode())
        self.writer.start(200, [(b"content-type", b"application/json"), length, *self._headers])
        self.writer.end(body)

    def fail(self, error: HeadraceError) -> None:
        self.writer.break_off()
