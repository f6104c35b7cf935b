"""Small real models for tests, made once and kept in pytest's cache until the programs that make them change.

The fixtures `small_models` and `small_encoders` are there for all tests: tests/conftest.py imports it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

import pytest

from headrace.replica import convert

_MAKER = Path(__file__).with_name("models") / "make_small_models.py"
_NEEDED = {"optimum-intel": "optimum", "torch": "torch", "transformers": "transformers"}  # distribution: module
_LIMIT_S = 300


class SmallModel(TypedDict):
    """`hf`: Hugging Face folder with safetensors. `ov`: the same as OpenVINO IR. `greedy`: JSON file with what
    transformers itself generates, a list of objects with prompt, prompt_ids, ids and text. `lora`: folders of LoRA
    adapters "a" and "b"; `lora_greedy`: what transformers generates with each."""

    hf: Path
    ov: Path
    greedy: Path
    lora: dict[str, Path]
    lora_greedy: dict[str, Path]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _makers() -> str:
    """Changes with the maker and our converter."""
    sources = (_MAKER, _MAKER.with_name("make_small_encoders.py"), Path(convert.__file__))
    return _digest(b"".join(p.read_bytes() for p in sources))


def _key() -> str:
    """Changes also with the versions of what they use."""
    versions = "".join(f"{name}={importlib.metadata.version(name)};" for name in (*_NEEDED, "openvino"))
    return f"{_makers()}-{_digest(versions.encode())}"


def _make(folder: Path) -> None:
    partial = folder.with_name(f"{folder.name}.{os.getpid()}")
    env = {k: v for k, v in os.environ.items() if not k.startswith("COV_")} | {"HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, str(_MAKER), str(partial)], env=env, capture_output=True, text=True, timeout=_LIMIT_S
        )
        if done.returncode != 0:
            raise RuntimeError(f"{_MAKER.name} exited with code {done.returncode}:\n{done.stderr[-4000:]}")
        try:
            partial.rename(folder)
        except OSError:  # another run was first; its models are the same
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@pytest.fixture(scope="session")
def small_models(request: pytest.FixtureRequest) -> dict[str, SmallModel]:
    """Random models "gpt2", "llama" (grouped-query attention, chat template) and "phi" (partial rotary), by name."""
    cache = request.config.cache
    assert cache is not None
    home = cache.mkdir("small_models")
    missing = [name for name, module in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        # An environment that cannot make them uses what another one has made.
        folder = next((f for f in sorted(home.iterdir()) if f.name.startswith(_makers()) and "." not in f.name), None)
        if folder is None:
            pytest.skip(f"small models need {', '.join(missing)}: pip install '.[convert]'")
    else:
        folder = home / _key()
    if not folder.is_dir():
        _make(folder)
        for old in home.iterdir():
            if old != folder and "." not in old.name:
                shutil.rmtree(old, ignore_errors=True)
    return {
        name: {
            "hf": folder / "hf" / name,
            "ov": folder / "ov" / name,
            "greedy": folder / "greedy" / f"{name}.json",
            "lora": {a: folder / "lora" / name / a for a in "ab"},
            "lora_greedy": {a: folder / "greedy" / f"{name}-{a}.json" for a in "ab"},
        }
        for name in ("gpt2", "llama", "phi")
    }


class SmallEncoder(TypedDict):
    """`reference`: JSON file with transformers' own numbers, a list of objects; see make_small_encoders.py."""

    hf: Path
    ov: Path
    reference: Path


@pytest.fixture(scope="session")
def small_encoders(small_models: dict[str, SmallModel]) -> dict[str, SmallEncoder]:
    """Random BERTs "embed" (with mean pooling) and "score" (a cross-encoder), by name."""
    folder = small_models["gpt2"]["greedy"].parent.parent
    return {
        name: {"hf": folder / "hf" / name, "ov": folder / "ov" / name, "reference": folder / "encoded" / f"{name}.json"}
        for name in ("embed", "score")
    }
