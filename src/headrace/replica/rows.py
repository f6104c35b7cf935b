"""From an engine's row to the columns of its session's next frame.

Each `take_…` puts one row's news into the columns and returns how the stream ended, if it did. The rows of ordinary
streams (`take_tokens`) do no work for what only others need.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from headrace.core.streams import Failure, Finished, Parsed, Result, TokenLogprob
from headrace.replica.engine import Delta, Row
from headrace.replica.prepared import Prepared, PreparedEncoding
from headrace.replica.tokenizer import TextCodec

if TYPE_CHECKING:
    from headrace.replica.session import Session


@dataclass(slots=True)
class Stream:
    """One answer on its way. `prepared` is None while the front end works on it; `take` belongs to its kind."""

    number: int
    session: Session
    engine_id: int
    prepared: Prepared | PreparedEncoding | None = None
    position: int = 0
    adapter: str = ""
    ids: array[int] | None = None  # of the whole answer, if it is kept for another proxy
    leaf: int = 0  # of its prompt, in Prefixes; 0: not there
    take: Callable[[Stream, Row, TextCodec], Finished | None] = field(default_factory=lambda: take_tokens)


def take_tokens(stream: Stream, row: Row, codec: TextCodec) -> Finished | None:
    p: Any = stream.prepared  # a Prepared: not looked at once per token
    finish = row.finish
    if finish == "abort":
        return Finished(stream.number, "abort", row.cached_tokens)
    used, text = p.answer.push(row.tokens) if row.tokens else (0, "")
    if p.text:  # certain since a resume
        text, p.text = p.text + text, ""
    if p.answer.stopped:
        finish = "stop"
    elif finish:
        text += p.answer.finish()
        if p.answer.stopped:
            finish = "stop"
    if used or text:
        c = stream.session.columns
        c.streams.append(stream.number)
        c.positions.append(stream.position)
        c.counts.append(used)
        c.token_ids.extend(row.tokens[:used])
        c.texts.append(text)
        stream.position += used
        if stream.ids is not None:
            stream.ids.extend(row.tokens[:used])
        if row.logprobs and p.logprobs is not None:
            c.logprobs.append((stream.number, _logprobs(row, used, codec)))
    return _finished(stream, row, finish) if finish else None


def take_more(stream: Stream, row: Row, codec: TextCodec) -> Finished | None:
    """As `take_tokens`, for an answer that is read by a Reader, or whose prompt is of interest."""
    p = stream.prepared
    assert type(p) is Prepared
    finish = row.finish
    if finish == "abort":
        return Finished(stream.number, "abort", row.cached_tokens)
    if row.prompt_logprobs:
        given = tuple(_logprob(*x, codec) for x in row.prompt_logprobs)
        stream.session.columns.prompt_logprobs.append((stream.number, given))
    if p.discard:
        return _finished(stream, row, "length" if finish in ("stop", "length") else finish) if finish else None
    used, text = p.answer.push(row.tokens) if row.tokens else (0, "")
    if p.answer.stopped:
        finish = "stop"
    elif finish:
        text += p.answer.finish()
        if p.answer.stopped:
            finish = "stop"
    ids = row.tokens[:used]
    text = read(stream, p, text, ids, last=finish is not None)
    if used or text:
        _put(stream, row, used, text)
        if row.logprobs and p.logprobs is not None:
            stream.session.columns.logprobs.append((stream.number, _logprobs(row, used, codec)))
    if finish and p.reader:
        finish = p.reader.reason(finish)
    return _finished(stream, row, finish) if finish else None


def read(stream: Stream, p: Prepared, text: str, ids: Sequence[int], last: bool) -> str:
    """What is left of `text` when the stream's reader, if any, has taken out what is no text."""
    before, p.text = p.text, ""
    if p.reader is None:
        return before + text
    deltas = [p.reader.push(text, ids)] if text or ids else []
    if last:
        deltas.append(p.reader.finish())
    for d in deltas:
        put_parsed(stream, d)
    return before + "".join(d.text for d in deltas)


def put_parsed(stream: Stream, d: Delta) -> None:
    if d.reasoning or d.tool_calls:
        stream.session.columns.parsed.append(Parsed(stream.number, d.reasoning, d.tool_calls))


def take_values(stream: Stream, row: Row, codec: TextCodec) -> Finished | None:
    if not row.finish:
        return None
    if row.finish == "stop":
        stream.session.columns.results.append(Result(stream.number, values=row.values))
    return _finished(stream, row, row.finish)


def put_text(stream: Stream, text: str) -> None:
    """A row of text that no new token brought."""
    if text:
        _put(stream, Row(0, ()), 0, text)


def _put(stream: Stream, row: Row, used: int, text: str) -> None:
    c = stream.session.columns
    c.streams.append(stream.number)
    c.positions.append(stream.position)
    c.counts.append(used)
    c.token_ids.extend(row.tokens[:used])
    c.texts.append(text)
    stream.position += used
    if stream.ids is not None:
        stream.ids.extend(row.tokens[:used])


def _finished(stream: Stream, row: Row, finish: str) -> Finished:
    failure = None
    if finish == "error":
        failure = Failure(row.kind, row.error)
    return Finished(stream.number, finish, row.cached_tokens, failure)


def _logprobs(row: Row, used: int, codec: TextCodec) -> tuple[TokenLogprob, ...]:
    return tuple(
        _logprob(i, chosen, top, codec) for i, (chosen, top) in zip(row.tokens[:used], row.logprobs, strict=False)
    )


def _logprob(token_id: int, logprob: float, top: Sequence[tuple[int, float]], codec: TextCodec) -> TokenLogprob:
    bytes_of = codec.token_bytes
    return TokenLogprob(token_id, bytes_of(token_id), logprob, tuple(TokenLogprob(j, bytes_of(j), x) for j, x in top))
