"""All hostile inputs, in the order in which they are tried."""

from __future__ import annotations

from strangers import bodies, connections, prompts, texts
from strangers.script import Hostile

INPUTS: tuple[Hostile, ...] = (*bodies.INPUTS, *texts.INPUTS, *prompts.INPUTS, *connections.INPUTS)
