"""Large JSON bodies, read in turns so that nobody else has to wait, and refused before they become many objects.

A value in Python takes up to twenty times the bytes that it has in JSON, and all the time that it takes nobody else is
served. So the bytes are looked through first: texts, which are cheap, by the piece; what else there is is counted. Long
lists of token ids, of which a prompt may have millions, are taken out as they are and never become objects.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator, Set
from typing import Any

import pydantic_core

from headrace.errors import InvalidRequest, TooLarge

MAX_UNITS = 131_072
"""What a body may hold beside token ids: a value counts as one, a list or an object as four."""
MAX_DEPTH = 100
_LIST_UNITS = 4
_PIECE = 64 * 1024  # bytes that one step of a pattern may look at
_TURN = 2000  # values in one turn

_BETWEEN = re.compile(rb"[\s:,]*+")
_INSIDE = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)  # a text, after its first quote
_WORD = re.compile(rb'[^\s"\[\]{}:,]++')
_COLON = re.compile(rb"\s{0,100}:")
_IDS = re.compile(rb"(?:\s*+\d{1,10}\s*+,)*+")
_LAST_ID = re.compile(rb"\s*+(\d{1,10})\s*+\]")

_QUOTE, _OPEN_LIST = b'"['
_OPEN, _CLOSE = b"[{", b"]}"


class Scan:
    """One body. `ids_in`: the fields of the outermost object that may be token ids, or lists of such lists."""

    def __init__(self, body: bytes, ids_in: Set[str] = frozenset()) -> None:
        self._body = body
        self._ids_in = {name.encode() for name in ids_in}
        self._mark = f"\0{os.urandom(16).hex()}."  # no text of a client can be one of ours
        self._ids: list[array[int]] = []
        self._pieces: list[bytes] = []
        self._kept_to = 0  # how much of the body is in `_pieces`
        self._units = 0

    def turns(self) -> Iterator[None]:
        """Look at all of it, a turn at a time. TooLarge or InvalidRequest if no request can look so.

        What is no JSON is passed over: `value` says what is wrong with it.
        """
        body, end = self._body, len(self._body)
        at = depth = looked = 0
        field, in_list = b"", False
        while at < end:
            looked += 1
            if looked % _TURN == 0:
                yield
            found = _BETWEEN.match(body, at, at + _PIECE)
            at = found.end() if found else at
            if at >= end:
                return
            char = body[at]
            if char == _QUOTE:
                begin, at = at + 1, at + 1
                while (found := _INSIDE.match(body, at, at + _PIECE)) and found.end() > at:
                    at = found.end()
                    if at - begin >= _PIECE:
                        yield
                if at >= end or body[at] != _QUOTE:
                    return
                at += 1
                if _COLON.match(body, at):
                    field = body[begin : at - 1] if depth == 1 else field
                else:
                    self._count(1)
            elif char in _OPEN:
                self._count(_LIST_UNITS)
                if depth == 1:
                    in_list = char == _OPEN_LIST
                if char == _OPEN_LIST and (depth == 1 or (depth == 2 and in_list)) and field in self._ids_in:
                    after = yield from self._take_ids(at + 1)
                    if after:
                        at = after
                        continue
                depth += 1
                if depth > MAX_DEPTH:
                    raise InvalidRequest(f"The body nests more than {MAX_DEPTH} levels.")
                at += 1
            elif char in _CLOSE:
                depth -= 1
                at += 1
            else:
                found = _WORD.match(body, at, at + _PIECE)
                at = found.end() if found else at + 1
                self._count(1)

    def _count(self, units: int) -> None:
        self._units += units
        if self._units > MAX_UNITS:
            raise TooLarge(
                f"The body holds too many values: beside token ids a request has at most {MAX_UNITS} numbers and texts,"
                f" where a list or an object counts as {_LIST_UNITS}."
            )

    def _take_ids(self, at: int) -> Iterator[Any]:
        """Take out the list of ids whose first one is at `at`, and return where it ends; 0 if it is no such list."""
        begin, ids = at - 1, array("I")
        try:
            while (found := _IDS.match(self._body, at, at + _PIECE)) and found.end() > at:
                ids.extend(pydantic_core.from_json(b"[%b]" % found[0][:-1]))
                at = found.end()
                yield
            last = _LAST_ID.match(self._body, at, at + _PIECE)
            if last is None:
                return 0
            ids.append(pydantic_core.from_json(last[1]))
        except (OverflowError, ValueError):
            return 0  # too large for an id, or 007: what reads the rest says so
        self._pieces += [self._body[self._kept_to : begin], pydantic_core.to_json(f"{self._mark}{len(self._ids)}")]
        self._ids.append(ids)
        self._kept_to = last.end()
        return self._kept_to

    def rest(self) -> bytes:
        """The body without what was taken out."""
        return b"".join([*self._pieces, self._body[self._kept_to :]]) if self._pieces else self._body

    def put_back(self, data: dict[str, Any]) -> None:
        """Put what was taken out into its places in what became of `rest`."""
        if not self._ids:
            return
        for field in self._ids_in:
            name = field.decode()
            value = data.get(name)
            if isinstance(value, list):
                data[name] = [self._ids_of(x) for x in value]
            elif value is not None:
                data[name] = self._ids_of(value)

    def _ids_of(self, value: Any) -> Any:
        if isinstance(value, str) and value.startswith(self._mark):
            return self._ids[int(value[len(self._mark) :])]
        return value
