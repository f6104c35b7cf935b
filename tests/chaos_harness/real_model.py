"""Answers of a real model: nobody can compute them, and the same request may be answered otherwise.

Another batch, or a prefix that is read instead of made, gives the same logits but for rounding, and where two are
nearly equal the other token may win. From there on it is another text. What was lost or doubled on the way to the
client is told from that by two things: the text goes on as it should, but too early or again, where the stream moved;
or it has not as many tokens as the engine says.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from chaos_harness.check_streams import parts_at, uninterrupted
from chaos_harness.history import Event
from chaos_harness.oracle import Answer

_TELLING = 24  # characters that are not in answers to two questions by chance
_AS_IT_SHOULD = 40  # characters that are not made twice by chance, a few words apart
_FAR = 400
_SEAM = 24  # characters after a move, within which what was lost or doubled there shows


class RealModel:
    """What `check` is to expect, and to judge by; `count`: tokens of a text."""

    def __init__(self, clients: list[Event], count: Callable[[str], int]) -> None:
        self._count = count
        self.expected = uninterrupted(clients)
        self._texts: defaultdict[str, list[str]] = defaultdict(list)  # by question, from before anything was broken
        self._above: defaultdict[str, set[int]] = defaultdict(set)  # told tokens less counted ones, by finish
        starts = {e["id"]: e for e in clients if e["ev"] == "start" and e["mood"] == "baseline"}
        for end in clients:
            if end["ev"] == "end" and end["id"] in starts and end["status"] == "completed":
                self._texts[starts[end["id"]]["prompt"]].append(end["text"])
                self._above[end["finishes"][0]].add(end["tokens"] - count(end["text"]))

    def judge(self, start: Event, end: Event, right: Answer) -> str:
        text = end["text"]
        at = parts_at(text, right.text)
        if self._is_anothers(start["prompt"], text[at : at + _TELLING]):
            return "corrupted"
        if any(seam <= at <= seam + _SEAM for seam in _seams(end)) and (apart := _apart(text, right.text, at)):
            return "missing" if apart > 0 else "duplicate"
        if end["status"] != "completed" or end["tokens"] is None:
            return ""
        above, allowed = end["tokens"] - self._count(text), self._above[end["finishes"][0]]
        if not allowed or above in allowed:
            return ""
        return "missing" if above > max(allowed) else "duplicate"

    def _is_anothers(self, prompt: str, piece: str) -> bool:
        if len(piece) < _TELLING or any(piece in t for t in self._texts[prompt]):
            return False
        return any(piece in t for texts in self._texts.values() for t in texts)


def _seams(end: Event) -> list[int]:
    """Characters after which the stream came from elsewhere: another replica, or another proxy."""
    back = [t for t, _ in end.get("returns", ())]
    pairs = itertools.pairwise(end["pieces"])
    return [a[1] for a, b in pairs if b[2] > a[2] or any(a[0] <= t <= b[0] for t in back)]


def _apart(text: str, right: str, at: int) -> int:
    """By how many characters the text is ahead of where it should be; 0 if it does not go on as it should at all."""
    piece, begin = text[at : at + _AS_IT_SHOULD], max(0, at - _FAR)
    found = right.find(piece, begin, at + _FAR) if len(piece) >= _TELLING else -1
    return found - at if found >= 0 else 0


def counter(tokenizer_json: str) -> Callable[[str], int]:
    """How many tokens a text has, by a tokenizer.json."""
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_file(tokenizer_json)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
