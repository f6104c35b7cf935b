"""A model's tokenizer as the front end uses it, from tokenizer.json or built in (simulated)."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from headrace.core import simulated
from headrace.errors import UserError
from headrace.replica.control import Control, control_tokens, renamed
from headrace.replica.longest import longest_token, prompt_bytes
from headrace.replica.text import Detokenizer


class TextCodec(Protocol):
    """Text to token ids and back."""

    vocab_size: int
    control: Control

    def encode(self, text: str, special: bool, plain: bool = False) -> list[int]:
        """Token ids. `special`: add what the tokenizer adds by itself (the beginning of sequence).

        `plain`: control tokens are those that go by the names of `control`; what spells one out is text.
        """
        ...

    def encode_pair(self, text: str, document: str) -> tuple[list[int], list[int]]:
        """Token ids of two texts that belong together, as the tokenizer joins them, and their types; both plain."""
        ...

    def prompt_bytes(self, context_tokens: int) -> int:
        """A text of more bytes has more tokens than the context."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, with special tokens spelled out."""
        ...

    def name(self, token_id: int) -> str:
        """The token as the vocabulary spells it."""
        ...

    def detokenizer(self, continued: bool, special: bool = False) -> Detokenizer:
        """A new stream's. `continued`: its text goes on from a prompt, so that a leading space counts.

        `special`: special tokens are spelled out, not left out.
        """
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The token's own bytes, which need not be whole characters."""
        ...


class SimulatedCodec:
    """The simulated model's."""

    vocab_size = simulated.VOCAB_SIZE
    control = Control.of({})

    def encode(self, text: str, special: bool, plain: bool = False) -> list[int]:
        return simulated.encode(text)

    def encode_pair(self, text: str, document: str) -> tuple[list[int], list[int]]:
        first, second = simulated.encode(text), simulated.encode(document)
        return [*first, simulated.EOS_ID, *second], [0] * (len(first) + 1) + [1] * len(second)

    def prompt_bytes(self, context_tokens: int) -> int:
        return context_tokens * max(len(word.encode()) for word in simulated.WORDS)

    def decode(self, ids: Sequence[int]) -> str:
        return simulated.decode(ids)

    def name(self, token_id: int) -> str:
        return simulated.piece(token_id).decode("utf-8", "replace")

    def detokenizer(self, continued: bool, special: bool = False) -> Detokenizer:
        return _PieceDetokenizer(simulated.piece, "replace", 0)

    def token_bytes(self, token_id: int) -> bytes:
        return simulated.piece(token_id)


@dataclass(frozen=True, slots=True)
class _Pieces:
    """How a tokenizer's decoder makes bytes of a token, when it does so token by token."""

    byte_level: bool = False
    replace: tuple[tuple[str, str], ...] = ()
    byte_fallback: bool = False
    strip_spaces: int = 0  # leading spaces of the whole text that are dropped
    drop_in_first: str = ""  # this character is dropped from the first token


def _pieces(decoder: dict[str, Any] | None) -> _Pieces | None:
    """What tokenizer.json's decoder does, or None if it does something that is not token by token."""
    if decoder is None:
        return None
    parts: list[dict[str, Any]] = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    if any(p["type"] == "ByteLevel" for p in parts):
        return _Pieces(byte_level=True) if all(p["type"] in ("ByteLevel", "Fuse") for p in parts) else None
    replace: list[tuple[str, str]] = []
    byte_fallback, strip, drop = False, 0, ""
    for p in parts:
        match p:
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if len(old) == 1:
                replace.append((old, new))
            case {"type": "ByteFallback"}:
                byte_fallback = True
            case {"type": "Fuse"}:
                pass
            case {"type": "Strip", "content": " ", "start": int(start), "stop": 0}:
                strip = start
            case {"type": "Metaspace", "replacement": str(mark)}:
                replace.append((mark, " "))
                if p.get("prepend_scheme", "always") != "never" and p.get("add_prefix_space", True):
                    drop = mark
            case _:
                return None
    if strip and not any(p["type"] == "Fuse" for p in parts):
        return None  # would strip every token
    return _Pieces(False, tuple(replace), byte_fallback, strip, drop)


def _reader(text: str) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _found_in_texts(tokenizer: tokenizers.Tokenizer, tokens: Mapping[str, bool]) -> dict[str, bool]:
    """Those tokens that it does find; of some a normalizer leaves nothing that looks like them."""
    found = tokenizer.encode_batch_fast([f"a{t}b" for t in tokens], add_special_tokens=False)
    pairs = zip(tokens.items(), found, strict=True)
    return {t: special for (t, special), e in pairs if tokenizer.token_to_id(t) in e.ids}


def _normalized(data: dict[str, Any], tokens: Mapping[str, bool]) -> bool:
    """Whether one of the tokens is looked for in what a normalizer has made of a text."""
    return data.get("normalizer") is not None and any(
        t.get("normalized") for t in data["added_tokens"] if t["content"] in tokens
    )


