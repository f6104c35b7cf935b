"""Names of a chat template that a request may not give values of its own."""

from __future__ import annotations

_RESERVED = frozenset(
    {
        "messages", "tools", "raise_exception", "strftime_now", "range", "namespace", "dict", "lipsum", "cycler",
        "joiner", "loop", "self", "caller", "varargs", "kwargs", "additional_special_tokens",
    }
)  # fmt: skip


def reserved(name: str) -> bool:
    """Whether it is what the request itself is made of, the model's own tokens, or what templates are written in."""
    return name in _RESERVED or name.endswith("_token") or name.startswith("_")
