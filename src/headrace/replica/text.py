"""From token ids to the text of a stream: whole characters only, and never any of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol


class Detokenizer(Protocol):
    """One stream's state. The texts of all `push`es and of `finish`, joined, are the whole decode of the ids."""

    def push(self, token_id: int) -> str:
        """The text that this token makes certain."""
        ...

    def finish(self) -> str:
        """What was still waiting for the rest of a character, as U+FFFD."""
        ...


class StopFinder:
    """Passes text on until one of the stop strings is complete; what may be the beginning of one waits.

    The result does not depend on how the text was cut into pieces: the stop string that is complete first wins, of two
    that are complete at once the longer.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(s for s in stops if s)
        self._ends = frozenset(c for s in self._stops for c in s[:-1])  # what a beginning of one can end with
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that is certain now. After `stopped`, nothing."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        held = self._held + text
        # (end, start): the smallest end is complete first, then the smallest start is the longest.
        found = [(at + len(s), at) for s in self._stops if (at := held.find(s)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return held[: min(found)[1]]
        if held[-1:] not in self._ends:  # as after most tokens
            self._held = ""
            return held
        keep = max(_overlap(held, s) for s in self._stops)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> str:
        """The text that waited for a stop string which never came."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    for n in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0


class Answer:
    """The text of one stream's answer: detokenization, stop strings, and what a resumed stream's client has had."""

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str] = ()) -> None:
        self._detokenizer = detokenizer
        self._stop = StopFinder(stops)
        self._has_stops = bool(stops)
        self._skip = 0

    @property
    def stopped(self) -> bool:
        return self._stop.stopped

    def push(self, ids: Sequence[int]) -> tuple[int, str]:
        """How many of `ids` belong to the answer (all, unless a stop string ended it), and the text they bring."""
        detokenize = self._detokenizer.push
        if not self._has_stops:
            return len(ids), self._unskipped("".join([detokenize(i) for i in ids]))
        text = ""
        for n, i in enumerate(ids, 1):
            text += self._stop.push(detokenize(i))
            if self._stop.stopped:
                return n, self._unskipped(text)
        return len(ids), self._unskipped(text)

    def finish(self) -> str:
        """The rest of the text, when no more tokens come."""
        return self._unskipped(self._stop.push(self._detokenizer.finish()) + self._stop.finish())

    def resume(self, ids: Sequence[int], text_chars: int) -> str:
        """Take in what was delivered before; the text that is certain by now but was not sent then."""
        self._skip = text_chars
        return self.push(ids)[1]

    def _unskipped(self, text: str) -> str:
        if self._skip:
            cut = min(self._skip, len(text))
            self._skip -= cut
            return text[cut:]
        return text


def _one_each(e: UnicodeError) -> tuple[str, int]:
    if not isinstance(e, UnicodeDecodeError):
        raise e
    return "\ufffd" * (e.end - e.start), e.end


# Byte-level decoders make one U+FFFD of a broken character, byte-fallback decoders one of each of its bytes.
codecs.register_error("headrace-each-byte", _one_each)
