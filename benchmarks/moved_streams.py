"""How often a greedy stream that moves goes on otherwise than it would have, by settings of the OpenVINO engine.

    python benchmarks/moved_streams.py --model FOLDER [--tokens 160] [--beside 4] [--cuts 5] [--setting '{…}' …]

FOLDER holds OpenVINO's format (what `python -m headrace.replica.convert` makes) of a real model: small random ones
have no nearly equal logits. The engine runs in this process, as a replica runs it. For each setting the questions are
answered beside each other; then once more in other company, for what the batch alone does; then each goes on from its
prompt and its first tokens, at several cuts and in other company again, as after a move. Counted is who says another
token. The noise is by how much the log-probability of the same token differs at most, a tie how far apart the two
tokens were where answers parted. Tokens for each second of CPU time are of the first of the three, so
that a busy machine does not matter; compare them within one run.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from headrace.core.streams import Sampling
from headrace.core.types import Resources
from headrace.replica.engine import EngineRequest, Step
from headrace.replica.engines.openvino import OpenVinoEngine
from headrace.replica.engines.openvino_options import KV_BYTES, OpenVinoOptions
from headrace.replica.engines.openvino_parsers import Parsers

_SETTINGS = (
    {},
    {"kv_cache_precision": "f32"},
    {"dynamic_quantization": False},
    {"kv_cache_precision": "f32", "dynamic_quantization": False},
)
_QUESTIONS = (
    "What is the heat cycle of an engine?", "Explain photosynthesis.", "Write a story about a dog.",
    "How do I bake bread?", "What is a language model?", "List the planets.", "Why is the sky blue?",
    "Tell me about Rome.", "What is inflation?", "How does a bicycle stay upright?", "Describe a rainy day.",
    "Explain recursion to a child.",
)  # fmt: skip
_GREEDY = Sampling(temperature=0.0, ignore_eos=True, logprobs=0)
_APART = 5  # questions between those that are company the second time; no divisor of their number


@dataclass
class Answer:
    """Token ids, and the log-probability of each."""

    tokens: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])


@dataclass
class Compared:
    """Answers against those that they should equal."""

    number: int = 0
    other: int = 0
    noise: list[float] = field(default_factory=list[float])
    ties: list[float] = field(default_factory=list[float])

    def add(self, right: Answer, got: Answer, cut: int) -> None:
        self.number += 1
        pairs = zip(right.tokens[cut:], got.tokens, right.logprobs[cut:], got.logprobs, strict=True)
        for token, said, logprob, its in pairs:
            if token != said:
                self.other += 1
                self.ties.append(abs(logprob - its))
                return
            self.noise.append(abs(logprob - its))

    def told(self) -> str:
        return f"{self.other} of {self.number}"


class Runner:
    """An engine, and answers to batches of requests."""

    def __init__(self, folder: Path, options: OpenVinoOptions, threads: int) -> None:
        self._engine = OpenVinoEngine(folder, options, Resources(cpus=threads), 0, Parsers("", ""))
        self._lock = threading.Condition()
        self._answers: dict[int, Answer] = {}
        self._left = self._last = 0
        self._died = ""
        self._engine.start(self._on_step, self._on_death)

    def run(self, requests: Sequence[tuple[list[int], int]], tokens: int) -> list[Answer]:
        """The rest of each answer of `tokens` tokens: (prompt and what has been delivered, how many those are)."""
        first = self._last + 1
        self._last += len(requests)
        ids = range(first, self._last + 1)
        with self._lock:
            self._left = len(requests)
            self._answers = {i: Answer() for i in ids}
        for i, (prompt, delivered) in zip(ids, requests, strict=True):
            self._engine.submit(EngineRequest(i, prompt, tokens - delivered, _GREEDY, delivered=delivered))
        with self._lock:
            self._lock.wait_for(lambda: self._died or not self._left)
            if self._died:
                raise RuntimeError(self._died)
            return list(self._answers.values())

    def close(self) -> None:
        self._engine.close()

    def _on_step(self, step: Step) -> None:
        with self._lock:
            for row in step.rows:
                self._answers[row.id].tokens += row.tokens
                self._answers[row.id].logprobs += [p for p, _ in row.logprobs]
                self._left -= row.finish is not None
            self._lock.notify()

    def _on_death(self, why: str) -> None:
        with self._lock:
            self._died = why
            self._lock.notify()


def measure(runner: Runner, prompts: list[list[int]], tokens: int, beside: int, cuts: int) -> dict[str, Any]:
    n = len(prompts)
    begun = time.process_time()
    whole: list[Answer] = []
    for i in range(0, n, beside):
        whole += runner.run([(p, 0) for p in prompts[i : i + beside]], tokens)
    took = time.process_time() - begun
    batch, moved = Compared(), Compared()
    shuffled = [i * _APART % n for i in range(n)]
    for group in _groups(shuffled, beside):
        for i, got in zip(group, runner.run([(prompts[i], 0) for i in group], tokens), strict=True):
            batch.add(whole[i], got, 0)
    # Each cut of each answer once, and never two of one answer beside each other.
    every = [(i, 1 + (tokens - 2) * c // max(1, cuts - 1)) for c in range(cuts) for i in shuffled]
    for group in _groups(every, beside):
        asked = [(prompts[i] + whole[i].tokens[:cut], cut) for i, cut in group]
        for (i, cut), got in zip(group, runner.run(asked, tokens), strict=True):
            moved.add(whole[i], got, cut)
    return {
        "in other company": batch.told(),
        "moved": moved.told(),
        "noise": max([*batch.noise, *moved.noise], default=0.0),
        "tie": max([*batch.ties, *moved.ties], default=0.0),
        "tokens/CPU s": n * tokens / took,
    }


def _groups(of: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [of[i : i + size] for i in range(0, len(of), size)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--beside", type=int, default=4, help="answers at a time")
    parser.add_argument("--cuts", type=int, default=5, help="moves of each answer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--setting", type=json.loads, action="append", help="engine arguments (JSON); may be repeated")
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    prompts = [tokenizer.encode(f"Question: {q}\nAnswer:").ids for q in _QUESTIONS]
    columns = ("in other company", "moved", "noise", "tie", "tokens/CPU s", "ratio", "KV bytes")
    print(f"{'setting':64}" + "".join(f"{c:>18}" for c in columns))
    first = 0.0
    for setting in args.setting or _SETTINGS:
        options = replace(OpenVinoOptions.parse(setting), kv_cache_mib=512)
        runner = Runner(args.model, options, args.threads)
        found = measure(runner, prompts, args.tokens, args.beside, args.cuts)
        runner.close()
        first = first or found["tokens/CPU s"]
        cells = [found["in other company"], found["moved"], f"{found['noise']:.1e}", f"{found['tie']:.1e}"]
        cells += [f"{found['tokens/CPU s']:.0f}", f"{found['tokens/CPU s'] / first:.2f}"]
        cells += [str(KV_BYTES[options.kv_cache_precision])]
        print(f"{json.dumps(setting):64}" + "".join(f"{c:>18}" for c in cells), flush=True)


if __name__ == "__main__":
    main()
