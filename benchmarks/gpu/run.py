"""Bare `vllm serve` and Headrace with vLLM, in turns, on the same GPU. See README.md beside this file."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent))
import load
import models

START_S = 600.0
END_S = 30.0


def gpu() -> tuple[str, int]:
    """The first GPU's name, and the bytes of its memory that are used; ("", 0) without one."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        return str(pynvml.nvmlDeviceGetName(handle)), int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
    except pynvml.NVMLError:
        return "", 0


def free_ports(n: int) -> list[int]:
    held = [socket.socket() for _ in range(n)]
    for s in held:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


def wait_http(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"it ended while it started:\n{log.read_text(errors='replace')[-3000:]}")
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"not ready after {START_S:g} s:\n{log.read_text(errors='replace')[-3000:]}")


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    root = psutil.Process(process.pid)
    return [root, *root.children(recursive=True)]


@contextmanager
def bare(model: Path, args: dict[str, object], folder: Path) -> Iterator[tuple[int, str, subprocess.Popen[bytes]]]:
    """`vllm serve`, by its module: some distributions of vLLM lack the command."""
    (port,) = free_ports(1)
    flags = [f for k, v in args.items() for f in _flag(k, v)]
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    argv += ["--host", "127.0.0.1", "--served-model-name", "m", *flags]
    with _running(argv, folder / "bare.log") as (process, log):
        wait_http(f"http://127.0.0.1:{port}/health", process, log)
        yield port, "m", process


@contextmanager
def headrace(
    model: Path, args: dict[str, object], folder: Path, gpus: int
) -> Iterator[tuple[int, str, subprocess.Popen[bytes]]]:
    http, node, grpc = free_ports(3)
    state = Path(tempfile.mkdtemp(dir=folder))
    catalog = state / "catalog.yaml"
    entry = {"source": str(model), "engine": "vllm", "engine_args": args, "resources": {"cpus": 1, "gpus": gpus}}
    catalog.write_text(json.dumps({"models": {"m": entry}}))
    argv = [sys.executable, "-m", "headrace", "up", "--model=m", f"--http_port={http}", f"--node_port={node}"]
    argv += [f"--grpc_port={grpc}", f"--state_dir={state}", f"--catalog={catalog}"]
    with _running(argv, folder / "headrace.log") as (process, log):
        wait_http(f"http://127.0.0.1:{http}/ready", process, log)
        yield http, "m", process


def _flag(name: str, value: object) -> list[str]:
    flag = "--" + name.replace("_", "-")
    return [flag] if value is True else [f"--no-{flag[2:]}"] if value is False else [flag, str(value)]


@contextmanager
def _running(argv: list[str], log: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=out, start_new_session=True)
    try:
        yield process, log
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def cleaned_up(members: list[psutil.Process], used_before: int) -> str:
    """ "clean" once no member runs and the GPU's memory is as free as it was; else what is left after a while."""
    end = time.monotonic() + END_S
    while True:
        left = [p for p in members if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        more = gpu()[1] - used_before
        if not left and more < 64 * 2**20:
            return "clean"
        if time.monotonic() > end:
            return f"{len(left)} processes and {more / 2**20:.0f} MiB left"
        time.sleep(0.1)


def endings(model: Path, args: dict[str, object], folder: Path, gpus: int) -> dict[str, str]:
    """What is left after Headrace was stopped, and after its replica was killed."""
    found: dict[str, str] = {}
    before = gpu()[1]
    with headrace(model, args, folder, gpus) as (_, _, process):
        members = family(process)
    found["stopped"] = cleaned_up(members, before)
    with headrace(model, args, folder, gpus) as (_, _, process):
        replica = next(p for p in family(process) if "headrace.replica" in " ".join(p.cmdline()))
        members = [replica, *replica.children(recursive=True)]
        replica.kill()
        psutil.wait_procs(members, timeout=END_S)
        left = [p for p in members if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        found["replica killed"] = "clean" if not left else f"{len(left)} processes left"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="two-layer models, for a machine without a GPU")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    name, _ = gpu()
    if not name and not given.tiny:
        sys.exit("There is no NVIDIA GPU here; --tiny tries the program on the CPU.")
    import vllm

    args: dict[str, object] = {"load_format": "dummy", "max_num_seqs": 256}
    if given.tiny:
        args |= {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 2**28}
    results: list[dict[str, object]] = []
    cleanup: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for model, path in models.make(folder / "models", tiny=given.tiny).items():
            vocab = json.loads((path / "config.json").read_text())["vocab_size"]
            gpus = 1 if name else 0
            for kind in ("vllm", "headrace") * given.rounds:
                start = bare(path, args, folder) if kind == "vllm" else headrace(path, args, folder, gpus)
                with start as (port, called, _):
                    asyncio.run(load.run(port, called, 2, 16, vocab))  # what is compiled on first use
                    for streams in given.streams:
                        figures = asyncio.run(load.run(port, called, streams, given.tokens, vocab))
                        results.append({"model": model, "server": kind, **asdict(figures)})
                        print(model, kind, *(f"{k}={v:.1f}" for k, v in asdict(figures).items()), flush=True)
            cleanup[model] = endings(path, args, folder, gpus)
            print(model, "after it was", cleanup[model], flush=True)
    machine = {
        "gpu": name or "none",
        "cpus": os.cpu_count(),
        "vllm": vllm.__version__,
        "python": platform.python_version(),
    }
    target = given.output or Path(__file__).parents[1] / "results" / f"gpu-{(name or 'tiny').replace(' ', '-')}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"machine": machine, "results": results, "cleanup": cleanup}, indent=1) + "\n")
    print(f"written to {target}")


if __name__ == "__main__":
    main()
