"""The simulated model: each token is a pure function of (prompt, seed, index), so that anybody can check a stream.

Its tokenizer needs no file and is reversible: ids 0..255 are bytes, then come words with their leading space, then the
end of sequence. Of every eight tokens of an answer four are words and four the single bytes of one emoji, so that
characters are split over tokens.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from hashlib import blake2b

WORDS = (
    " the", " a", " head", " of", " water", " turns", " every", " wheel", " and", " model", " token", " after",
    " learning", " machine", " naïve", " größer", " 日本語", " données", " Ωmega", " stream", " is", " one", ",", ".",
    "\n", " and so on", " layer", " weights", " data", " from", " to", " in",
)  # fmt: skip
EMOJI = ("😀", "🚰", "🌊", "🛞", "🔥", "🧠", "🎡", "🏞")

FIRST_WORD = 256
EOS_ID = FIRST_WORD + len(WORDS)
VOCAB_SIZE = EOS_ID + 1
GROUP = 8

_PIECES: tuple[bytes, ...] = (*(bytes([b]) for b in range(256)), *(w.encode() for w in WORDS), b"")
_ID_OF = {word: FIRST_WORD + i for i, word in enumerate(WORDS)}
_SPLIT = re.compile("|".join(re.escape(w) for w in sorted(WORDS, key=len, reverse=True)) + "|(.)", re.DOTALL)


def encode(text: str) -> list[int]:
    """Token ids of `text`: known words where they occur, else bytes. `decode` gives the text back."""
    ids: list[int] = []
    for found in _SPLIT.finditer(text):
        if found[1] is None:
            ids.append(_ID_OF[found[0]])
        else:
            ids.extend(found[1].encode("utf-8", "surrogatepass"))
    return ids


def piece(token_id: int) -> bytes:
    """The bytes of one token; of the end of sequence none."""
    return _PIECES[token_id]


def decode(ids: Sequence[int]) -> str:
    """The text of token ids; bytes that are no characters become U+FFFD."""
    return b"".join(_PIECES[i] for i in ids).decode("utf-8", "replace")


def chat_prompt(messages: Sequence[Mapping[str, str]]) -> str:
    """The prompt that the built-in chat template makes of messages (role and content)."""
    return "".join(f"{m['role']}: {m['content']}\n" for m in messages) + "assistant:"


CHAT_TEMPLATE = (
    "{% if tools %}{{ 'tools: ' + tools | tojson + '\\n' }}{% endif %}"
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
    "{% if m['tool_calls'] %}{{ m['tool_calls'] | tojson }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def digest(prompt_ids: Sequence[int], seed: int | None, adapter: str = "") -> bytes:
    """What an answer depends on. No seed is seed 0."""
    packed = struct.pack(f"<Q{len(prompt_ids)}I", (seed or 0) & (2**64 - 1), *prompt_ids)
    return blake2b(packed, key=adapter.encode(), digest_size=16).digest()


def number(key: bytes, index: int, purpose: bytes) -> int:
    """A number of 64 bits that looks drawn; `purpose` has up to 16 bytes."""
    packed = blake2b(struct.pack("<Q", index), key=key, person=purpose, digest_size=8).digest()
    return int.from_bytes(packed, "little")


def token_at(key: bytes, index: int) -> int:
    """Token `index` of the answer that belongs to a digest. Never the end of sequence."""
    group, place = divmod(index, GROUP)
    if place < 4:
        return FIRST_WORD + number(key, index, b"word") % len(WORDS)
    return EMOJI[number(key, group, b"emoji") % len(EMOJI)].encode()[place - 4]


def natural_length(key: bytes) -> int:
    """Tokens after which the answer would end by itself: 16 to 79."""
    return 16 + number(key, 0, b"length") % 64


def answer(prompt_ids: Sequence[int], seed: int | None, count: int, adapter: str = "") -> list[int]:
    """The first `count` tokens of an answer."""
    key = digest(prompt_ids, seed, adapter)
    return [token_at(key, i) for i in range(count)]


def said_about_tools(prompt: str) -> tuple[str, bool]:
    """The JSON of the tools that a prompt of CHAT_TEMPLATE offers ("": none), and whether one has just answered."""
    first, _, rest = prompt.partition("\n")
    if not first.startswith("tools: "):
        return "", False
    turns = [line for line in rest.split("\n") if line.split(":")[0] in ("system", "user", "assistant", "tool")]
    return first.removeprefix("tools: "), len(turns) > 1 and turns[-2].startswith("tool:")


def vector(ids: Sequence[int], length: int) -> list[float]:
    """The embedding of a text: of length 1, a function of its tokens alone."""
    key = digest(ids, None)
    raw = [number(key, i, b"vector") / 2**63 - 1.0 for i in range(length)]
    size = sum(x * x for x in raw) ** 0.5 or 1.0
    return [x / size for x in raw]


def score(text: str, document: str) -> float:
    """How well a document fits a text, 0 to 1: the share of the text's words that it has."""
    words = set(text.lower().split())
    return len(words & set(document.lower().split())) / max(1, len(words))
