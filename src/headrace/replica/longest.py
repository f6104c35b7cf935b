"""How many bytes of a text one token can stand for, at most: what tokenizer.json says of it.

There is no such number where a tokenizer makes one token of a word of any length ([UNK]), or drops what it does not
know, whitespace or control characters. There nobody's text is long because of that, and a generous bound is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

GENEROUS = 16
"""Times the longest token, where no number is sure: still a fraction of a second's work for each 1,000 tokens."""
LEAST_BYTES = 1024 * 1024
"""Of a bound that is not sure."""
_SPARE_TOKENS = 16
"""That a chat template or a tokenizer may add which are not of the text."""

_SHRINKS: Mapping[str, float] = {
    # What a text's bytes can shrink by, at most: K (U+212A) becomes k, letters with two marks become one character.
    "NFC": 9.0,
    "NFKC": 12.0,
    "NFD": 4.0,
    "NFKD": 4.0,
    "Lowercase": 3.0,
    "Prepend": 1.0,
    "ByteLevel": 1.0,
}
_KEEPS = frozenset({"ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "Split", "Punctuation"})


def prompt_bytes(longest: float, sure: bool, context_tokens: int) -> int:
    """A text of more bytes has more tokens than the context. `longest` and `sure`: see longest_token."""
    bound = int((context_tokens + _SPARE_TOKENS) * longest)
    return bound if sure else max(GENEROUS * bound, LEAST_BYTES)


def longest_token(tokenizer: Mapping[str, Any]) -> tuple[float, bool]:
    """Bytes of text that one token stands for, at most, and whether that is sure. `tokenizer`: of tokenizer.json."""
    model = tokenizer["model"]
    vocab = model.get("vocab") or {}
    words = [str(w[0]) for w in vocab] if isinstance(vocab, list) else list(vocab)
    added = tokenizer.get("added_tokens") or []
    before = [*_parts(tokenizer.get("normalizer")), *_parts(tokenizer.get("pre_tokenizer"))]
    byte_level = any(p["type"] == "ByteLevel" for p in before)
    longest = max(map(len, words) if byte_level else (len(w.encode()) for w in words), default=1)
    longest = max([longest, 4, *(len(a["content"].encode()) for a in added)])
    shrink, sure = 1.0, not any(a.get("lstrip") or a.get("rstrip") for a in added)
    for part in _parts(tokenizer.get("normalizer")):
        by = _shrink(part)
        shrink, sure = shrink * (by or 1.0), sure and by is not None
    keeps = all(_keeps(p) for p in _parts(tokenizer.get("pre_tokenizer")))
    return longest * shrink, sure and keeps and _knows_all(model, words, byte_level)


def _parts(said: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer."""
    if said is None:
        return
    if said["type"] == "Sequence":
        for part in said.get("normalizers") or said.get("pretokenizers") or ():
            yield from _parts(part)
    else:
        yield said


def _shrink(part: Mapping[str, Any]) -> float | None:
    """By what factor a normalizer makes a text shorter, at most; None if it may drop any of it."""
    if part["type"] == "Replace":
        old, new = part["pattern"].get("String"), part["content"]
        return max(1.0, len(old.encode()) / len(new.encode())) if old and new else None
    return _SHRINKS.get(part["type"])


def _keeps(part: Mapping[str, Any]) -> bool:
    """Whether a pre-tokenizer keeps all of the text."""
    return part["type"] in _KEEPS and part.get("behavior") != "Removed"


def _knows_all(model: Mapping[str, Any], words: list[str], byte_level: bool) -> bool:
    """Whether every character has a token of its own, and no token stands for any number of unknown ones."""
    kind = model.get("type") or ("BPE" if "merges" in model else "")
    if kind not in ("BPE", "Unigram"):
        return False
    known = set(words)
    if byte_level:
        return len({w for w in known if len(w) == 1} & ALPHABET) == len(ALPHABET)
    if model.get("byte_fallback"):
        return all(f"<0x{b:02X}>" in known for b in range(256))
    unknown = model.get("unk_token")
    return kind == "BPE" and unknown in known and not model.get("fuse_unk")


def _alphabet() -> frozenset[str]:
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return frozenset([*map(chr, printable), *(chr(256 + n) for n in range(256 - len(printable)))])


ALPHABET = _alphabet()
"""GPT-2's printable stand-ins for the 256 bytes."""
