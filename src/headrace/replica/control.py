"""Control tokens: those with which a chat template ends and begins turns, and which nobody else may write.

A text that a client sent may spell one out; it is text then, as if the vocabulary had no such token. So:

1. before the template runs, each one in a client's text is broken by a mark, digits that nobody can guess;
2. what the template made has whole ones of its own, and they get other names, as secret as the mark; the marks go;
3. a second tokenizer knows the control tokens by those names only: to it the old ones are text.

Whatever else a tokenizer does (normalizers, what comes first, whitespace beside a token) it does as before. Where no
client's text has any of it, the first tokenizer reads what the template made, as always.

Control tokens are the vocabulary's special ones, and those of its other added tokens that the template writes, or
that are around reasoning and tool calls. These last stay what they are in an assistant's messages: the model wrote them
there as text, and templates look for them.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_OF_AN_ANSWER = re.compile("think|thought|reason|tool|func|answer", re.IGNORECASE)


def control_tokens(added: Sequence[Mapping[str, Any]], template: str) -> dict[str, bool]:
    """Which of tokenizer.json's `added_tokens` are control tokens, and whether they are special."""
    found: dict[str, bool] = {}
    for token in added:
        text, special = str(token["content"]), bool(token.get("special"))
        written = bool(text.strip()) and (text in template or bool(_OF_AN_ANSWER.search(text)))
        if len(text) > 1 and (special or written):
            found[text] = special
    return found


@dataclass(frozen=True, slots=True)
class Control:
    """`names`: control tokens by what they are called where the template wrote them.

    `answers`: those that stay what they are in an assistant's messages. `always`: texts that do not spell a control
    token out can become one too (a normalizer makes it of them), so that the second tokenizer reads everything.
    """

    names: Mapping[str, str]
    answers: frozenset[str]
    always: bool = False

    @staticmethod
    def of(tokens: Mapping[str, bool], always: bool = False) -> Control:
        """Of what `control_tokens` found."""
        nonce = secrets.token_hex(12)
        names = {text: f"<|{nonce}x{i}x|>" for i, text in enumerate(tokens)}
        answers = frozenset(t for t, special in tokens.items() if not special and _OF_AN_ANSWER.search(t))
        return Control(names, answers, always)


class Marks:
    """Marks control tokens in what a client sent, and takes the marks out of what a template made of that."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._whole = _any_of(control.names)
        self._client = _Breaker(list(control.names))
        self._assistant = _Breaker([t for t in control.names if t not in control.answers])

    def marked(self, value: Any, mark: str, *, assistant: bool = False) -> Any:
        """A JSON value with every control token in its strings and keys broken; the same object if it has none."""
        if self._whole is None:
            return value
        broken = (self._assistant if assistant else self._client).broken
        return _mapped(value, lambda text: broken(text, mark))

    def unmarked(self, text: str, mark: str) -> tuple[str, bool]:
        """What the template made, for the tokenizer; True: for the second one. `mark`: "" if nothing was marked."""
        if self._whole is None or not (mark or self._control.always):
            return text, False
        text = self._whole.sub(lambda found: self._control.names[found[0]], text)
        return text.replace(mark, "") if mark else text, True


def new_mark() -> str:
    """Digits: no filter of a template changes them."""
    return str(secrets.randbelow(9 * 10**23) + 10**23)


class _Breaker:
    """Breaks tokens in texts, and what two texts that come to stand side by side would make one of."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._whole = _any_of(tokens)
        self._begins = {t[:n] for t in tokens for n in range(1, len(t))}
        self._ends = {t[-n:] for t in tokens for n in range(2, len(t))}
        self._longest = max(map(len, tokens), default=0)

    def broken(self, text: str, mark: str) -> str:
        if self._whole is None or not text:
            return text
        while self._whole.search(text):
            text = self._whole.sub(lambda found: found[0][0] + mark + found[0][1:], text)
        most = min(len(text), self._longest - 1)
        if begun := next((n for n in range(most, 0, -1) if text[-n:] in self._begins), 0):
            at = len(text) - begun + 1
            text = text[:at] + mark + text[at:]
        if next((n for n in range(2, most + 1) if text[:n] in self._ends), 0):
            text = text[:1] + mark + text[1:]
        return text


def _any_of(tokens: Sequence[str] | Mapping[str, str]) -> re.Pattern[str] | None:
    """The longest of those that begin at a place, as tokenizers find them."""
    return re.compile("|".join(re.escape(t) for t in sorted(tokens, key=len, reverse=True))) if tokens else None


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        pairs = [(change(k), _mapped(v, change)) for k, v in value.items()]
        same = all(a is b and v is w for (a, v), (b, w) in zip(value.items(), pairs, strict=True))
        return value if same else dict(pairs)
    if isinstance(value, list):
        items = [_mapped(v, change) for v in value]
        return items if any(a is not b for a, b in zip(value, items, strict=True)) else value
    return value


def renamed(tokenizer: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """What tokenizer.json holds, with other names for some tokens; to this one the old names are text."""
    model = dict(tokenizer["model"])
    vocab = model.get("vocab")
    if isinstance(vocab, list):
        model["vocab"] = [[names.get(word, word), *more] for word, *more in vocab]
    elif vocab:
        model["vocab"] = {names.get(word, word): number for word, number in vocab.items()}
    if "unk_token" in model:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if merges := model.get("merges"):
        pairs = [m.split(" ", 1) if isinstance(m, str) else m for m in merges]
        # One that makes a control token, or is made of one, would make it of text.
        model["merges"] = [m for m, (a, b) in zip(merges, pairs, strict=True) if not {a, b, a + b} & names.keys()]
    added = [t | {"content": names.get(t["content"], t["content"])} for t in tokenizer.get("added_tokens") or ()]
    return {**tokenizer, "model": model, "added_tokens": added}
