"""Clients that mean no harm: streams and short calls without pause, which note when something came."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter, defaultdict
from contextlib import suppress

from strangers.script import Where

TOKENS = 400
_PATIENCE_S = 60.0


class Bystanders:
    """For the length of the block. `arrivals`: by model, when a client of it heard something; `last`: of each client.

    `failures`: what went wrong for them, by kind.
    """

    def __init__(self, where: Where) -> None:
        self._where = where
        self.arrivals: dict[str, list[float]] = defaultdict(list)
        self.last: dict[str, float] = {}
        self.worst_wait_s = self.worst_first_s = 0.0
        self.failures: Counter[str] = Counter()
        self.late_s = 0.0  # the most that a timer of this process was late

    async def __aenter__(self) -> Bystanders:
        clients = [self._client(f"sim-{i}", "sim", TOKENS, 0.0) for i in range(2)]
        clients += [self._client(f"{model}-short-{i}", model, 8, 0.04) for model in ("sim", "demo") for i in range(2)]
        self._tasks = [asyncio.create_task(c) for c in (*clients, self._turns(), self._lateness())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    def forget(self) -> None:
        """Begin anew: for the next input."""
        self.arrivals.clear()
        self.failures.clear()
        self.worst_wait_s = self.worst_first_s = self.late_s = 0.0

    def heard(self, who: str, model: str, now: float, asked: float | None = None) -> None:
        """Something came. `asked`: when its request began, if it is the first of an answer."""
        if asked is not None:
            self.worst_first_s = max(self.worst_first_s, now - asked)
        else:
            self.worst_wait_s = max(self.worst_wait_s, now - self.last.get(who, now))
        self.last[who] = now
        self.arrivals[model].append(now)

    def all_heard_since(self, t: float) -> bool:
        return all(at > t for at in self.last.values())

    async def _client(self, who: str, model: str, tokens: int, pause_s: float) -> None:
        self.last[who] = time.monotonic()
        for turn in itertools.count(1):
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await self._stream(who, model, f"Go on, {who}, for the {turn}th time.", tokens)
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as e:
                self.failures[type(e).__name__] += 1
                await asyncio.sleep(0.1)
            await asyncio.sleep(pause_s)

    async def _stream(self, who: str, model: str, prompt: str, tokens: int) -> None:
        fields = {
            "model": model, "messages": [{"role": "user", "content": prompt}], "stream": True,
            "max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True,
        }  # fmt: skip
        asked: float | None = time.monotonic()
        reader, writer = await asyncio.open_connection(self._where.host, self._where.port)
        tail = head = b""
        try:
            writer.write(self._where.post("/v1/chat/completions", json.dumps(fields).encode()))
            while data := await reader.read(65536):
                if not head:
                    head = data
                if b'"delta":{"content":' in data:  # not the role, which comes before there is a token
                    self.heard(who, model, time.monotonic(), asked)
                    asked = None
                tail = (tail + data)[-512:]
        finally:
            writer.transport.abort()
        status = head[9:12].decode("latin-1")
        if status != "200":
            self.failures[status or "no answer"] += 1
            await asyncio.sleep(0.1)
        elif b"data: [DONE]" not in tail:
            self.failures["stream without an end"] += 1

    async def _turns(self) -> None:
        """Asks the proxy whether it works, on one connection: an answer is a turn of its loop."""
        while True:
            with suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection(self._where.host, self._where.port)
                try:
                    while True:
                        writer.write(self._where.head("/health", method="GET", close=False))
                        head = await reader.readuntil(b"\r\n\r\n")
                        size = next(x for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:"))
                        await reader.readexactly(int(size.split(b":")[1]))
                        self.heard("health", "proxy", time.monotonic())
                        await asyncio.sleep(0.02)
                finally:
                    writer.transport.abort()
            await asyncio.sleep(0.1)

    async def _lateness(self) -> None:
        while True:
            due = time.monotonic() + 0.01
            await asyncio.sleep(0.01)
            self.late_s = max(self.late_s, time.monotonic() - due)