class FileCodec:
    """tokenizer.json, through the `tokenizers` library."""

    def __init__(self, folder: Path, template: str = "") -> None:
        """UserError if the folder has no tokenizer.json, or one that cannot be read. `template`: the chat template."""
        path = folder / "tokenizer.json"
        try:
            text = path.read_text(encoding="utf-8-sig")
            data = json.loads(text)
            self._tokenizer = _reader(text)
            tokens = _found_in_texts(self._tokenizer, control_tokens(data.get("added_tokens") or (), template))
            self.control = Control.of(tokens, _normalized(data, tokens))
            self._plain = _reader(json.dumps(renamed(data, self.control.names))) if tokens else self._tokenizer
            self._longest = longest_token(data)
        except FileNotFoundError as e:
            raise UserError(f"{folder} has no tokenizer.json; Headrace needs a fast tokenizer.") from e
        except Exception as e:  # the library raises bare Exception
            raise UserError(f"{path} cannot be read as a tokenizer: {e}") from e
        self.vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        added = self._tokenizer.get_added_tokens_decoder()
        self._skipped = frozenset(i for i, token in added.items() if token.special)
        self._plan = _pieces(data.get("decoder"))
        self._known: dict[int, bytes] = {}

    # The library lets go of the interpreter in what is made for batches only, and a megabyte takes a second.

    def encode(self, text: str, special: bool, plain: bool = False) -> list[int]:
        tokenizer = self._plain if plain else self._tokenizer
        return tokenizer.encode_batch_fast([text], add_special_tokens=special)[0].ids

    def encode_pair(self, text: str, document: str) -> tuple[list[int], list[int]]:
        encoded = self._plain.encode_batch_fast([(text, document)])[0]
        return encoded.ids, encoded.type_ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode_batch([list(ids)], skip_special_tokens=False)[0]

    def name(self, token_id: int) -> str:
        return self._tokenizer.id_to_token(token_id) or ""

    def prompt_bytes(self, context_tokens: int) -> int:
        return prompt_bytes(*self._longest, context_tokens)

    def detokenizer(self, continued: bool, special: bool = False) -> Detokenizer:
        plan = self._plan
        if plan is None:
            return _WindowDetokenizer(self._tokenizer, frozenset() if special else self._skipped)
        errors = "headrace-each-byte" if plan.byte_fallback else "replace"
        strip = 0 if continued else plan.strip_spaces
        drop = "" if continued else plan.drop_in_first
        first = self._first_piece if drop else None
        return _PieceDetokenizer(self.token_bytes if special else self._piece, errors, strip, first)

    def token_bytes(self, token_id: int) -> bytes:
        if token_id in self._skipped:
            return (self._tokenizer.id_to_token(token_id) or "").encode()
        if self._plan is None:
            return self._tokenizer.decode([token_id]).encode()
        return self._piece(token_id)

    def _piece(self, token_id: int) -> bytes:
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._bytes_of(token_id, drop="")
        return known

    def _first_piece(self, token_id: int) -> bytes | None:
        """Of the first token that is text; None: this one is not."""
        if token_id in self._skipped or self._tokenizer.id_to_token(token_id) is None:
            return None
        assert self._plan
        return self._bytes_of(token_id, self._plan.drop_in_first)

    def _bytes_of(self, token_id: int, drop: str) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token_id in self._skipped:
            return b""
        assert self._plan
        if self._plan.byte_level:
            try:
                return bytes([_BYTE_OF[c] for c in token])
            except KeyError:
                return token.encode()
        if self._plan.byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass
        if drop:
            token = token.replace(drop, "")
        for old, new in self._plan.replace:
            token = token.replace(old, new)
        return token.encode()


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes, and the bytes they stand for."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


_BYTE_OF = _byte_level_alphabet()


class _PieceDetokenizer:
    """For decoders that turn every token into bytes by itself."""

    def __init__(self, piece: Any, errors: str, strip_spaces: int, first_piece: Any = None) -> None:
        self._piece = piece
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors)
        self._decode = self._decoder.decode
        self._strip = strip_spaces
        self._first_piece = first_piece

    def push(self, token_id: int) -> str:
        if self._first_piece is not None:
            first = self._first_piece(token_id)
            if first is None:
                return ""
            self._first_piece = None
            return self._decode(first)
        text = self._decode(self._piece(token_id))
        return self._stripped(text) if self._strip and text else text

    def finish(self) -> str:
        return self._decode(b"", True)

    def _stripped(self, text: str) -> str:
        n = min(len(text) - len(text.lstrip(" ")), self._strip)
        self._strip = self._strip - n if n == len(text) else 0
        return text[n:]


class _WindowDetokenizer:
    """For any other decoder: decodes a window of the last tokens twice and gives what the newest one added."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, skipped: frozenset[int]) -> None:
        self._tokenizer, self._skipped = tokenizer, skipped
        self._window: list[int] = []
        self._read = 0  # tokens of the window whose text was given out

    def push(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        self._window.append(token_id)
        text = self._new_text()
        if not text or text.endswith("\ufffd"):
            return ""
        del self._window[: self._read]
        self._read = len(self._window)
        return text

    def finish(self) -> str:
        text = self._new_text()
        self._read = len(self._window)
        return text

    def _new_text(self) -> str:
        before = self._decode(self._window[: self._read])
        return self._decode(self._window)[len(before) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=bool(self._skipped)) if ids else ""
