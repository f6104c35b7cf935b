"""What people and proxies may ask of the head. Each decides on the newest state and returns when that is committed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import structlog

from headrace.core import catalog as core_catalog
from headrace.core.state import (
    Change,
    DropDeployment,
    DropEntry,
    PutDeployment,
    PutEntry,
    State,
    next_revision,
)
from headrace.core.types import CatalogEntry, Deployment, DeploymentStatus, DeployRequest
from headrace.errors import InvalidRequest, NotFound, Unavailable
from headrace.head.ledger import Ledger
from headrace.head.overview import Overview

log = structlog.get_logger()

RETRY_FAILED_S = 30.0  # a model that failed so long ago is tried again when somebody asks for it


class Commands:
    def __init__(self, ledger: Ledger, overview: Overview, *, forbid_remote_code: bool = False) -> None:
        self._ledger, self._overview = ledger, overview
        self._no_code = forbid_remote_code

    async def deploy(self, request: DeployRequest) -> DeploymentStatus:
        """Create or change a deployment. An equal one changes its range alone, unless its newest revision failed:
        then that is tried again as a new one."""
        name = core_catalog.name_of(request)

        def decide(state: State) -> Sequence[Change]:
            existing = state.deployments.get(name)
            wanted = core_catalog.resolve(request, self._overview.catalog(), existing)
            core_catalog.check_remote_code(wanted.model, self._no_code)
            new = Deployment(
                name=name,
                revision=next_revision(state, name),
                model=wanted.model,
                resources=wanted.resources,
                min_replicas=wanted.min_replicas,
                max_replicas=wanted.max_replicas,
                replicas=wanted.min_replicas,
                created_unix_s=existing.created_unix_s if existing else int(time.time()),
            )
            equal = existing and (existing.model, existing.resources) == (new.model, new.resources)
            if existing and equal and not self._overview.newest_failed(name):
                new = replace(new, revision=existing.revision)
            return [PutDeployment(new)] if new != existing else []

        await self._ledger.transact(decide)
        return self._status(name)

    async def ensure(self, model: str) -> None:
        """A proxy has a request for `model`: deploy it if it is only catalogued, try again if it failed a while ago."""

        def decide(state: State) -> Sequence[Change]:
            d = state.deployments.get(model)
            if d is None:
                catalog = self._overview.catalog()
                if model not in catalog:
                    raise NotFound(_unknown(model, {*catalog, *state.deployments}), code="model_not_found")
                w = core_catalog.resolve(DeployRequest(model, min_replicas=1, max_replicas=1), catalog)
                core_catalog.check_remote_code(w.model, self._no_code)
                revision, now = next_revision(state, model), int(time.time())
                return [PutDeployment(Deployment(model, revision, w.model, w.resources, 1, 1, 1, now))]
            core_catalog.check_remote_code(d.model, self._no_code)
            if d.replicas == 0:
                if d.max_replicas == 0:
                    raise Unavailable(f"{model} is scaled to 0; start it with: headrace scale {model} 1")
                return [PutDeployment(replace(d, replicas=1))]
            failed_s = self._overview.failed_for_s(model)
            if failed_s is not None and failed_s > RETRY_FAILED_S and self._overview.newest_failed(model):
                return [PutDeployment(replace(d, revision=next_revision(state, model)))]
            return []

        await self._ledger.transact(decide)

    async def delete(self, name: str) -> None:
        """The name is as the catalog has it, if at all; the replicas finish what they have and go."""

        def decide(state: State) -> Sequence[Change]:
            _existing(state, name)
            return [DropDeployment(name)]

        await self._ledger.transact(decide)
        log.info("deployment_deleted", deployment=name)

    async def scale(self, name: str, low: int, high: int) -> DeploymentStatus:
        core_catalog.check_range(low, high)

        def decide(state: State) -> Sequence[Change]:
            d = _existing(state, name)
            if high:
                core_catalog.check_remote_code(d.model, self._no_code)
            new = replace(d, min_replicas=low, max_replicas=high, replicas=low)
            return [PutDeployment(new)] if new != d else []

        await self._ledger.transact(decide)
        return self._status(name)

    async def add_model(self, entry: CatalogEntry) -> CatalogEntry:
        """Add to the catalog, or replace what is there under this name. What is deployed already stays as it is."""
        core_catalog.check_entry(entry)
        core_catalog.check_remote_code(entry.model, self._no_code)
        added = replace(entry, model=core_catalog.check_model(entry.model), origin="added")
        await self._ledger.transact(lambda state: [PutEntry(added)] if state.entries.get(added.name) != added else [])
        return added

    async def remove_model(self, name: str) -> None:
        """Take back what add_model has added; an entry that it hid comes back."""

        def decide(state: State) -> Sequence[Change]:
            if name in state.entries:
                return [DropEntry(name)]
            there = self._overview.catalog().get(name)
            if there:
                where = "is built in" if there.origin == "built-in" else "comes from the catalog file"
                raise InvalidRequest(f"{name} {where}; only models that were added can be removed.", param="name")
            added = ", ".join(sorted(state.entries)) or "none"
            raise NotFound(f"No model {name[:100]!r} was added; added are: {added}.")

        await self._ledger.transact(decide)

    def _status(self, name: str) -> DeploymentStatus:
        found = self._overview.deployment(name)
        if found is None:
            raise NotFound(f"{name} was deleted meanwhile.")
        return found


def _existing(state: State, name: str) -> Deployment:
    d = state.deployments.get(name)
    if d is None:
        there = ", ".join(sorted(state.deployments)) or "none"
        raise NotFound(f"No deployment {name[:100]!r}; deployed are: {there}.", param="name")
    return d


def _unknown(model: str, names: set[str]) -> str:
    return f"No model {model[:100]!r}; there are {', '.join(sorted(names)) or 'none'}."
