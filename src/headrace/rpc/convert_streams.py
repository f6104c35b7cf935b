"""Protobuf messages of streams as our own values and back: `x_to_pb` and `x_from_pb`, nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from headrace.core import streams as st
from headrace.errors import HeadraceError, InvalidRequest
from headrace.rpc import wire
from headrace.rpc.convert import load_from_pb, load_to_pb
from headrace.rpc.v1 import replica_pb2, types_pb2


def failure_to_pb(f: st.Failure) -> types_pb2.ErrorInfo:
    return types_pb2.ErrorInfo(
        kind=f.kind,
        message=f.message,
        param=f.param or "",
        retry_after_s=f.retry_after_s or 0.0,
        code=f.code or "",
    )


def failure_from_pb(m: types_pb2.ErrorInfo) -> st.Failure:
    return st.Failure(m.kind, m.message, m.param or None, m.retry_after_s or None, m.code or None)


def failure_of(e: HeadraceError) -> st.Failure:
    """An exception as the value that travels."""
    return st.Failure(e.kind, e.message, e.param, e.retry_after_s, e.code)


_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logprobs",
    "ignore_eos",
    "min_tokens",
)


_FLAT = ("adapter", "tools_json", "tool_choice", "tool_name", "one_tool_call", "template_args_json", "echo", "document",
         "dimensions", "no_special_tokens", "received_unix_s", "keep_s", "moves", "owner", "nonce")  # fmt: skip
_TASKS = {
    st.Task.GENERATE: replica_pb2.GENERATE,
    st.Task.EMBED: replica_pb2.EMBED,
    st.Task.SCORE: replica_pb2.SCORE,
    st.Task.TOKENIZE: replica_pb2.TOKENIZE,
    st.Task.DETOKENIZE: replica_pb2.DETOKENIZE,
}
_TASKS_BACK = {v: k for k, v in _TASKS.items()}


def guide_to_pb(g: st.Guide) -> replica_pb2.Guide:
    if g.kind == "choices":
        return replica_pb2.Guide(choices=replica_pb2.Choices(texts=json.loads(g.value)))
    if g.kind == "json_object":
        return replica_pb2.Guide(json_object=True)
    m = replica_pb2.Guide()
    setattr(m, g.kind, g.value)
    return m


def guide_from_pb(m: replica_pb2.Guide) -> st.Guide:
    match m.WhichOneof("form"):
        case "json_schema":
            return st.Guide("json_schema", m.json_schema)
        case "regex":
            return st.Guide("regex", m.regex)
        case "grammar":
            return st.Guide("grammar", m.grammar)
        case "choices":
            return st.Guide("choices", json.dumps(list(m.choices.texts)))
        case _:
            return st.Guide("json_object")


def submit_to_pb(s: st.Submit) -> replica_pb2.SessionRequest:
    request = replica_pb2.SessionRequest()
    m = request.submit  # made in its place: a prompt may be large
    m.SetInParent()
    m.stream, m.request_id = s.stream, s.request_id
    m.stop.extend(s.stop)
    match s.prompt:
        case st.TextPrompt(text):
            m.text = text
        case st.ChatPrompt(messages):
            m.messages_json = messages
        case st.TokenPrompt(ids):
            m.token_ids.ids.extend(ids)
            m.token_ids.SetInParent()
    m.sampling.SetInParent()
    for name in _SAMPLING:
        value = getattr(s.sampling, name)
        if value is not None:
            setattr(m.sampling, name, value)
    if s.sampling.logit_bias:
        m.sampling.logit_bias.update(s.sampling.logit_bias)
    if s.max_tokens is not None:
        m.max_tokens = s.max_tokens
    if s.resume is not None:
        m.resume.token_ids.extend(s.resume.token_ids)
        m.resume.text_chars = s.resume.text_chars
        m.resume.reasoning_chars = s.resume.reasoning_chars
        m.resume.SetInParent()
    if s.task is not st.Task.GENERATE:
        m.task = _TASKS[s.task]
    for name in _FLAT:
        if value := getattr(s, name):
            setattr(m, name, value)
    if s.guide is not None:
        m.guide.CopyFrom(guide_to_pb(s.guide))
    if s.prompt_logprobs is not None:
        m.prompt_logprobs = s.prompt_logprobs
    if s.take_over is not None:
        m.take_over = s.take_over
    if s.prefix:
        m.prefix.extend(s.prefix)
    return request


def submit_from_pb(m: replica_pb2.Submit) -> st.Submit:
    kind = m.WhichOneof("prompt")
    if kind == "messages_json":
        prompt: st.Prompt = st.ChatPrompt(m.messages_json)
    elif kind == "token_ids":
        prompt = st.TokenPrompt(list(m.token_ids.ids))
    else:
        prompt = st.TextPrompt(m.text)
    given: dict[str, Any] = {
        name: wire.finite(getattr(m.sampling, name), name) for name in _SAMPLING if m.sampling.HasField(name)
    }
    bias = {k: wire.finite(v, "logit_bias") for k, v in m.sampling.logit_bias.items()} or None
    wire.seconds(m.keep_s, "keep_s")
    r = m.resume
    resume = st.Resume(list(r.token_ids), r.text_chars, r.reasoning_chars) if m.HasField("resume") else None
    return st.Submit(
        stream=m.stream,
        request_id=wire.word(m.request_id, "request_id"),
        prompt=prompt,
        sampling=st.Sampling(logit_bias=bias, **given),
        max_tokens=m.max_tokens if m.HasField("max_tokens") else None,
        stop=tuple(m.stop),
        resume=resume,
        task=_task_from_pb(m.task),
        guide=guide_from_pb(m.guide) if m.HasField("guide") else None,
        prompt_logprobs=m.prompt_logprobs if m.HasField("prompt_logprobs") else None,
        take_over=m.take_over if m.HasField("take_over") else None,
        prefix=tuple(m.prefix),
        **{name: getattr(m, name) for name in _FLAT},
    )


def _task_from_pb(m: replica_pb2.Task.ValueType) -> st.Task:
    if m not in _TASKS_BACK:
        raise InvalidRequest(f"There is no task {m}: is that another version?", param="task")
    return _TASKS_BACK[m]


def _logprob_to_pb(x: st.TokenLogprob) -> replica_pb2.TokenLogprob:
    return replica_pb2.TokenLogprob(id=x.id, token=x.token, logprob=x.logprob, top=[_logprob_to_pb(y) for y in x.top])


def _logprob_from_pb(m: replica_pb2.TokenLogprob) -> st.TokenLogprob:
    return st.TokenLogprob(m.id, m.token, m.logprob, tuple(_logprob_from_pb(y) for y in m.top))


def frame_logprobs_from_pb(m: replica_pb2.Frame) -> list[tuple[int, tuple[st.TokenLogprob, ...]]]:
    """The log-probabilities of a frame alone: (stream, one per token)."""
    return _logprobs_from_pb(m.logprobs)


def prompt_logprobs_from_pb(m: replica_pb2.Frame) -> list[tuple[int, tuple[st.TokenLogprob, ...]]]:
    """The log-probabilities of a frame's prompts alone: (stream, one per token)."""
    return _logprobs_from_pb(m.prompt_logprobs)


