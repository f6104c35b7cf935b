"""Who may ask for how much, and what one request asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from headrace.core.affinity import NOTHING, Decision, Wish
from headrace.core.fair import Claim
from headrace.core.route import Candidate

PRIORITIES = (-100, 100)
"""A lower number is more urgent, as vLLM has it; 0 without one."""


@dataclass(frozen=True, slots=True)
class Caller:
    """One or several API keys of one name. `priority`: the most urgent that it may ask for. `max_streams` 0: no cap."""

    name: str = ""
    weight: float = 1.0
    priority: int = 0
    max_streams: int = 0
    models: frozenset[str] | None = None  # names that it may call, and those of their adapters; None: all

    def may_call(self, name: str) -> bool:
        """Whether a public name is one of its models, or of an adapter of one."""
        return self.models is None or name in self.models or name.rpartition(":")[0] in self.models

    @property
    def owner(self) -> str:
        """What replicas know it by; "" of nobody."""
        return blake2b(self.name.encode(), digest_size=16).hexdigest() if self.name else ""


ANYONE = Caller(priority=PRIORITIES[0])
"""Where no API keys are asked for."""


class Asked(NamedTuple):
    """What all streams of a request have in common. `owner`: see Caller; `keep_s`: see Submit."""

    request_id: str
    received_unix_s: int = 0
    owner: str = ""
    keep_s: float = 0.0


@dataclass(slots=True)
class Ticket:
    """One request at admission. Once `admitted` its streams wait in no queue again, wherever they have to go.

    `on_choice` is called whenever a replica was chosen for it, `on_move` when a stream has to leave its replica.
    """

    caller: Caller = ANYONE
    priority: int = 0
    streams: int = 1
    deadline: float = math.inf  # of the loop's clock
    admitted: bool = False
    wish: Wish = NOTHING
    on_move: Callable[[str, int], None] = lambda cause, tokens: None
    on_choice: Callable[[Decision, Sequence[Candidate]], None] = lambda decision, candidates: None

    def claim(self) -> Claim:
        return Claim(self.caller.name, self.caller.weight, self.priority, float(self.streams))
