"""What became of one request: for people who ask why. Seconds are after it was received."""

from __future__ import annotations

from dataclasses import dataclass

MAX_SEEN = 16


@dataclass(frozen=True, slots=True)
class Seen:
    """A replica as the proxy saw it. `state`: what speaks against it ("draining", "no room", …); "": nothing does."""

    replica_id: str
    busyness: float
    matched: int = 0
    state: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """A replica was chosen, out of `replicas`, of which the best MAX_SEEN are in `seen`."""

    at_s: float
    replica_id: str
    reason: str
    seen: tuple[Seen, ...] = ()
    replicas: int = 0


@dataclass(frozen=True, slots=True)
class Move:
    """A stream that had so many tokens had to leave its replica."""

    at_s: float
    cause: str
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Story:
    request_id: str
    proxy_id: str
    model: str
    received_unix_s: float
    first_token_s: float | None = None
    ended_s: float | None = None
    end: str = ""  # "stop", "length", …, "cancelled", or the kind of its error; "": it runs
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    choices: tuple[Choice, ...] = ()
    moves: tuple[Move, ...] = ()
    status: int = 0  # of an answer that was an error from its beginning; 0: it was none
    why: str = ""
    request: str = ""  # method and path, where no model was reached


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the proxies said: `asked` of them, of which `answered` did in time."""

    asked: int
    answered: int
    stories: tuple[Story, ...]
