"""The system that is tried: a head with one proxy, a scheduler, a replica of each of two models, and two API keys.

Started by its commands alone, and asked by its commands alone, so that any version of it can be tried.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from headrace.process import child_env
from strangers.script import Where

MODELS = ("demo", "sim")
_CATALOG = {
    "models": {
        "sim": {
            "source": "builtin:demo", "engine": "simulated", "resources": {"cpus": 0.1},
            "engine_args": {"step_s": 0.02, "kv_tokens": 10**7, "prefill_chunk": 8192, "max_running": 256},
        }
    }
}  # fmt: skip
_START_S = 120.0


class System:
    """Lives in `folder`. `where`: how to reach it. `engine`: the demo model's, openvino or simulated."""

    def __init__(self, folder: Path, engine: str) -> None:
        self.folder, self.engine = folder, engine
        self.state_dir = folder / "state"
        self._parts: list[subprocess.Popen[bytes]] = []
        ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        self.http, self.node, self.grpc = (s.getsockname()[1] for s in ports)
        for s in ports:
            s.close()
        self.where = Where("127.0.0.1", self.http, secrets.token_urlsafe(16))  # for those that mean no harm
        self.strange = replace(self.where, key=secrets.token_urlsafe(16))
        self.pids: dict[str, int] = {}  # "proxy" and the models

    async def start(self) -> None:
        """Until each model answers. TimeoutError if that does not come."""
        keys, catalog = self.folder / "keys", self.folder / "catalog.json"
        keys.write_text(f"{self.where.key} name=bystander\n{self.strange.key} name=stranger\n")
        keys.chmod(0o600)
        catalog.write_text(json.dumps(_CATALOG))
        self._spawn(
            "head", f"--http_port={self.http}", f"--node_port={self.node}", f"--grpc_port={self.grpc}",
            "--num_proxies=1", f"--catalog={catalog}", f"--api_keys_file={keys}",
        )  # fmt: skip
        async with asyncio.timeout(_START_S):
            while not (self.state_dir / "head/endpoint.json").exists():  # noqa: ASYNC110 - a file tells nobody
                await asyncio.sleep(0.1)
            self._spawn("scheduler", f"--port={self.node}", "--head_address=127.0.0.1", "--num_cpus=8", "--num_gpus=0")
            for model in MODELS:
                engine = ["--engine=simulated"] if model == "demo" and self.engine == "simulated" else []
                await self.until_deployed(model, *engine)
            await self.until_well()

    async def until_deployed(self, model: str, *flags: str) -> None:
        """`headrace deploy` until it works: the head may not know its scheduler yet."""
        while (await self._command("deploy", model, *flags))[0]:  # noqa: ASYNC110
            await asyncio.sleep(0.5)

    async def until_well(self, patience_s: float = _START_S) -> dict[str, int]:
        """Wait until both models are ready and the proxy answers; the processes."""
        async with asyncio.timeout(patience_s):
            while not await asyncio.to_thread(self._answers) or not await self._find():  # noqa: ASYNC110
                await asyncio.sleep(0.3)
        return self.pids

    def _answers(self) -> bool:
        url = f"http://{self.where.host}:{self.where.port}/v1/models"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self.where.key}"})
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
                states = {m["id"]: m.get("state") for m in json.load(answer)["data"]}
        except (OSError, ValueError, urllib.error.URLError):
            return False
        return all(states.get(m) == "ready" for m in MODELS)

    async def _find(self) -> bool:
        code, out = await self._command("status", "--json")
        if code:
            return False
        told: dict[str, Any] = json.loads(out)
        self.pids = _pids(told)
        return set(self.pids) >= {"proxy", *MODELS}

    async def _command(self, *words: str) -> tuple[int, str]:
        argv = [sys.executable, "-m", "headrace", *words, f"--state_dir={self.state_dir}"]
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=child_env()
        )
        out, _ = await process.communicate()
        return process.returncode or 0, out.decode()

    def _spawn(self, name: str, *flags: str) -> None:
        argv = [sys.executable, "-m", "headrace", name, f"--state_dir={self.state_dir}", *flags]
        if name == "scheduler":
            argv.append(f"--cache_dir={self.folder}/cache")
        with (self.folder / f"{name}.log").open("wb") as log:
            self._parts.append(subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=child_env(), start_new_session=True
            ))  # fmt: skip

    def alive(self) -> bool:
        """Whether the processes that were found are still there."""
        return all(Path(f"/proc/{pid}/schedstat").exists() for pid in self.pids.values())

    def logs(self) -> list[Path]:
        return [
            *self.folder.glob("*.log"), *self.state_dir.glob("head/proxies/*.log*"),
            *self.state_dir.glob("nodes/*/replicas/*/replica.log"),
        ]  # fmt: skip

    def last_words(self) -> str:
        ends = ((p.name, p.read_text(errors="replace").splitlines()[-5:]) for p in self.logs())
        return "\n".join("\n  ".join([name, *lines]) for name, lines in ends)

    def stop(self) -> None:
        """Everything: the scheduler ends its replicas, the head its proxies; what does not is killed."""
        for part in reversed(self._parts):
            with suppress(ProcessLookupError):
                part.send_signal(signal.SIGTERM)
        for part in reversed(self._parts):
            try:
                part.wait(20)
            except subprocess.TimeoutExpired:
                part.kill()
                part.wait()
        for pid in self._left():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _left(self) -> list[int]:
        """Processes whose command or environment names our folder."""
        mark, found = f"{self.folder}/".encode(), []
        for pid in (int(n) for n in os.listdir("/proc") if n.isdigit() and int(n) != os.getpid()):
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
                if mark in words and b"headrace" in words:
                    found.append(pid)
        return found


def _pids(told: dict[str, Any]) -> dict[str, int]:
    """From `headrace status --json`: the one proxy, and the replica of each model."""
    pids = {}
    for proxy in told["proxies"]:
        if proxy.get("state") in (None, "running"):
            pids["proxy"] = proxy["pid"]
    for placed in told["replicas"]:
        status = placed.get("status", placed)
        if str(status["phase"]).upper() == "READY":
            pids[status["deployment"]] = status["pid"]
    return pids
