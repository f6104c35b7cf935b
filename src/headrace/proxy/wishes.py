"""What requests would like of their replica, worked out once for each."""

from __future__ import annotations

from headrace.core.affinity import NOTHING, Policy, Wish
from headrace.core.prefix import BLOCK_BYTES, blocks_of, prompt_bytes
from headrace.core.streams import Submit, Task
from headrace.core.types import Route
from headrace.core.waits import Mean


class Wishes:
    """Knows how long the prompts of each model usually are."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._usual: dict[str, Mean] = {}  # blocks of a prompt

    def of(self, route: Route | None, submit: Submit, session: str = "") -> Wish:
        """Nothing where there is no choice, or where it is not made by what requests would like."""
        if self._policy is not Policy.AUTO or submit.task is not Task.GENERATE:
            return NOTHING
        if route is None or len(route.endpoints) < 2:
            return Wish(session=session) if session else NOTHING
        usual = self._usual.setdefault(route.model, Mean())
        usual.add(len(prompt_bytes(submit)) / BLOCK_BYTES)
        return Wish(blocks_of(submit, route.adapter), usual.value, session)
