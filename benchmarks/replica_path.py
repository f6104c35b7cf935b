"""CPU time of a replica's front end, without its engine: from an engine's step to a frame's bytes, and of a prompt.

    python benchmarks/replica_path.py [--streams 64,256] [--steps 300] [--rounds 5]

Everything is the replica's own: text of the ids, stop strings, the columns, the frame, protobuf. Beside it stands what
other servers use for the text alone: one `DecodeStream` of the `tokenizers` library for each stream. A prompt is taken
from a chat request to the ids that the engine gets, beside the library's `encode` of the same text.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.decoders import DecodeStream

import headrace
from headrace.core.streams import ChatPrompt, Sampling, Submit
from headrace.core.types import Load, ModelInfo, ModelSpec
from headrace.replica.engine import EngineRequest, Row, Step
from headrace.replica.frontend import FrontEnd, open_front_end
from headrace.replica.sampling import FEATURES
from headrace.replica.session import Session
from headrace.replica.streams import Streams
from headrace.replica.weights import Model
from headrace.rpc import convert_streams

DEMO = Path(headrace.__file__).parent / "data" / "demo"
TEXT = "The head of water turns every wheel of the mill. "
STOPS = ("\n\nUser:", "###", "</answer>")


class Engine:
    """Takes requests and does nothing with them."""

    def __init__(self, context_tokens: int, vocab_size: int) -> None:
        self.info = ModelInfo("none", "0", context_tokens, vocab_size, FEATURES)
        self.prefix_tokens = 0
        self.ids: list[int] = []

    def submit(self, request: EngineRequest) -> None:
        self.ids.append(request.id)

    def abort(self, request_id: int) -> None: ...

    def load(self) -> Load:
        return Load()


def opened() -> tuple[Engine, FrontEnd, tokenizers.Tokenizer]:
    tokenizer = tokenizers.Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    engine = Engine(2**22, tokenizer.get_vocab_size())
    front = open_front_end(ModelSpec(str(DEMO)), Model(DEMO), engine.info, Sampling(), ())
    return engine, front, tokenizer


def submit(number: int, text: str, stops: Sequence[str] = ()) -> Submit:
    messages = json.dumps([{"role": "user", "content": text}]).encode()
    return Submit(number, f"r{number}", ChatPrompt(messages), Sampling(), 100_000, tuple(stops), keep_s=10.0)


async def per_token(streams: int, steps: int, stops: Sequence[str]) -> float:
    """Microseconds per token."""
    engine, front, tokenizer = opened()
    all_streams: Any = Streams(engine, front, 10**6)  # type: ignore[arg-type]
    session: Session = all_streams.open("proxy")
    for number in range(1, streams + 1):
        await all_streams.submit(session, submit(number, TEXT, stops))
    ids = tokenizer.encode(TEXT * 20).ids
    made = [
        Step([Row(e, (ids[(n + i) % len(ids)],)) for i, e in enumerate(engine.ids)], Load(running=streams, step=n))
        for n in range(steps)
    ]
    convert_streams.frame_to_pb(await session.next())
    begun = time.thread_time()
    for step in made:
        all_streams._take(step)
        convert_streams.frame_to_pb(await session.next()).SerializeToString()
    return (time.thread_time() - begun) / steps / streams * 1e6


def text_alone(streams: int, steps: int) -> float:
    """Microseconds per token of the library's streams of text."""
    tokenizer = opened()[2]
    ids = tokenizer.encode(TEXT * 20).ids
    decoders = [DecodeStream(skip_special_tokens=True) for _ in range(streams)]
    begun = time.thread_time()
    for n in range(steps):
        for i, decoder in enumerate(decoders):
            decoder.step(tokenizer, ids[(n + i) % len(ids)])
    return (time.thread_time() - begun) / steps / streams * 1e6


def prompts(size: int, rounds: int) -> tuple[float, float]:
    """Microseconds for a prompt of so many bytes: ours, and the library's `encode` alone."""
    _, front, tokenizer = opened()
    text = (TEXT * (size // len(TEXT) + 1))[:size]
    asked, ours, alone = submit(1, text), [], []
    for n in range(rounds + 1):
        begun = time.thread_time()
        front.prepare(1, asked)
        middle = time.thread_time()
        tokenizer.encode(text)
        if n:
            ours.append(middle - begun)
            alone.append(time.thread_time() - middle)
    return statistics.median(ours) * 1e6, statistics.median(alone) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="1,64,256")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    for streams in map(int, args.streams.split(",")):
        found: dict[str, list[float]] = {"front end": [], "with 3 stop strings": [], "DecodeStream alone": []}
        for _ in range(args.rounds):
            found["front end"].append(asyncio.run(per_token(streams, args.steps, ())))
            found["with 3 stop strings"].append(asyncio.run(per_token(streams, args.steps, STOPS)))
            found["DecodeStream alone"].append(text_alone(streams, args.steps))
        shown = "; ".join(f"{k} {statistics.median(v):.2f} ({min(v):.2f}–{max(v):.2f})" for k, v in found.items())
        print(f"{streams} streams, µs a token: {shown}")
    for size in (100, 16_000, 1_000_000):
        ours, alone = prompts(size, args.rounds)
        print(f"a prompt of {size:,} bytes: {ours:,.0f} µs; the library's encode alone {alone:,.0f} µs")


if __name__ == "__main__":
    main()
