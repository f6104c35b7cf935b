"""spec.json: what a scheduler tells a replica process at its start."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, cast

from headrace.core.types import Adapter, ModelSpec, ReplicaId, ReplicaSpec, Resources


@dataclass(frozen=True, slots=True)
class SpecFile:
    """`host`: the address to listen on (port 0). `cache_dir`: where weights and conversions are kept on this node.
    `cache_limit_bytes`: what they may come to; 0: no limit."""

    spec: ReplicaSpec
    host: str
    cache_dir: str
    cache_limit_bytes: int = 0


def dump_spec(spec: ReplicaSpec, *, host: str, cache_dir: str, cache_limit_bytes: int = 0) -> str:
    """The text of spec.json; `parse_spec` reads it."""
    ours = {"host": host, "cache_dir": cache_dir, "cache_limit_bytes": cache_limit_bytes}
    return json.dumps(asdict(spec) | ours, indent=2)


def parse_spec(text: str) -> SpecFile:
    """What `dump_spec` wrote; ValueError if `text` is not that."""
    try:
        data: Any = json.loads(text)
        if not isinstance(data, dict):
            raise TypeError("not an object")
        fields = cast("dict[str, Any]", data)
        spec = ReplicaSpec(
            replica_id=ReplicaId(str(fields["replica_id"])),
            deployment=str(fields["deployment"]),
            revision=int(fields["revision"]),
            model=ModelSpec(**fields["model"]),
            resources=Resources(**fields["resources"]),
            gpu_indices=tuple(int(i) for i in fields["gpu_indices"]),
            drain_s=float(fields["drain_s"]),
            adapters=tuple(Adapter(**a) for a in fields.get("adapters", ())),
            proven=fields.get("proven") is True,
            on_trial=fields.get("on_trial") is True,
        )
        # Not in what an older scheduler wrote.
        limit = int(fields.get("cache_limit_bytes", 0))
        return SpecFile(spec, str(fields["host"]), str(fields["cache_dir"]), limit)
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"not a replica's spec.json ({e}): {text[:80]!r}") from e
