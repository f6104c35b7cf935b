"""Fetching weights: what of a source is wanted, how it is downloaded and checked, and where it is kept."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[str, float], None]
"""Told what is being done and how far it is: 0..1, negative when unknown. May be called from any thread."""


def size_text(n: int) -> str:
    """Bytes for people: "2.2 GB"."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n} bytes"
