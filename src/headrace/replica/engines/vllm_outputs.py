"""Between our values and vLLM's: sampling parameters there, new tokens and log-probabilities back."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vllm.exceptions import (  # pyright: ignore[reportMissingImports]
    MaxQueuedTokensError,
    QueueOverflowError,
    VLLMClientError,
)
from vllm.sampling_params import (  # pyright: ignore[reportMissingImports]
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
)

from headrace.core.streams import Guide
from headrace.replica.engine import EngineRequest, Row
from headrace.replica.engines.vllm_args import brief
from headrace.replica.engines.vllm_penalties import counts_delivered, extra_args
from headrace.replica.sampling import continued


def sampling_params(request: EngineRequest) -> SamplingParams:
    """What vLLM is to do for `request`: new token ids only, no text."""
    s, extra = continued(request.sampling, request.delivered), None
    if counts_delivered(s, request.delivered):
        extra = extra_args(s, request.delivered)
        s = replace(s, presence_penalty=0.0, frequency_penalty=0.0, repetition_penalty=1.0)
    return SamplingParams(
        temperature=s.temperature or 0.0,
        top_p=1.0 if s.top_p is None else s.top_p,
        top_k=s.top_k or 0,
        min_p=s.min_p or 0.0,
        seed=s.seed,
        presence_penalty=s.presence_penalty or 0.0,
        frequency_penalty=s.frequency_penalty or 0.0,
        repetition_penalty=1.0 if s.repetition_penalty is None else s.repetition_penalty,
        logit_bias=dict(s.logit_bias) if s.logit_bias else None,
        logprobs=s.logprobs,
        prompt_logprobs=request.prompt_logprobs,
        ignore_eos=bool(s.ignore_eos),
        min_tokens=min(request.max_tokens, max(0, (s.min_tokens or 0) - request.delivered)),
        stop_token_ids=list(request.stop_token_ids) or None,
        max_tokens=request.max_tokens,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        structured_outputs=_structured(request.guide) if request.guide else None,
        extra_args=extra,
        skip_clone=True,
    )


def _structured(guide: Guide) -> StructuredOutputsParams:
    match guide.kind:
        case "json_schema":
            return StructuredOutputsParams(json=guide.value)
        case "json_object":
            return StructuredOutputsParams(json_object=True)
        case "regex":
            return StructuredOutputsParams(regex=guide.value)
        case "grammar":
            return StructuredOutputsParams(grammar=guide.value)
        case "choices":
            return StructuredOutputsParams(choice=json.loads(guide.value))


Alternatives = tuple[tuple[int, float], ...]


def logprobs_of(
    tokens: Sequence[int], given: Sequence[Mapping[int, Any]], alternatives: int
) -> list[tuple[float, Alternatives]]:
    """One per token: its own, and the `alternatives` most probable tokens', best first."""
    return [(entry[token].logprob, _top(entry, alternatives)) for token, entry in zip(tokens, given, strict=False)]


def prompt_logprobs_of(
    ids: Sequence[int], given: Sequence[Mapping[int, Any] | None], alternatives: int
) -> list[tuple[int, float, Alternatives]]:
    """One per prompt token; the first, which nothing comes before, has 0.0 and no alternatives."""
    return [
        (token, 0.0, ()) if entry is None else (token, entry[token].logprob, _top(entry, alternatives))
        for token, entry in zip(ids, given, strict=False)
    ]


def _top(entry: Mapping[int, Any], n: int) -> Alternatives:
    ranked = sorted((x.rank, i, x.logprob) for i, x in entry.items() if x.rank is not None and x.rank <= n)
    return tuple((i, logprob) for _, i, logprob in ranked)


def finish_of(reason: str | None) -> str | None:
    """Why a stream ended, in our words."""
    return reason if reason in (None, "length", "abort", "error") else "stop"


def plain_row(request_id: int, tokens: list[int], finish: str | None, stops: Collection[int], cached: int) -> Row:
    """What one step brought; without the last token if that is one of `stops`."""
    if finish == "error":
        return Row(request_id, tokens, "error", error="vLLM failed on this request; the replica's log says more.")
    if finish == "stop" and tokens and tokens[-1] in stops:
        tokens = tokens[:-1]
    return Row(request_id, tokens, finish, cached_tokens=cached)


def row_of(
    request_id: int, output: Any, stops: Collection[int], logprobs: int | None, prompt_logprobs: int | None
) -> Row:
    """As `plain_row`, with log-probabilities."""
    out = output.outputs[0]
    tokens: list[int] = list(out.token_ids)
    row = plain_row(request_id, tokens, finish_of(out.finish_reason), stops, output.num_cached_tokens or 0)
    if logprobs is not None and out.logprobs:
        row.logprobs = logprobs_of(tokens, out.logprobs, logprobs)[: len(row.tokens)]
    if prompt_logprobs is not None and output.prompt_logprobs:
        row.prompt_logprobs = prompt_logprobs_of(output.prompt_token_ids or (), output.prompt_logprobs, prompt_logprobs)
    return row


def refusal_of(request_id: int, e: Exception) -> Row:
    """The last row of a request that vLLM does not take. What is the request's own fault is told as such."""
    if isinstance(e, QueueOverflowError | MaxQueuedTokensError):
        return Row(request_id, (), "error", error="This replica's queue is full.", kind="overloaded")
    if isinstance(e, VLLMClientError | ValueError | TypeError):
        return Row(request_id, (), "error", error=f"The engine refuses the request: {brief(e)}", kind="invalid_request")
    return Row(request_id, (), "error", error=f"The engine failed on the request: {brief(e)}")


def numbers_of(request_id: int, output: Any) -> Row:
    """The only row of a request for numbers."""
    error = getattr(output, "error", None)  # since 0.31
    if error is not None:
        return Row(request_id, (), "error", error=f"The engine refuses the request: {error.message}")
    values = [float(x) for x in output.outputs.data.flatten().tolist()]
    return Row(request_id, (), "stop", cached_tokens=output.num_cached_tokens or 0, values=values)
