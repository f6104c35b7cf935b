"""A cheap upstream: an OpenAI-compatible server that streams prebuilt events, one write per token, stream and step.

    python benchmarks/peers/upstream.py PORTS STEP_S

Prints its ports as JSON. Each line on standard input is the step from then on, in seconds: 0 is as fast as readers
read, "inf" never. It steps as the simulated engine does: an idle one begins a step when a request comes, a busy one
takes a request in when the step at hand is over, and the step's end gives the token. So a client sees the same times.
The text varies from token to token. It ends with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator

import httptools
import uvloop

MODEL = "sim"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n"
SYLLABLES = ("ba", "de", "fi", "go", "lu", "mar", "net", "pol", "ras", "tin")


def words(count: int) -> Iterator[str]:
    """Different ones, each with its leading space: one per token."""
    for i in range(count):
        yield " " + "".join(SYLLABLES[int(digit)] for digit in f"{i * 7919 % 1000:03d}")


WORDS = list(words(1000))


def text(tokens: int) -> str:
    return "".join(WORDS[i % len(WORDS)] for i in range(tokens))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(choices: list[object], **more: object) -> bytes:
    about = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1760000000}
    return (
        b"data: "
        + json.dumps(about | {"model": MODEL, "choices": choices} | more, separators=(",", ":")).encode()
        + b"\n\n"
    )


def choice(delta: dict[str, str], reason: str | None = None) -> list[object]:
    return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]


BEGIN = HEAD % b"text/event-stream; charset=utf-8" + b"transfer-encoding: chunked\r\n\r\n"
BEGIN += chunk(event(choice({"role": "assistant", "content": ""})))
EVENTS = [chunk(event(choice({"content": word}))) for word in WORDS]
END = chunk(event(choice({}, "length")))
DONE = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}


class Stream:
    __slots__ = ("index", "paused", "tokens", "transport", "with_usage")

    def __init__(self, transport: asyncio.Transport, tokens: int, with_usage: bool) -> None:
        self.transport, self.tokens, self.with_usage = transport, tokens, with_usage
        self.index = 0
        self.paused = False


class Engine:
    """Steps all streams of all ports."""

    def __init__(self, step_s: float) -> None:
        self.step_s = step_s
        self._new: list[Stream] = []
        self._running: list[Stream] = []
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.Handle | None = None

    def add(self, stream: Stream) -> None:
        self._new.append(stream)
        if self._timer is None:
            self._step()

    def remove(self, stream: Stream) -> None:
        for streams in (self._new, self._running):
            if stream in streams:
                streams.remove(stream)

    def set_step(self, step_s: float) -> None:
        self.step_s = step_s
        if self._timer is not None:
            self._timer.cancel()
        self._step()

    def _step(self) -> None:
        """Begin one: whoever is here is in it."""
        self._running += self._new
        self._new = []
        self._timer = None
        if self._running and self.step_s < 1e6:
            # When nobody reads, it must not spin.
            wait = self.step_s or (0.001 if all(s.paused for s in self._running) else 0.0)
            self._timer = self._loop.call_later(wait, self._end)

    def _end(self) -> None:
        over = False
        for s in self._running:
            if s.paused or s.transport.is_closing():
                continue
            index = s.index
            s.index = index + 1
            data = EVENTS[index % len(EVENTS)]
            if index == 0:
                data = BEGIN + data
            if s.index >= s.tokens:
                data += END
                if s.with_usage:
                    data += chunk(event([], usage=usage(s.tokens)))
                data += DONE
                over = True
            s.transport.write(data)
        if over:
            self._running = [s for s in self._running if s.index < s.tokens]
        self._step()


class Connection(asyncio.Protocol):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._stream: Stream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stream:
            self._engine.remove(self._stream)

    def pause_writing(self) -> None:
        if self._stream:
            self._stream.paused = True

    def resume_writing(self) -> None:
        if self._stream:
            self._stream.paused = False

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        path, body = self._url.partition(b"?")[0], b"".join(self._body)
        self._url, self._body = b"", []
        if path != b"/v1/chat/completions":
            self._answer(ABOUT.get(path, {"status": "ok"}))
            return
        asked = json.loads(body)
        tokens = asked.get("max_tokens") or asked.get("max_completion_tokens") or 16
        if asked.get("stream"):
            options = asked.get("stream_options") or {}
            self._stream = Stream(self._transport, tokens, bool(options.get("include_usage")))
            self._engine.add(self._stream)
            return
        message = {"role": "assistant", "content": text(tokens)}
        whole = {"id": "chatcmpl-0123456789abcdef", "object": "chat.completion", "created": 1760000000, "model": MODEL}
        answer = {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
        self._answer(whole | {"choices": [answer], "usage": usage(tokens)})

    def _answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        self._transport.write(HEAD % b"application/json" + b"content-length: %d\r\n\r\n%b" % (len(body), body))


# What routers ask of a worker before they take it.
ABOUT: dict[bytes, object] = {
    b"/v1/models": {
        "object": "list",
        "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "bench", "max_model_len": 10_000_000}],
    },
    b"/version": {"version": "0.33.0"},
    b"/get_model_info": {"model_path": MODEL, "is_generation": True},
    b"/model_info": {"model_path": MODEL, "is_generation": True},
    b"/get_server_info": {"model_path": MODEL, "served_model_name": MODEL, "dp_size": 1},
    b"/server_info": {"model_path": MODEL, "served_model_name": MODEL, "dp_size": 1},
}


async def main() -> None:
    ports, step_s = int(sys.argv[1]), float(sys.argv[2])
    loop = asyncio.get_running_loop()
    engine = Engine(step_s)
    servers = [await loop.create_server(lambda: Connection(engine), "127.0.0.1", 0, backlog=4096) for _ in range(ports)]
    print(json.dumps([s.sockets[0].getsockname()[1] for s in servers]), flush=True)
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    while line := await orders.readline():
        engine.set_step(float(line))
        print("ok", flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
