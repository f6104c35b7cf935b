"""What differs between two views of the cluster: what was worked out for everything else still holds.

Values are compared as objects, not by what is in them: what did not change is handed on as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from headrace.core.state import Nodes, NodeView, State
from headrace.core.types import NodeId

Seen = tuple[State, Nodes]


def deployments(old: Seen, new: Seen) -> set[str]:
    """Those, also former ones, of which anything differs: what is wanted, their replicas, what nodes say of these.

    Not the time, and not what other deployments leave of the nodes.
    """
    (old_state, old_nodes), (state, nodes) = old, new
    names = _differ(old_state.deployments, state.deployments)
    names |= _differing_groups(old_state, state)
    for node_id, node in nodes.items():
        before = old_nodes.get(node_id)
        if before is node:
            continue
        there = state.intents.on(node_id)
        if before is None or _circumstances(before) != _circumstances(node):
            names.update(i.deployment for i in there)
        elif before.statuses is not node.statuses:
            had, has = before.statuses, node.statuses
            names.update(i.deployment for i in there if had.get(i.replica_id) is not has.get(i.replica_id))
    names.update(i.deployment for node_id in old_nodes if node_id not in nodes for i in state.intents.on(node_id))
    return names


def _circumstances(node: NodeView) -> tuple[bool, bool, int]:
    return node.lost, not node.reported_at, node.info.incarnation


def nodes_to_tell(old: State, new: State) -> set[NodeId]:
    """The nodes that may have something else to run."""
    found = {n for n in new.intents.nodes | old.intents.nodes if new.intents.on(n) is not old.intents.on(n)}
    changed = _differ(old.deployments, new.deployments)
    # Whether an older revision is still there matters to the replicas of the newer one, on any node.
    changed |= {n for n in _differing_groups(old, new) if old.intents.oldest(n) != new.intents.oldest(n)}
    return found | {i.node_id for name in changed for i in new.intents.of(name)}


def _differing_groups(old: State, new: State) -> set[str]:
    was, now = old.intents, new.intents
    return {name for name in was.deployments | now.deployments if was.of(name) is not now.of(name)}


def _differ(old: Mapping[str, Any], new: Mapping[str, Any]) -> set[str]:
    if old is new:
        return set()
    names: Iterable[str] = old.keys() | new.keys()
    return {name for name in names if old.get(name) is not new.get(name)}
