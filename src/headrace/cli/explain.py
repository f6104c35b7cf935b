"""`headrace explain`: why a request went where it went, and what became of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from typing import Any

import click

from headrace.cli.client import call_head, client_options
from headrace.cli.inspect import to_json
from headrace.cli.kinds import Argument
from headrace.cli.words import one_line
from headrace.core.story import Choice, Explanation, Story
from headrace.errors import NotFound


@click.command()
@click.argument("request_id", cls=Argument)
@click.option("--json", "as_json", is_flag=True, help="All there is, for programs.")
@client_options
def explain(request_id: str, as_json: bool, **params: Any) -> None:
    """Tell what became of a request: its X-Request-Id, as the answer's head or the proxy's log has it."""
    found = call_head(params, lambda admin: admin.explain(request_id))
    if not found.stories:
        raise NotFound(nobody_knows(request_id, found))
    if as_json:
        click.echo(to_json(asdict(found)))
        return
    click.echo("\n\n".join("\n".join(story_lines(s)) for s in found.stories))


def nobody_knows(request_id: str, found: Explanation) -> str:
    """One sentence."""
    if not found.asked:
        return "No proxy is connected to the head, and only proxies keep records of requests."
    late = found.asked - found.answered
    asked = "1 proxy was asked" if found.asked == 1 else f"{found.asked} proxies were asked"
    silent = f", of which {late} did not answer" if late else ""
    return (
        f"No record of request {request_id[:100]!r}: {asked}{silent}; each keeps those of its last 10,000 requests, in"
        " memory."
    )


def story_lines(s: Story) -> Iterator[str]:
    """A story for people to read."""
    when = datetime.fromtimestamp(s.received_unix_s).strftime("%Y-%m-%d %H:%M:%S")
    yield f"{s.request_id}: {one_line(s.model or s.request)}, received {when} by {s.proxy_id}"
    turns = [(c.at_s, list(_choice_lines(c))) for c in s.choices]
    turns += [(m.at_s, [f"left its replica after {m.tokens} tokens: {m.cause}"]) for m in s.moves]
    if s.first_token_s is not None:
        turns.append((s.first_token_s, ["first token"]))
    cached = f" ({s.cached_tokens} of them from the prefix cache)" if s.cached_tokens else ""
    numbers = f"{s.prompt_tokens} prompt tokens{cached}, {s.tokens} tokens of answer"
    if s.ended_s is not None:
        end = [f"ended: {s.end}; {numbers}"] if s.end else []
        told = [f"answered with {s.status}: {one_line(s.why)}"] if s.status else []
        turns.append((s.ended_s, [*end, *told]))
    for at, (first, *more) in sorted(turns, key=lambda t: t[0]):
        yield f"  {at:9.3f} s  {first}"
        for line in more:
            yield f"{'':15}{line}"
    if not s.choices and not s.request:
        yield "  no replica was chosen" + ("" if s.end else " yet")
    if s.ended_s is None and not s.status:
        yield f"  runs; so far {numbers}"


def _choice_lines(c: Choice) -> Iterator[str]:
    yield f"went to {c.replica_id}: {c.reason}"
    width = max((len(x.replica_id) for x in c.seen), default=0)
    for x in c.seen:
        mark = "→" if x.replica_id == c.replica_id else " "
        matched = f", {x.matched} blocks of the prompt" if x.matched else ""
        state = f", {x.state}" if x.state else ""
        yield f"{mark} {x.replica_id:{width}}  busy {x.busyness:g}{matched}{state}"
    if c.replicas > len(c.seen):
        yield f"  and {c.replicas - len(c.seen)} more"
