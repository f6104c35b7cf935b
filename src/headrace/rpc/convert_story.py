"""Protobuf messages of stories as our own values and back."""

from __future__ import annotations

from headrace.core import story as s
from headrace.rpc import wire
from headrace.rpc.v1 import head_pb2

_MAX_STEPS = 4096  # choices of a replica, or moves, of one request


def story_to_pb(story: s.Story) -> head_pb2.Story:
    m = head_pb2.Story(
        request_id=story.request_id,
        proxy_id=story.proxy_id,
        model=story.model,
        received_unix_s=story.received_unix_s,
        first_token_s=story.first_token_s,
        ended_s=story.ended_s,
        end=story.end,
        prompt_tokens=story.prompt_tokens,
        cached_tokens=story.cached_tokens,
        tokens=story.tokens,
        status=story.status,
        why=story.why,
        request=story.request,
    )
    for c in story.choices:
        choice = m.choices.add(at_s=c.at_s, replica_id=c.replica_id, reason=c.reason, replicas=c.replicas)
        for x in c.seen:
            choice.seen.add(replica_id=x.replica_id, busyness=x.busyness, matched=x.matched, state=x.state)
    for x in story.moves:
        m.moves.add(at_s=x.at_s, cause=x.cause, tokens=x.tokens)
    return m


def story_from_pb(m: head_pb2.Story) -> s.Story:
    return s.Story(
        request_id=wire.word(m.request_id, "request_id"),
        proxy_id=wire.word(m.proxy_id, "proxy_id"),
        model=wire.sentence(m.model, wire.MAX_WORD),
        received_unix_s=wire.seconds(m.received_unix_s, "received_unix_s"),
        first_token_s=wire.seconds(m.first_token_s, "first_token_s") if m.HasField("first_token_s") else None,
        ended_s=wire.seconds(m.ended_s, "ended_s") if m.HasField("ended_s") else None,
        end=wire.sentence(m.end, wire.MAX_WORD),
        prompt_tokens=m.prompt_tokens,
        cached_tokens=m.cached_tokens,
        tokens=m.tokens,
        choices=tuple(
            s.Choice(
                wire.seconds(c.at_s, "at_s"),
                wire.word(c.replica_id, "replica_id"),
                wire.sentence(c.reason),
                tuple(map(_seen_from_pb, wire.few(c.seen, "seen", s.MAX_SEEN))),
                c.replicas,
            )
            for c in wire.few(m.choices, "choices", _MAX_STEPS)
        ),
        moves=tuple(
            s.Move(wire.seconds(x.at_s, "at_s"), wire.sentence(x.cause), x.tokens)
            for x in wire.few(m.moves, "moves", _MAX_STEPS)
        ),
        status=m.status,
        why=wire.sentence(m.why),
        request=wire.sentence(m.request),
    )


def _seen_from_pb(m: head_pb2.Seen) -> s.Seen:
    busyness = round(wire.finite(m.busyness, "busyness"), 2)
    return s.Seen(wire.word(m.replica_id, "replica_id"), busyness, m.matched, wire.sentence(m.state, wire.MAX_WORD))


def explanation_to_pb(e: s.Explanation) -> head_pb2.ExplainResponse:
    stories = [story_to_pb(x) for x in e.stories]
    return head_pb2.ExplainResponse(asked=e.asked, answered=e.answered, stories=stories)


def explanation_from_pb(m: head_pb2.ExplainResponse) -> s.Explanation:
    return s.Explanation(m.asked, m.answered, tuple(map(story_from_pb, m.stories)))
