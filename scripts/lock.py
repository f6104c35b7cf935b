#!/usr/bin/env python3
"""The lock: requirements/*.txt, every package at one version with the hashes of its files, on every platform.

scripts/lock.py --uv UV    makes the files anew from pyproject.toml
scripts/lock.py --check    fails if pyproject.toml asks for something else than they were made for; needs no network

A file holds what its extras need beyond the file that it begins with, and is installed with `--no-deps
--require-hashes`. PyTorch is left out, since its builds for a CPU and for CUDA come from different indexes, with other
hashes; and no file names an index, since that is the business of whoever installs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "requirements"
_OLDEST_PYTHON = "3.11"
_ELSEWHERE = ("torch",)

# Each with its extras and the file whose packages it adds to. The last one has them all, and decides the versions.
FILES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "controller": ((), ""),
    "scheduler-cpu": (("cpu",), "controller"),
    "dev": (("cpu", "s3", "dev"), "scheduler-cpu"),
    "test": (("cpu", "s3", "dev", "convert"), "dev"),
}
BUILD = "build"
"""What builds the package itself; a file of its own."""


def path_of(name: str) -> Path:
    return FOLDER / f"requirements-{name}.txt"


def fingerprint(pyproject: Mapping[str, Any]) -> str:
    """A hash of all that the lock is made from."""
    project = pyproject["project"]
    extras = sorted({e for extras, _ in FILES.values() for e in extras})
    asked = {
        "build": pyproject["build-system"]["requires"],
        "dependencies": project["dependencies"],
        "extras": {e: project["optional-dependencies"][e] for e in extras},
        "python": project["requires-python"],
        "files": FILES,
    }
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def blocks(text: str) -> list[str]:
    """The requirements of a file, each with its hashes, over several lines."""
    return re.findall(r"^[A-Za-z0-9].*(?:\n[ \t]+.*)*", text, re.MULTILINE)


def _compile(uv: str, source: str, *flags: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        overrides = Path(folder, "overrides.txt")
        overrides.write_text("".join(f"{name} ; python_version < '3'\n" for name in _ELSEWHERE))
        command = [
            uv, "pip", "compile", source, "--quiet", "--universal", f"--python-version={_OLDEST_PYTHON}",
            "--generate-hashes", "--no-annotate", "--no-header", "--no-emit-index-url", "--no-emit-find-links",
            f"--override={overrides}", *flags,
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return blocks(done.stdout)


def make(uv: str) -> None:
    """Write all files. The versions in them are the newest that pyproject.toml allows."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    mark = f"# Made by `make lock` from pyproject.toml ({fingerprint(pyproject)}).\n"
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        newest = Path(folder, "newest.txt")
        for name, (extras, _) in reversed(FILES.items()):
            flags = [f"--extra={e}" for e in extras] + ([f"--constraint={newest}"] if newest.exists() else [])
            found = _compile(uv, "pyproject.toml", *flags)
            if not newest.exists():
                newest.write_text("\n".join(b.partition(" \\")[0] for b in found))
            path_of(name).write_text(mark + "\n".join(found) + "\n")
        tools = Path(folder, "build.in")
        # What hatchling asks for when it installs a checkout to be edited.
        tools.write_text("\n".join([*pyproject["build-system"]["requires"], "editables"]))
        found = _compile(uv, str(tools), f"--constraint={newest}")
        path_of(BUILD).write_text(mark + "\n".join(found) + "\n")
    for name, (_, base) in reversed(FILES.items()):
        if base:
            there = set(blocks(path_of(base).read_text()))
            more = [b for b in blocks(path_of(name).read_text()) if b not in there]
            path_of(name).write_text(f"{mark}-r {path_of(base).name}\n" + "\n".join(more) + "\n")


def check() -> str:
    """What is wrong; "" if the lock is of this pyproject.toml."""
    wanted = fingerprint(tomllib.loads((ROOT / "pyproject.toml").read_text()))
    for path in map(path_of, [*FILES, BUILD]):
        if not path.exists() or f"({wanted})" not in path.read_text().partition("\n")[0]:
            return f"{path.relative_to(ROOT)} is not of this pyproject.toml: run `make lock` and commit the files."
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description="Make or check the lock.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--uv", metavar="PROGRAM", help="make it, with this uv")
    what.add_argument("--check", action="store_true", help="say whether it is of pyproject.toml")
    args = parser.parse_args()
    if args.uv:
        make(args.uv)
    elif wrong := check():
        sys.exit(wrong)


if __name__ == "__main__":
    main()
