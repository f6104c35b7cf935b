"""Protobuf messages of stories as our own values and back."""

from __future__ import annotations

from headrace.core import story as s
from headrace.rpc.v1 import head_pb2


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
        request_id=m.request_id,
        proxy_id=m.proxy_id,
        model=m.model,
        received_unix_s=m.received_unix_s,
        first_token_s=m.first_token_s if m.HasField("first_token_s") else None,
        ended_s=m.ended_s if m.HasField("ended_s") else None,
        end=m.end,
        prompt_tokens=m.prompt_tokens,
        cached_tokens=m.cached_tokens,
        tokens=m.tokens,
        choices=tuple(
            s.Choice(
                c.at_s,
                c.replica_id,
                c.reason,
                tuple(s.Seen(x.replica_id, round(x.busyness, 2), x.matched, x.state) for x in c.seen),
                c.replicas,
            )
            for c in m.choices
        ),
        moves=tuple(s.Move(x.at_s, x.cause, x.tokens) for x in m.moves),
    )


def explanation_to_pb(e: s.Explanation) -> head_pb2.ExplainResponse:
    stories = [story_to_pb(x) for x in e.stories]
    return head_pb2.ExplainResponse(asked=e.asked, answered=e.answered, stories=stories)


def explanation_from_pb(m: head_pb2.ExplainResponse) -> s.Explanation:
    return s.Explanation(m.asked, m.answered, tuple(map(story_from_pb, m.stories)))
