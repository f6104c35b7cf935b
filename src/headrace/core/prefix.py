"""What prompts have in common at their beginning: chained hashes of their blocks, the longer the match the better.

A block's hash stands for all that comes before it too, so whoever has a block has its ancestors: what is held of a
prompt is found by bisection.
"""

from __future__ import annotations

from array import array
from collections.abc import Container, Sequence
from hashlib import blake2b

from headrace.core.streams import ChatPrompt, Submit, TextPrompt

BLOCK_BYTES = 256
"""About 64 tokens of English: an engine's own blocks have 16 to 32 tokens, and less is not worth a detour."""
MAX_BLOCKS = 1024


def blocks(data: bytes, seed: bytes = b"") -> tuple[int, ...]:
    """The hashes (64 bits) of the first whole blocks of `data`, at most MAX_BLOCKS; `seed` goes before the first."""
    end = min(len(data) // BLOCK_BYTES, MAX_BLOCKS) * BLOCK_BYTES
    last = blake2b(seed, digest_size=8).digest()
    found: list[int] = []
    for at in range(0, end, BLOCK_BYTES):
        last = blake2b(last + data[at : at + BLOCK_BYTES], digest_size=8).digest()
        found.append(int.from_bytes(last, "little"))
    return tuple(found)


def prompt_bytes(submit: Submit) -> bytes:
    """A prompt as the bytes that `blocks_of` cuts."""
    match submit.prompt:
        case TextPrompt(text):
            return text.encode("utf-8", "surrogatepass")
        case ChatPrompt(messages_json):
            return messages_json
        case _:
            return array("I", submit.prompt.ids).tobytes()


def blocks_of(submit: Submit, adapter: str = "") -> tuple[int, ...]:
    """The blocks of a prompt. The adapter, and what a chat template writes before or around it, make others of them."""
    seed = [type(submit.prompt).__name__.encode(), adapter.encode(), submit.template_args_json, submit.tools_json]
    return blocks(prompt_bytes(submit), b"\0".join(seed))


def matched(asked: Sequence[int], held: Container[int]) -> int:
    """How many of the first blocks are held, where whoever holds a block holds those before it."""
    if not asked or asked[0] not in held:
        return 0
    low, high = 1, len(asked)
    while low < high:
        middle = (low + high + 1) // 2
        if asked[middle - 1] in held:
            low = middle
        else:
            high = middle - 1
    return low
