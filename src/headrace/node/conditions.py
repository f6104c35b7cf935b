"""How replicas are run on this node: where, with what, and how much patience."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from headrace.core.restart import DEFAULT_POLICY, RestartPolicy
from headrace.core.types import ReplicaSpec
from headrace.node.announcement import Announcement
from headrace.node.folder import LifeRecord, ReplicaFolder
from headrace.process import ENDPOINT_ENV, Child, ProcessRecord, child_env, environment, processes_with_env
from headrace.rpc.credentials import Credentials

# Every process of a replica carries these, so that the next scheduler knows its own, wherever they have gone.
REPLICA_ENV, NODE_DIR_ENV = "HEADRACE_REPLICA_ID", "HEADRACE_NODE_DIR"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """`env`: set for every replica, beside the allow-listed part of ours.

    `endpoint_s`: a start may take so long until the replica listens; `stalled_s`: then so long without any progress
    until it is ready; `term_s`: what a process may take to end when told to.
    """

    node_dir: Path
    cache_dir: Path
    credentials: Credentials  # with which we talk to replicas; theirs they find by `env`
    cache_limit_bytes: int = 0
    host: str = "127.0.0.1"
    env: tuple[tuple[str, str], ...] = ()
    command: tuple[str, ...] = (sys.executable, "-m", "headrace.replica")
    restart: RestartPolicy = DEFAULT_POLICY
    endpoint_s: float = 180.0
    stalled_s: float = 1800.0
    term_s: float = 5.0

    def folder(self, replica_id: str) -> ReplicaFolder:
        return ReplicaFolder(self.node_dir / "replicas" / replica_id)

    def spawn(self, spec: ReplicaSpec) -> tuple[Child, Announcement]:
        """Start the replica's process in its folder; it says through the pipe where it listens. OSError if that cannot
        be done."""
        folder = self.folder(spec.replica_id)
        folder.prepare(spec, host=self.host, cache_dir=self.cache_dir, cache_limit_bytes=self.cache_limit_bytes)
        extra = {
            REPLICA_ENV: spec.replica_id,
            NODE_DIR_ENV: str(self.node_dir),
            "CUDA_VISIBLE_DEVICES": ",".join(map(str, spec.gpu_indices)),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # NVML's order, which gpu_indices are in
            "PYTHONUNBUFFERED": "1",
            "PYTHONSAFEPATH": "1",  # where we were started from must not decide what a replica imports
            "GRPC_VERBOSITY": os.environ.get("GRPC_VERBOSITY", "NONE"),  # its core logs every peer that goes away
        }
        announcement = Announcement()
        try:
            extra[ENDPOINT_ENV] = str(announcement.writes)
            env = child_env(extra | dict(self.env), sources=True)
            argv = [*self.command, str(folder.path)]
            child = Child.spawn(argv, env=env, output=folder.log, pass_fds=[announcement.writes])
        except BaseException:
            announcement.close()
            raise
        announcement.close_writes()
        return child, announcement

    def keep(self, spec: ReplicaSpec) -> None:
        """Write down what changed of a running replica's spec."""
        folder = self.folder(spec.replica_id)
        folder.write_spec(spec, host=self.host, cache_dir=self.cache_dir, cache_limit_bytes=self.cache_limit_bytes)

    def marked(self, replica_id: str | None = None, but: Collection[str] = ()) -> list[ProcessRecord]:
        """Living processes of one replica of this node, or of all its replicas `but` these."""
        return [
            record
            for record, env in processes_with_env(REPLICA_ENV)
            if env.get(NODE_DIR_ENV) == str(self.node_dir)
            and replica_id in (None, env[REPLICA_ENV])
            and env[REPLICA_ENV] not in but
        ]

    def survivors(self, replica_id: str, life: LifeRecord) -> list[ProcessRecord]:
        """Living members of a dead replica's group. The number may have gone to a stranger's group: that one shows by
        an environment without our mark (an empty one is that of a member that wrote its title over it)."""
        found = [
            pid
            for pid in Child(life.process).members()
            if environment(pid).get(REPLICA_ENV) == replica_id or not environment(pid)
        ]
        return [record for pid in found if (record := ProcessRecord.of(pid))]
