"""What the simulated engine must answer, written down a second time and from its description alone.

It shares no line with headrace.core.simulated, so that a mistake there is not made here again. test_oracle compares.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

_WORDS = [
    " the", " a", " head", " of", " water", " turns", " every", " wheel", " and", " model", " token", " after",
    " learning", " machine", " naïve", " größer", " 日本語", " données", " Ωmega", " stream", " is", " one", ",", ".",
    "\n", " and so on", " layer", " weights", " data", " from", " to", " in",
]  # fmt: skip
_EMOJI = ["😀", "🚰", "🌊", "🛞", "🔥", "🧠", "🎡", "🏞"]
_LONGEST_FIRST = sorted(range(len(_WORDS)), key=lambda i: -len(_WORDS[i]))


def prompt_ids(text: str) -> list[int]:
    """A word of the list is one token, numbered from 256; any other character is its UTF-8 bytes."""
    ids: list[int] = []
    at = 0
    while at < len(text):
        word = next((i for i in _LONGEST_FIRST if text.startswith(_WORDS[i], at)), None)
        if word is None:
            ids += text[at].encode()
            at += 1
        else:
            ids.append(256 + word)
            at += len(_WORDS[word])
    return ids


def chat_text(user: str) -> str:
    return f"user: {user}\nassistant:"


@dataclass(frozen=True)
class Answer:
    text: str
    tokens: int
    reason: str


class Oracle:
    """One answer, token by token. `ends_at`: tokens after which it ends by itself."""

    def __init__(self, prompt: str, seed: int | None, ends_at: int) -> None:
        ids = prompt_ids(prompt)
        packed = ((seed or 0) % 2**64).to_bytes(8, "little") + b"".join(i.to_bytes(4, "little") for i in ids)
        self._key = hashlib.blake2b(packed, digest_size=16).digest()
        self._ends_at = ends_at

    def _draw(self, index: int, what: bytes) -> int:
        h = hashlib.blake2b(index.to_bytes(8, "little"), key=self._key, person=what, digest_size=8)
        return int.from_bytes(h.digest(), "little")

    def token(self, index: int) -> bytes:
        """Four words, then the four bytes of one emoji, and so on."""
        if index % 8 < 4:
            return _WORDS[self._draw(index, b"word") % len(_WORDS)].encode()
        emoji = _EMOJI[self._draw(index // 8, b"emoji") % len(_EMOJI)].encode()
        return emoji[index % 8 - 4 : index % 8 - 3]

    def tokens(self, count: int) -> list[bytes]:
        return [self.token(i) for i in range(count)]

    def answer(self, max_tokens: int) -> Answer:
        """All of it, as one uninterrupted replica gives it."""
        count = min(max_tokens, self._ends_at)
        text = b"".join(self.tokens(count)).decode("utf-8", "replace")
        return Answer(text, count, "length" if max_tokens <= self._ends_at else "stop")
