"""The peers, each in front of the cheap upstream."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from peers import upstream
from peers.environments import environment
from peers.generator import KEY
from peers.meter import Members, family
from peers.processes import DidNotStart, free_port, logged, process, wait_until_it_answers

HERE = Path(__file__).resolve().parent
START_S = 240.0
# Every token of it is a word, so that every token has text.
TEXT = " the head of water turns every wheel of the model"


@dataclass(frozen=True)
class Target:
    """One proxy that runs. `model` sets how fast the upstream steps, and says what the model is called."""

    name: str
    port: int
    members: Members
    model: Callable[[float], str]
    text: Callable[[int], str] = upstream.text
    upstream: Members = list
    beside: Members = list  # processes that a user of it pays for as well, named in the report


def chat(model: str, tokens: int, *, stream: bool, prompt_bytes: int = 0) -> bytes:
    prompt = (TEXT * (prompt_bytes // len(TEXT) + 1))[:prompt_bytes] or "Go on."
    asked = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}
    return json.dumps(asked | ({"stream": True} if stream else {})).encode()


class Upstream:
    """The cheap upstream's process, of so many ports."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdin
        assert child.stdout
        self._orders, self._said = child.stdin, child.stdout
        self.ports: list[int] = json.loads(self._said.readline())
        self.process = psutil.Process(child.pid)

    def step(self, step_s: float) -> str:
        self._orders.write(f"{step_s}\n".encode())
        self._orders.flush()
        self._said.readline()
        return upstream.MODEL

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.ports]


@contextmanager
def cheap_upstream(ports: int, folder: Path) -> Iterator[Upstream]:
    argv = [sys.executable, str(HERE / "upstream.py"), str(ports), "0.02"]
    with process(argv, folder / "upstream.log") as child:
        yield Upstream(child)


def direct(source: Upstream, folder: Path) -> Iterator[Target]:
    """No proxy at all."""
    yield Target("direct", source.ports[0], lambda: [source.process], source.step)


def floor(source: Upstream, folder: Path) -> Iterator[Target]:
    """The least that anything can spend that writes an event per token."""
    argv = [sys.executable, "-m", "peers.floor", "0.02"]
    with process(argv, folder / "floor.log", {"PYTHONPATH": str(HERE.parent)}) as child:
        sender = Upstream(child)
        yield Target("floor", sender.ports[0], lambda: [sender.process], sender.step)


def router(name: str, argv: Callable[[str, int, int, Sequence[str]], list[str]]) -> Callable[..., Iterator[Target]]:
    def run(source: Upstream, folder: Path) -> Iterator[Target]:
        has = environment(name)
        port, metrics = free_port(), free_port()
        log = folder / f"{name}.log"
        with logged(argv(str(has.bin), port, metrics, source.urls), log) as child:
            yield _ready(name, child, port, log, source)

    return run


def _ready(name: str, child: subprocess.Popen[bytes], port: int, log: Path, source: Upstream) -> Target:
    body = chat(source.step(0.0), 1, stream=False)
    wait_until_it_answers(child, port, "/v1/chat/completions", log, START_S, body)
    root = psutil.Process(child.pid)
    return Target(name, port, lambda: family(root), source.step, upstream=lambda: [source.process])


def _smg(bin: str, port: int, metrics: int, urls: Sequence[str]) -> list[str]:
    at = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics)]
    more = ["--prometheus-host", "127.0.0.1", "--policy", "round_robin", "--log-level", "error"]
    return [f"{bin}/smg", "launch", *at, *more, "--max-concurrent-requests", "-1", "--worker-urls", *urls]


def _vllm_router(bin: str, port: int, metrics: int, urls: Sequence[str]) -> list[str]:
    at = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics)]
    more = ["--prometheus-host", "127.0.0.1", "--policy", "round_robin", "--log-level", "error"]
    return [f"{bin}/vllm-router", *at, *more, "--max-concurrent-requests", "16384", "--worker-urls", *urls]


def litellm(source: Upstream, folder: Path) -> Iterator[Target]:
    has = environment("litellm")
    port, log, config = free_port(), folder / "litellm.log", folder / "litellm.yaml"
    model = {"model": f"openai/{upstream.MODEL}", "api_key": "none"}
    models = [
        {"model_name": upstream.MODEL, "litellm_params": model | {"api_base": f"{url}/v1"}} for url in source.urls
    ]
    config.write_text(json.dumps({"model_list": models, "litellm_settings": {"telemetry": False}}))
    # Its table of prices would be fetched otherwise.
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "LITELLM_LOG": "ERROR"}
    env["LITELLM_MASTER_KEY"] = KEY
    argv = [f"{has.bin}/litellm", "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    with logged([*argv, "--num_workers", "1"], log, env) as child:
        yield _ready("litellm", child, port, log, source)


def ray(source: Upstream, folder: Path) -> Iterator[Target]:
    has = environment("ray")
    port, log = free_port(), folder / "ray.log"
    env = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0"}
    with process([has.python, str(HERE / "ray_app.py"), str(port), *source.urls], log, env) as child:
        assert child.stdout
        if not child.stdout.readline():
            raise DidNotStart(log.read_text(errors="replace")[-1500:])
        ready = _ready("ray[serve]", child, port, log, source)
        actors = family(psutil.Process(child.pid))
        proxies = [p for p in actors if "ProxyActor" in p.name() or "ProxyActor" in " ".join(p.cmdline())]
        replicas = [p for p in actors if "ServeReplica" in " ".join(p.cmdline())]
        if not (proxies and replicas):
            raise DidNotStart("Ray's actors are not among its children")
        yield Target(ready.name, port, lambda: proxies, source.step, upstream=ready.upstream, beside=lambda: replicas)


START: dict[str, Callable[[Upstream, Path], Iterator[Target]]] = {
    "direct": direct,
    "floor": floor,
    "smg": router("smg", _smg),
    "vllm-router": router("vllm-router", _vllm_router),
    "litellm": litellm,
    "ray": ray,
}
