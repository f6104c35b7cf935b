"""A proxy's inner loop without the proxy: one task ticks, and writes an event to each stream. As ASGI, and for aiohttp.

    python server_app.py SERVER PORT       serves it with uvicorn or aiohttp; other servers are told `server_app:app`

HOW=driven (the default) drives `send` by hand from the ticking task; HOW=tasks wakes a task per stream, as an ordinary
ASGI app has; HOW=past writes each event as a chunk to the connection's transport, past the server's `send`, as
Headrace's proxy does. The step is STEP_S.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

WORDS = [f" {a}{b}{c}" for a in ("ba", "de", "fi") for b in ("go", "lu", "mar") for c in ("net", "pol", "ras")]
HEAD = (
    '{"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1760000000,"model":"sim","choices":'
)
TAIL = '[{"index":0,"delta":{"content":"%s"},"logprobs":null,"finish_reason":null}]}'
EVENTS = [f"data: {HEAD}{TAIL % word}\n\n".encode() for word in WORDS]
DONE = b"data: [DONE]\n\n"
STEP_S = float(os.environ.get("STEP_S", "0.02"))
HOW = os.environ.get("HOW", "driven")
DRIVEN, PAST = HOW != "tasks", HOW == "past"

Write = Callable[[bytes, bool], Awaitable[None]]


def text(tokens: int) -> str:
    return "".join(WORDS[i % len(WORDS)] for i in range(tokens))


class Stream:
    """One answer. `write` takes data, and whether more comes."""

    def __init__(self, write: Write, tokens: int) -> None:
        self._write, self._tokens = write, tokens
        self._index = 0
        self._blocked: Any = None
        self._ticked = asyncio.Event()
        self.ended = asyncio.get_running_loop().create_future()

    def _next(self) -> tuple[bytes, bool]:
        data, self._index = EVENTS[self._index % len(EVENTS)], self._index + 1
        return (data, True) if self._index < self._tokens else (data + DONE, False)

    def tick(self) -> bool:
        """Write the next token; False after the last."""
        if not DRIVEN:
            self._ticked.set()
        elif self._blocked is None:
            step = self._write(*self._next())
            self._go_on(step if asyncio.iscoroutine(step) else step.__await__())
        return self._index < self._tokens

    def _go_on(self, step: Any) -> None:
        try:
            future = step.send(None) if hasattr(step, "send") else next(step)
        except StopIteration:
            self._blocked = None
            if self._index >= self._tokens and not self.ended.done():
                self.ended.set_result(None)
            return
        self._blocked = step
        if future is None:
            asyncio.get_running_loop().call_soon(self._go_on, step)
        else:
            future._asyncio_future_blocking = False
            future.add_done_callback(lambda _: self._go_on(step))

    async def run(self) -> None:
        """Until the last token is written."""
        TICKER.add(self)
        if DRIVEN:
            await self.ended
            return
        while self._index < self._tokens:
            await self._ticked.wait()
            self._ticked.clear()
            await self._write(*self._next())


class Ticker:
    def __init__(self) -> None:
        self._streams: list[Stream] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, stream: Stream) -> None:
        self._streams.append(stream)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self._streams:
            await asyncio.sleep(STEP_S)
            self._streams = [s for s in self._streams if s.tick()]
        self._task = None


TICKER = Ticker()


async def chunk(transport: asyncio.Transport, data: bytes) -> None:
    transport.write(b"%x\r\n%b\r\n" % (len(data), data))


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})

    transport = scope.get("transport")

    def write(data: bytes, more: bool) -> Awaitable[None]:
        if PAST and more:
            return chunk(transport, data)
        return send({"type": "http.response.body", "body": data, "more_body": more})

    await Stream(write, json.loads(body)["max_tokens"] if body else 1).run()


def serve_with_aiohttp(port: int) -> None:
    import uvloop
    from aiohttp import web

    async def answer(request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        response.enable_chunked_encoding()
        await response.prepare(request)

        async def write(data: bytes, more: bool) -> None:
            if PAST and more and request.transport:
                return await chunk(request.transport, data)
            await response.write(data)
            if not more:
                await response.write_eof()

        await Stream(write, asked["max_tokens"]).run()
        return response

    async def start() -> web.Application:
        made = web.Application()
        made.router.add_post("/v1/chat/completions", answer)
        return made

    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    web.run_app(start(), host="127.0.0.1", port=port, loop=loop, access_log=None, print=None)


def serve_with_uvicorn(port: int) -> None:
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Protocol(HttpToolsProtocol):
        def on_message_begin(self) -> None:
            super().on_message_begin()
            self.scope["transport"] = self.transport

    uvicorn.run(app, port=port, loop="uvloop", http=Protocol, access_log=False, log_level="error", lifespan="off")


if __name__ == "__main__":
    {"uvicorn": serve_with_uvicorn, "aiohttp": serve_with_aiohttp}[sys.argv[1]](int(sys.argv[2]))
