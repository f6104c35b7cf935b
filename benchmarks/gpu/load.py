"""Streams of POST /v1/completions with server-sent events, and what they saw. Light enough for hundreds at once."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from dataclasses import dataclass, field

PROMPT_TOKENS = 64


@dataclass
class Seen:
    """One stream: when it was sent, when each event with text came, and how many tokens it had at the end."""

    sent_at: float
    events: list[float] = field(default_factory=list)
    tokens: int = 0


@dataclass(frozen=True)
class Figures:
    streams: int
    tokens_per_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    itl_p99_ms: float


async def run(port: int, model: str, streams: int, tokens: int, vocab: int) -> Figures:
    """`streams` at once, each `tokens` long, with prompts of random ids: no prefix is shared."""
    begun = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(_stream(port, model, tokens, vocab, seed)) for seed in range(streams)]
    took = time.perf_counter() - begun
    seen = [t.result() for t in running]
    if any(s.tokens != tokens for s in seen):
        raise SystemExit(f"{sum(s.tokens != tokens for s in seen)} of {streams} streams were not whole")
    first = [s.events[0] - s.sent_at for s in seen]
    gaps = [b - a for s in seen for a, b in zip(s.events, s.events[1:], strict=False)] or [0.0]
    return Figures(
        streams,
        streams * tokens / took,
        1e3 * _p(first, 50),
        1e3 * _p(first, 99),
        1e3 * _p(gaps, 50),
        1e3 * _p(gaps, 99),
    )


def _p(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]


async def _stream(port: int, model: str, tokens: int, vocab: int, seed: int) -> Seen:
    rng = random.Random(seed)
    body = json.dumps(
        {
            "model": model,
            "prompt": [rng.randrange(10, vocab) for _ in range(PROMPT_TOKENS)],
            "max_tokens": tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    try:
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        seen = Seen(time.perf_counter())
        writer.write(head.encode() + body)
        status = await reader.readline()
        if b" 200 " not in status:
            raise SystemExit(f"{status!r}: {(await reader.read(4000)).decode(errors='replace')[-600:]}")
        async for line in reader:
            # Lines of chunked encoding and of the head are none that begin so.
            if not line.startswith(b"data: {"):
                continue
            if b'"choices":[]' in line.replace(b" ", b""):
                seen.tokens = json.loads(line[6:])["usage"]["completion_tokens"]
            else:
                seen.events.append(time.perf_counter())
        return seen
    finally:
        writer.close()