def _logprobs_from_pb(
    columns: Iterable[replica_pb2.StreamLogprobs],
) -> list[tuple[int, tuple[st.TokenLogprob, ...]]]:
    return [(x.stream, tuple(_logprob_from_pb(y) for y in x.tokens)) for x in columns]


def parsed_from_pb(m: replica_pb2.Parsed) -> st.Parsed:
    calls = tuple(st.ToolCall(c.index, c.id, c.name, c.arguments) for c in m.tool_calls)
    return st.Parsed(m.stream, m.reasoning, calls)


def result_from_pb(m: replica_pb2.Result) -> st.Result:
    return st.Result(m.stream, list(m.values), list(m.token_ids), m.text, list(m.token))


def frame_to_pb(f: st.Frame) -> replica_pb2.Frame:
    m = replica_pb2.Frame(
        stream=f.streams,
        position=f.positions,
        count=f.counts,
        token_id=f.token_ids,
        text=f.texts,
        draining=f.draining,
        fingerprint=f.fingerprint,
        keeps_prefixes=f.keeps_prefixes,
        took_prompts=f.took_prompts,
    )
    if f.prefixes:
        m.prefix_added.extend(b for b, held in f.prefixes.items() if held)
        m.prefix_removed.extend(b for b, held in f.prefixes.items() if not held)
    if f.load is not None:
        m.load.CopyFrom(load_to_pb(f.load))
    for s in f.started:
        m.started.add(stream=s.stream, prompt_tokens=s.prompt_tokens, echo=s.echo, delivered=s.delivered)
    for x in f.finished:
        done = m.finished.add(stream=x.stream, reason=x.reason, cached_tokens=x.cached_tokens)
        if x.failure:
            done.error.CopyFrom(failure_to_pb(x.failure))
    for r in f.rejected:
        m.rejected.add(stream=r.stream, error=failure_to_pb(r.failure))
    for stream, tokens in f.logprobs:
        m.logprobs.add(stream=stream, tokens=[_logprob_to_pb(x) for x in tokens])
    for stream, tokens in f.prompt_logprobs:
        m.prompt_logprobs.add(stream=stream, tokens=[_logprob_to_pb(x) for x in tokens])
    for p in f.parsed:
        row = m.parsed.add(stream=p.stream, reasoning=p.reasoning)
        for c in p.tool_calls:
            row.tool_calls.add(index=c.index, id=c.id, name=c.name, arguments=c.arguments)
    for r in f.results:
        m.results.add(stream=r.stream, values=r.values, token_ids=r.token_ids, text=r.text, token=r.tokens)
    return m


def frame_from_pb(m: replica_pb2.Frame) -> st.Frame:
    return st.Frame(
        streams=list(m.stream),
        positions=list(m.position),
        counts=list(m.count),
        token_ids=list(m.token_id),
        texts=list(m.text),
        started=[st.Started(x.stream, x.prompt_tokens, x.echo, list(x.delivered)) for x in m.started],
        finished=[
            st.Finished(
                x.stream,
                x.reason,
                x.cached_tokens,
                failure_from_pb(x.error) if x.HasField("error") else None,
            )
            for x in m.finished
        ],
        rejected=[st.Rejected(x.stream, failure_from_pb(x.error)) for x in m.rejected],
        logprobs=frame_logprobs_from_pb(m),
        load=load_from_pb(m.load) if m.HasField("load") else None,
        draining=m.draining,
        parsed=[parsed_from_pb(x) for x in m.parsed],
        results=[result_from_pb(x) for x in m.results],
        prompt_logprobs=prompt_logprobs_from_pb(m),
        fingerprint=m.fingerprint,
        prefixes=dict.fromkeys(m.prefix_added, True) | dict.fromkeys(m.prefix_removed, False),
        keeps_prefixes=m.keeps_prefixes,
        took_prompts=m.took_prompts,
    )
