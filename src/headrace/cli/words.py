"""Small pieces of text: nearest words, sizes, numbers, wrapping."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """ " Did you mean 'x'?", or nothing when no known word is close."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {found[0]!r}?" if found else ""


def size(count: int) -> str:
    """Bytes for people: "1.5 GiB"."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value >= 100 or value == int(value) else f"{value:.1f} {unit}"


def number(value: float) -> str:
    """2.0 as "2", 1.5 as "1.5"."""
    return str(int(value)) if value == int(value) else f"{value:.2f}".rstrip("0")


def ago(unix_s: float, now: float) -> str:
    """ "3 min ago"; "" for a time that is not known (0)."""
    if not unix_s:
        return ""
    passed = max(0.0, now - unix_s)
    for unit_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if passed >= unit_s:
            return f"{passed // unit_s:.0f} {unit} ago"
    return f"{passed:.0f} s ago"


def one_line(text: str) -> str:
    """`text` without line breaks and without anything that could steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def wrapped(text: str, width: int, indent: str = "  ") -> list[str]:
    """`text` as lines of at most `width`, each indented; words that are too long are cut."""
    clean = one_line(text)
    return textwrap.wrap(clean, width, initial_indent=indent, subsequent_indent=indent) if clean else []
