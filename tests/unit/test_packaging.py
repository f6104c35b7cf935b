"""What a user gets from `pip install`: one wheel with the demo model and the catalog, and nothing of the checkout's."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import headrace

ROOT = Path(__file__).resolve().parents[2]
MAX_WHEEL_BYTES = 8 * 1024 * 1024


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without the network."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def metadata(wheel: Path) -> dict[str, list[str]]:
    with zipfile.ZipFile(wheel) as z:
        (name,) = [n for n in z.namelist() if n.endswith(".dist-info/METADATA")]
        message = Parser().parsestr(z.read(name).decode())
    return {key: message.get_all(key, []) for key in message}


def test_every_module_and_the_data_are_in_the_wheel(names: set[str]) -> None:
    here = {p.relative_to(ROOT / "src").as_posix() for p in (ROOT / "src/headrace").rglob("*") if p.is_file()}
    wanted = {n for n in here if "__pycache__" not in n and not Path(n).name.startswith(".")}
    assert wanted - names == set()
    assert "headrace/data/catalog.yaml" in names
    assert {f"headrace/data/demo/{n}" for n in ("config.json", "openvino_model.bin", "tokenizer.json")} <= names


def test_nothing_else_is_in_the_wheel(names: set[str]) -> None:
    assert {n.split("/")[0] for n in names} == {"headrace", f"headrace-{headrace.__version__}.dist-info"}
    assert not [n for n in names if "components" in n or "__pycache__" in n or n.endswith(".pyc")]


def test_the_wheel_is_small_enough_to_download_on_a_whim(wheel: Path) -> None:
    assert wheel.stat().st_size < MAX_WHEEL_BYTES


def test_one_version_everywhere(wheel: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata(wheel)["Version"] == [headrace.__version__] == [project["version"]]


def test_neither_the_package_nor_the_cpu_extra_brings_pytorch(wheel: Path) -> None:
    needs = [n for n in metadata(wheel)["Requires-Dist"] if "extra ==" not in n or "'cpu'" in n]
    assert any(n.startswith("openvino-genai") for n in needs)
    assert not [n for n in needs if re.match(r"(torch|transformers|optimum|vllm|nncf)", n)]


def test_the_wheel_has_the_command_and_the_licence(wheel: Path, names: set[str]) -> None:
    with zipfile.ZipFile(wheel) as z:
        (entry,) = [n for n in names if n.endswith(".dist-info/entry_points.txt")]
        assert "headrace = headrace.cli:main" in z.read(entry).decode()
    assert any(n.endswith(".dist-info/licenses/LICENSE") for n in names)
