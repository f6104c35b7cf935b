"""What people and proxies may ask of the head. Each decides on the newest state and returns when that is committed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import structlog

from headrace.core import catalog as core_catalog
from headrace.core.adapters import Known, check_clash, model_of
from headrace.core.on_demand import Rule, startable, started
from headrace.core.revisions import history, rolled_back
from headrace.core.state import (
    Change,
    DropDeployment,
    DropEntry,
    PutDeployment,
    PutEntry,
    Revision,
    State,
    next_revision,
    renewed,
)
from headrace.core.types import Adapter, CatalogEntry, Deployment, DeploymentStatus, DeployRequest
from headrace.errors import InvalidRequest, NotFound, Overloaded, Unavailable
from headrace.head.ledger import Ledger
from headrace.head.overview import Overview
from headrace.settings import MOST_ON_DEMAND

log = structlog.get_logger()

RETRY_FAILED_S = 30.0  # a model that failed so long ago is tried again when somebody asks for it


class Commands:
    """`rule`, `most_on_demand`: which models of the catalog a request may start, and how many of those run at once."""

    def __init__(
        self,
        ledger: Ledger,
        overview: Overview,
        *,
        forbid_remote_code: bool = False,
        rule: Rule = Rule.ALL,
        most_on_demand: int = MOST_ON_DEMAND,
    ) -> None:
        self._ledger, self._overview = ledger, overview
        self._no_code = forbid_remote_code
        self._rule, self._most = rule, most_on_demand

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
                adapters=wanted.adapters,
                revised_unix_s=int(time.time()),
            )
            check_clash(name, {**self._known(state), name: new.adapters})
            equal = existing and (existing.model, existing.resources) == (new.model, new.resources)
            if existing and equal and not self._overview.newest_failed(name):
                same = {k: getattr(existing, k) for k in ("revision", "revised_unix_s", "repeats", "proven")}
                new = replace(new, **same)
            return [PutDeployment(new)] if new != existing else []

        await self._ledger.transact(decide)
        return self._status(name)

    async def ensure(self, model: str) -> None:
        """A proxy has a request for `model`: deploy it if it is only catalogued, try again if it failed a while ago.

        An adapter's name asks for its model.
        """
        asked = model

        def decide(state: State) -> Sequence[Change]:
            known = self._known(state)
            model = model_of(asked, known)
            if model is None:
                raise NotFound(_unknown(asked, set(known)), code="model_not_found")
            d = state.deployments.get(model)
            if d is None:
                self._check_on_demand(state, model)
                request = DeployRequest(model, min_replicas=1, max_replicas=1)
                w = core_catalog.resolve(request, self._overview.catalog())
                core_catalog.check_remote_code(w.model, self._no_code)
                revision, now = next_revision(state, model), int(time.time())
                new = Deployment(model, revision, w.model, w.resources, 1, 1, 1, now, w.adapters, now, on_demand=True)
                return [PutDeployment(new)]
            core_catalog.check_remote_code(d.model, self._no_code)
            if d.replicas == 0:
                if d.max_replicas == 0:
                    raise Unavailable(f"{model} is scaled to 0; start it with: headrace scale {model} 1")
                return [PutDeployment(replace(d, replicas=1))]
            failed_s = self._overview.failed_for_s(model)
            if failed_s is not None and failed_s > RETRY_FAILED_S and self._overview.newest_failed(model):
                return [PutDeployment(renewed(d, next_revision(state, model), int(time.time())))]
            return []

        await self._ledger.transact(decide)

    def _check_on_demand(self, state: State, model: str) -> None:
        """NotFound if a request may not start `model`; Overloaded if as many as may are running."""
        catalog = self._overview.catalog()
        if model not in startable(self._rule, catalog):
            raise NotFound(
                f"The model {model} is not deployed, and requests do not start it here (--on_demand={self._rule}):"
                f" deploy it with: headrace deploy {model}",
                code="model_not_found",
            )
        failed = {d.name for d in state.deployments.values() if self._overview.failed_for_s(d.name) is not None}
        running = sorted(d.name for d in started(state.deployments.values()) if d.name not in failed)
        if len(running) >= self._most:
            raise Overloaded(
                f"{model} is not started: {len(running)} models that requests have started run already, which is the"
                " most that there may be (--on_demand_max); try again when one of them was idle for a while.",
                code="too_many_models",
                retry_after_s=30.0,
            )

    async def unload(self, name: str) -> bool:
        """Take away what a request has started, unless somebody has asked for it by a command; whether it was there."""

        def decide(state: State) -> Sequence[Change]:
            d = state.deployments.get(name)
            return [DropDeployment(name)] if d and d.on_demand else []

        before = self._ledger.state.deployments
        return name in before and name not in (await self._ledger.transact(decide)).deployments

    async def delete(self, name: str) -> None:
        """The name is as the catalog has it, if at all; the replicas finish what they have and go."""

        def decide(state: State) -> Sequence[Change]:
            _existing(state, name)
            return [DropDeployment(name)]

        await self._ledger.transact(decide)
        log.info("deployment_deleted", deployment=name)

    async def scale(self, name: str, low: int, high: int) -> DeploymentStatus:
        """Another range of replicas. One whose newest revision failed is tried again as a new one."""
        core_catalog.check_range(low, high)

        def decide(state: State) -> Sequence[Change]:
            d = _existing(state, name)
            if high:
                core_catalog.check_remote_code(d.model, self._no_code)
            new = replace(d, min_replicas=low, max_replicas=high, replicas=low, on_demand=False)
            if high and self._overview.newest_failed(name):
                new = renewed(new, next_revision(state, name), int(time.time()))
            return [PutDeployment(new)] if new != d else []

        await self._ledger.transact(decide)
        return self._status(name)

    async def rollback(self, name: str, to: int = 0) -> DeploymentStatus:
        """Back to revision `to`, or (0) to the newest that differs from the current one: as a new revision."""

        def decide(state: State) -> Sequence[Change]:
            new = rolled_back(state, _existing(state, name), to, int(time.time()))
            core_catalog.check_remote_code(new.model, self._no_code)
            return [PutDeployment(replace(new, on_demand=False))]

        after = await self._ledger.transact(decide)
        log.info("deployment_rolled_back", deployment=name, to=after.deployments[name].repeats)
        return self._status(name)

    def revisions(self, name: str) -> tuple[Revision, ...]:
        """Those of a deployment that can be gone back to, newest first; the first is the current one."""
        state = self._ledger.state
        return history(state, _existing(state, name))

    async def add_adapter(self, name: str, adapter: Adapter) -> DeploymentStatus:
        """One more adapter for a deployment, or another source for one that it has. Its replicas go on."""

        def decide(state: State) -> Sequence[Change]:
            d = _existing(state, name)
            others = [a for a in d.adapters if a.name != adapter.name]
            new = replace(d, adapters=core_catalog.check_adapters([*others, adapter]), on_demand=False)
            check_clash(name, {**self._known(state), name: new.adapters})
            return [PutDeployment(new)] if new != d else []

        await self._ledger.transact(decide)
        log.info("adapter_added", deployment=name, adapter=adapter.name, source=adapter.source)
        return self._status(name)

    async def remove_adapter(self, name: str, adapter: str) -> DeploymentStatus:
        """Its name cannot be called any more; streams that run with it finish."""

        def decide(state: State) -> Sequence[Change]:
            d = _existing(state, name)
            left = tuple(a for a in d.adapters if a.name != adapter)
            if len(left) == len(d.adapters):
                there = ", ".join(a.name for a in d.adapters) or "none"
                raise NotFound(f"{name} has no adapter {adapter[:100]!r}; it has: {there}.", param="adapter")
            return [PutDeployment(replace(d, adapters=left, on_demand=False))]

        await self._ledger.transact(decide)
        log.info("adapter_removed", deployment=name, adapter=adapter)
        return self._status(name)

    async def add_model(self, entry: CatalogEntry) -> CatalogEntry:
        """Add to the catalog, or replace what is there under this name. What is deployed already stays as it is."""
        core_catalog.check_entry(entry)
        core_catalog.check_remote_code(entry.model, self._no_code)
        model, adapters = core_catalog.check_model(entry.model), core_catalog.check_adapters(entry.adapters)
        added = replace(entry, model=model, adapters=adapters, origin="added")

        def decide(state: State) -> Sequence[Change]:
            check_clash(added.name, {**self._known(state), added.name: adapters})
            return [PutEntry(added)] if state.entries.get(added.name) != added else []

        await self._ledger.transact(decide)
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

    def _known(self, state: State) -> Known:
        """Every model with its adapters, as deployed, else as catalogued."""
        catalogued = {name: e.adapters for name, e in self._overview.catalog().items()}
        return catalogued | {name: d.adapters for name, d in state.deployments.items()}

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
