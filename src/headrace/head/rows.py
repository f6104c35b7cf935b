"""The tables of the store, and rows ↔ values. Every row carries a seal, so that damage is found and never served."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import sqlalchemy as sa

from headrace.core.state import Goal, Intent, Revision
from headrace.core.types import Adapter, CatalogEntry, Deployment, ModelSpec, NodeId, ReplicaId, Resources

SCHEMA_VERSION = 4

metadata = sa.MetaData()

meta = sa.Table(
    "meta",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
    sa.Column("seal", sa.Text, nullable=False),
)
deployments = sa.Table(
    "deployments",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("min_replicas", sa.Integer, nullable=False),
    sa.Column("max_replicas", sa.Integer, nullable=False),
    sa.Column("replicas", sa.Integer, nullable=False),
    sa.Column("created_unix_s", sa.BigInteger, nullable=False),
    sa.Column("adapters", sa.Text, nullable=False),
    sa.Column("on_demand", sa.Integer, nullable=False),
    sa.Column("seal", sa.Text, nullable=False),
)
revisions = sa.Table(
    "revisions",
    metadata,
    sa.Column("deployment", sa.Text, primary_key=True),
    sa.Column("revision", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("resources", sa.Text, nullable=False),
    sa.Column("created_unix_s", sa.BigInteger, nullable=False),
    sa.Column("repeats", sa.BigInteger, nullable=False),
    sa.Column("proven", sa.Integer, nullable=False),
    sa.Column("seal", sa.Text, nullable=False),
)
intents = sa.Table(
    "intents",
    metadata,
    sa.Column("replica_id", sa.Text, primary_key=True),
    sa.Column("deployment", sa.Text, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("node_id", sa.Text, nullable=False),
    sa.Column("resources", sa.Text, nullable=False),
    sa.Column("gpu_indices", sa.Text, nullable=False),
    sa.Column("goal", sa.Text, nullable=False),
    sa.Column("created", sa.Float(53), nullable=False),
    sa.Column("changed", sa.Float(53), nullable=False),
    sa.Column("address", sa.Text, nullable=False),
    sa.Column("context_tokens", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("incarnation", sa.BigInteger, nullable=False),
    sa.Column("seal", sa.Text, nullable=False),
)
entries = sa.Table(
    "entries",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("resources", sa.Text, nullable=False),
    sa.Column("adapters", sa.Text, nullable=False),
    sa.Column("on_demand", sa.Integer, nullable=False),
    sa.Column("seal", sa.Text, nullable=False),
)

# What each schema added to the one before: (table, column, its value in rows that were there already).
ADDED: Mapping[int, Sequence[tuple[str, str, str | int]]] = {
    2: (("deployments", "adapters", "[]"), ("entries", "adapters", "[]")),
    3: (("revisions", "created_unix_s", 0), ("revisions", "repeats", 0)),
    4: (
        ("deployments", "on_demand", 0),
        ("entries", "on_demand", 0),
        ("revisions", "proven", 0),
        ("intents", "reason", ""),
        ("intents", "incarnation", 0),
    ),
}

Row = Mapping[str, Any]


class Damaged(Exception):
    """A row is not what was written."""


def sealed(table: sa.Table, row: Row) -> dict[str, Any]:
    return {**row, "seal": _seal(table, row)}


def unsealed(table: sa.Table, row: Row) -> dict[str, Any]:
    """`row` without its seal; Damaged if that does not fit."""
    rest = {k: v for k, v in row.items() if k != "seal"}
    if row["seal"] != _seal(table, rest):
        raise Damaged(f"a row of {table.name} was altered")
    return rest


def whole(seals: Iterable[str]) -> str:
    """Stands for all rows of a file by their seals: how many there are, and a digest of which."""
    found = sorted(seals)
    return f"{len(found)} {hashlib.sha256(' '.join(found).encode(errors='replace')).hexdigest()[:32]}"


def _seal(table: sa.Table, row: Row) -> str:
    return hashlib.sha256(f"{table.name}{_json(dict(row))}".encode(errors="replace")).hexdigest()[:32]


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def row_of_deployment(d: Deployment) -> dict[str, Any]:
    return {
        "name": d.name,
        "revision": d.revision,
        "min_replicas": d.min_replicas,
        "max_replicas": d.max_replicas,
        "replicas": d.replicas,
        "created_unix_s": d.created_unix_s,
        "adapters": _adapters_json(d.adapters),
        "on_demand": int(d.on_demand),
    }


def deployment_of_row(row: Row, known: Mapping[tuple[str, int], Revision]) -> Deployment:
    made = known.get((row["name"], row["revision"]))
    if made is None:
        raise Damaged(f"revision {row['revision']} of {row['name']} is missing")
    return Deployment(
        **{**row, "adapters": _adapters(row), "on_demand": bool(row["on_demand"])},
        model=made.model,
        resources=made.resources,
        revised_unix_s=made.created_unix_s,
        repeats=made.repeats,
        proven=made.proven,
    )


def row_of_revision(r: Revision) -> dict[str, Any]:
    return {
        "deployment": r.deployment,
        "revision": r.revision,
        "model": _json(asdict(r.model)),
        "resources": _json(asdict(r.resources)),
        "created_unix_s": r.created_unix_s,
        "repeats": r.repeats,
        "proven": int(r.proven),
    }


def revision_of_row(row: Row) -> Revision:
    model, resources = _model_and_resources(row)
    created, repeats, proven = row["created_unix_s"], row["repeats"], bool(row["proven"])
    return Revision(row["deployment"], row["revision"], model, resources, created, repeats, proven)


_INTENT = tuple(f.name for f in fields(Intent))


@functools.lru_cache(256)
def _resources_json(r: Resources) -> str:
    return _json(asdict(r))


def row_of_intent(i: Intent) -> dict[str, Any]:
    return {
        **{name: getattr(i, name) for name in _INTENT},
        "resources": _resources_json(i.resources),
        "gpu_indices": _json(list(i.gpu_indices)),
        "goal": i.goal.value,
    }


def intent_of_row(row: Row) -> Intent:
    given = {
        "replica_id": ReplicaId(row["replica_id"]),
        "node_id": NodeId(row["node_id"]),
        "resources": Resources(**json.loads(row["resources"])),
        "gpu_indices": tuple(json.loads(row["gpu_indices"])),
        "goal": Goal(row["goal"]),
    }
    return Intent(**{**row, **given})


def row_of_entry(e: CatalogEntry) -> dict[str, Any]:
    return {
        "name": e.name,
        "description": e.description,
        "model": _json(asdict(e.model)),
        "resources": _json(asdict(e.resources)),
        "adapters": _adapters_json(e.adapters),
        "on_demand": int(e.on_demand),
    }


def entry_of_row(row: Row) -> CatalogEntry:
    model, resources = _model_and_resources(row)
    return CatalogEntry(
        row["name"], model, resources, row["description"], "added", _adapters(row), bool(row["on_demand"])
    )


def _adapters_json(adapters: Sequence[Adapter]) -> str:
    return _json([asdict(a) for a in adapters])


def _adapters(row: Row) -> tuple[Adapter, ...]:
    return tuple(Adapter(**a) for a in json.loads(row["adapters"]))


def _model_and_resources(row: Row) -> tuple[ModelSpec, Resources]:
    return ModelSpec(**json.loads(row["model"])), Resources(**json.loads(row["resources"]))
