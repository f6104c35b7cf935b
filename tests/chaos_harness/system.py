"""The real system: a head with its proxies, and schedulers, each a process that can be killed and started again."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos_harness.processes import Row, Table
from headrace.core.phase import Phase
from headrace.core.types import ClusterStatus, DeployRequest
from headrace.errors import HeadraceError
from headrace.process import child_env
from headrace.rpc.admin import AdminClient
from headrace.rpc.credentials import Credentials
from headrace.rpc.finding import from_state
from headrace.rpc.roles import Role
from headrace.settings import TlsSettings

PART = Path(__file__).with_name("part.py")


@dataclass(frozen=True)
class Size:
    """How large the system is."""

    proxies: int = 3
    nodes: int = 2
    models: int = 2
    replicas: int = 3  # of each model
    step_s: float = 0.04
    answer_tokens: int = 300  # where an answer of the first model ends by itself
    max_waiting: int = 256
    max_running: int = 64
    engine: str = "simulated"
    source: str = "builtin:demo"
    lease_s: float = 10.0
    start_s: float = 120.0  # in which everything must be READY
    engine_args: Mapping[str, Any] = field(default_factory=dict[str, Any])  # of engines with a model

    def ends(self) -> dict[str, int]:
        """Tokens after which answers end by themselves: others for each model, so that a mix-up shows."""
        return {f"sim{i + 1}": self.answer_tokens - 40 * i for i in range(self.models)}


@dataclass
class System:
    """Lives in `root`; `mutant` names a bug that is planted into all its parts."""

    root: Path
    size: Size = field(default_factory=Size)
    mutant: str = ""

    def __post_init__(self) -> None:
        self.http, self.node, self.grpc = _free_ports(3)
        self._table = Table(self.root)
        self.head: subprocess.Popen[bytes] | None = None
        self.schedulers: dict[str, subprocess.Popen[bytes] | None] = {}
        self.admin = AdminClient(f"127.0.0.1:{self.grpc}", self.credentials(Role.ADMIN))
        self.models = tuple(self.size.ends())
        self.orders = self.root / "orders"
        self.revision_of_args = 0

    def credentials(self, role: Role) -> Credentials:
        return from_state(self.root / "head_state", role, "harness", TlsSettings())

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.http

    def engine_args(self, model: str) -> dict[str, Any]:
        """`kv_tokens` tells one revision from the next and changes nothing else."""
        if self.size.engine == "vllm":
            return {"dtype": "float32", "max_num_seqs": 32, "kv_cache_memory_bytes": 2**28, **self.size.engine_args}
        if self.size.engine != "simulated":
            return dict(self.size.engine_args)
        s = self.size
        kv = 1_000_000 + self.revision_of_args
        return {
            "step_s": s.step_s, "answer_tokens": s.ends()[model], "max_running": s.max_running, "kv_tokens": kv,
            "orders_dir": str(self.orders),
        }  # fmt: skip

    # --- starting ---

    async def start(self) -> None:
        """Everything, until every replica that is wanted is READY."""
        for folder in (self.root / "logs", self.orders):
            folder.mkdir(parents=True, exist_ok=True)
        self.start_head()
        for n in range(self.size.nodes):
            self.start_scheduler(f"n{n + 1}")
        async with asyncio.timeout(self.size.start_s):
            await self.until(lambda s: len([n for n in s.nodes if n.alive]) == self.size.nodes)
            for model in self.models:
                await self.admin.deploy(self.deploy_request(model))
            await self.until(self.well, self.size.start_s)

    def deploy_request(self, model: str) -> DeployRequest:
        n = self.size.replicas
        return DeployRequest(
            model=self.size.source, name=model, engine=self.size.engine, min_replicas=n, max_replicas=n, cpus=0.1,
            engine_args_json=json.dumps(self.engine_args(model), sort_keys=True),
        )  # fmt: skip

    def start_head(self) -> None:
        s = self.size
        self.head = self._spawn(
            "head", "head", f"--http_port={self.http}", f"--node_port={self.node}", f"--grpc_port={self.grpc}",
            f"--num_proxies={s.proxies}", f"--state_dir={self.root}/head_state", f"--lease_s={s.lease_s}",
        )  # fmt: skip

    def start_scheduler(self, node: str) -> None:
        # Machines of one cluster: each has its own state, and a certificate of the same authority.
        if not (self.root / node / "authority").exists():
            shutil.copytree(self.root / "head_state" / "authority", self.root / node / "authority")
        self.schedulers[node] = self._spawn(
            f"scheduler-{node}", "scheduler", f"--node_id={node}", "--head_address=127.0.0.1", f"--port={self.node}",
            f"--state_dir={self.root}/{node}", f"--cache_dir={self.root}/cache", "--num_cpus=64", "--num_gpus=0",
        )  # fmt: skip

    def _spawn(self, log: str, *arguments: str) -> subprocess.Popen[bytes]:
        env = {
            "PYTHONUNBUFFERED": "1", "HEADRACE_LOG_FORMAT": "json", "GRPC_VERBOSITY": "NONE",
            "HEADRACE_MAX_WAITING": str(self.size.max_waiting),
        }  # fmt: skip
        program = [str(PART), self.mutant] if self.mutant else ["-m", "headrace"]
        with (self.root / "logs" / f"{log}.log").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-P", *program, *arguments],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                env=child_env(env), cwd=self.root,
            )  # fmt: skip

    # --- looking ---

    async def status(self) -> ClusterStatus | None:
        """As the head says; None while it cannot be asked."""
        try:
            async with asyncio.timeout(3):
                return await self.admin.status()
        except (HeadraceError, TimeoutError):
            return None

    async def until(self, check: Callable[[ClusterStatus], bool], patience_s: float = 90.0) -> ClusterStatus:
        """The first status that `check` likes; TimeoutError with the last one if none comes."""
        last = None
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while True:
                    last = await self.status() or last
                    if last and check(last):
                        return last
                    await asyncio.sleep(0.1)
        raise TimeoutError(f"the system did not come to what was waited for; last: {last}")

    def well(self, s: ClusterStatus) -> bool:
        """Every deployment has the replicas that it wants, of its revision; every node and proxy is there."""
        phases = [(p.status.deployment, p.status.revision, p.status.phase) for p in s.replicas]
        for d in s.deployments:
            wanted = (d.deployment.name, d.deployment.revision, Phase.READY)
            if phases.count(wanted) != d.deployment.replicas:
                return False
        steady = all(phase in (Phase.READY, Phase.STOPPED) for _, _, phase in phases)
        nodes = [n for n in s.nodes if n.alive]
        return steady and len(nodes) == self.size.nodes and all(p.state == "running" for p in s.proxies)

    def processes(self) -> list[Row]:
        return self._table.rows()

    def proxies_with(self, epoch: int) -> set[int]:
        """The processes of proxies that say in their logs that they took routes of this epoch, or of a later one."""
        found: set[int] = set()
        for path in self.root.glob("head_state/head/proxies/*.log*"):
            for line in path.read_text(errors="replace").splitlines():
                if '"routes_connected"' in line:
                    said = json.loads(line)
                    if said["epoch"] >= epoch:
                        found.add(said["pid"])
        return found

    def logs(self) -> list[Path]:
        return [
            *(self.root / "logs").glob("*.log"),
            *self.root.glob("head_state/head/proxies/*.log*"),
            *self.root.glob("n*/nodes/*/replicas/*/replica.log"),
        ]

    # --- ending ---

    def kill(self, row: Row, signum: int = signal.SIGKILL) -> None:
        with suppress(ProcessLookupError):
            os.kill(row.pid, signum)

    def kill_head(self) -> None:
        assert self.head
        self.head.kill()
        self.head.wait()

    def kill_scheduler(self, node: str) -> None:
        process = self.schedulers[node]
        assert process
        process.kill()
        process.wait()

    async def stop(self) -> list[Row]:
        """Everything, politely; what then still lived (and was killed) is returned."""
        parts = [p for p in (*self.schedulers.values(), self.head) if p]
        for process in parts:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in parts:
            with suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, 20)
        await self.admin.__aexit__(None, None, None)
        left = [r for r in self.processes() if r.pid != os.getpid()]
        for row in left:
            self.kill(row)
        for process in parts:
            process.wait()
        return left


def _free_ports(count: int) -> tuple[int, ...]:
    """Ports that nobody has now. Others may take one before we do; a start that fails says so."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = tuple(s.getsockname()[1] for s in sockets)
    for s in sockets:
        s.close()
    return ports
