"""What a request leaves open, and what its engine can honour."""

from __future__ import annotations

from dataclasses import fields, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from headrace.core.streams import Guide, Sampling
from headrace.errors import InvalidRequest
from headrace.replica.config_files import read_json

NEUTRAL = Sampling(
    temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, presence_penalty=0.0, frequency_penalty=0.0,
    repetition_penalty=1.0, logit_bias={}, ignore_eos=False, min_tokens=0,
)  # fmt: skip

FEATURES = frozenset(f.name for f in fields(Sampling)) | {"top_logprobs"}
"""Every name that ModelInfo.features may hold."""


def complete(asked: Sampling, defaults: Sampling) -> Sampling:
    """`asked`, with its gaps filled from the model's defaults, else neutral. seed and logprobs may stay None."""
    found: dict[str, Any] = {}
    for f in fields(Sampling):
        for source in (asked, defaults, NEUTRAL):
            value = getattr(source, f.name)
            if value is not None:
                found[f.name] = value
                break
    return Sampling(**found)


def continued(sampling: Sampling, delivered: int) -> Sampling:
    """What an engine that draws from a seed's beginning is to draw with after `delivered` tokens.

    The seed becomes another: the draws of the first tokens, once more, would not be independent of them.
    """
    if sampling.seed is None or not delivered:
        return sampling
    mixed = blake2b(b"%d,%d" % (sampling.seed, delivered), digest_size=8).digest()
    return replace(sampling, seed=int.from_bytes(mixed, "little") >> 1)


def check(asked: Sampling, features: frozenset[str], engine: str, vocab_size: int) -> None:
    """InvalidRequest, naming the parameter, if the engine would have to ignore one or it is out of range."""
    for f in fields(Sampling):
        value = getattr(asked, f.name)
        # logprobs=0 asks for the chosen token's; everywhere else 0, None and the like ask for nothing.
        neutral = value is None if f.name == "logprobs" else not value or value == getattr(NEUTRAL, f.name)
        if f.name == "temperature" and value == 0.0:
            neutral = True  # every engine can be greedy
        if not neutral and f.name not in features:
            raise _unsupported(f.name, engine)
    if asked.logprobs and "top_logprobs" not in features:
        raise _unsupported("top_logprobs", engine)
    for token_id in asked.logit_bias or ():
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(
                f"'logit_bias' names token {token_id}; this model's tokens are 0 to {vocab_size - 1}.",
                param="logit_bias",
            )


def cannot_guide(guide: Guide | None, sampling: Sampling) -> str:
    """Why an answer cannot have the form it must have, in an engine whose answers end with their form; "" if it can."""
    if guide and (sampling.ignore_eos or sampling.min_tokens):
        return "a structured answer ends where its form ends, so it cannot have ignore_eos or min_tokens"
    return ""


def _unsupported(name: str, engine: str) -> InvalidRequest:
    return InvalidRequest(f"This model runs in the engine {engine!r}, which does not support {name!r}.", param=name)


def read_generation_config(folder: Path) -> tuple[Sampling, tuple[int, ...]]:
    """A model folder's sampling defaults and end-of-sequence ids, from generation_config.json and config.json.

    The tokenizer's eos_token is an end too, whatever they name: chat templates end turns with it, and vLLM stops at it.
    """
    generation, config = read_json(folder / "generation_config.json"), read_json(folder / "config.json")
    own = config.get("eos_token_id", (config.get("text_config") or {}).get("eos_token_id"))
    eos = generation.get("eos_token_id", own)
    eos_ids = [i for i in (eos if isinstance(eos, list) else [eos]) if isinstance(i, int)]
    if (ends := _tokenizers_eos(folder)) is not None and ends not in eos_ids:
        eos_ids.append(ends)
    defaults = Sampling()
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty"):
        value = generation.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            defaults = replace(defaults, **{name: value})
    if generation.get("do_sample") is False:
        defaults = replace(defaults, temperature=0.0)
    return defaults, tuple(eos_ids)


def _tokenizers_eos(folder: Path) -> int | None:
    """The id of the eos_token of tokenizer_config.json, where tokenizer.json says it."""
    name = read_json(folder / "tokenizer_config.json").get("eos_token")
    name = name.get("content") if isinstance(name, dict) else name
    if not isinstance(name, str) or not name:
        return None
    tokenizer = read_json(folder / "tokenizer.json")
    added = {t["content"]: t["id"] for t in tokenizer.get("added_tokens") or ()}
    if name in added:
        return added[name]
    vocab = (tokenizer.get("model") or {}).get("vocab") or {}
    return vocab.get(name) if isinstance(vocab, dict) else None


def context_of(folder: Path) -> int:
    """Tokens of context that config.json names; 0 if it does not."""
    config = read_json(folder / "config.json")
    for source in (config, config.get("text_config") or {}):
        for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
            if isinstance(source.get(name), int):
                return source[name]
    return 0
