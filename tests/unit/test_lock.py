"""The lock and the list of what is installed: whole, of this pyproject.toml, and of no particular index."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
FILES = {  # with the extras that each is for
    "controller": (),
    "scheduler-cpu": ("cpu",),
    "dev": ("cpu", "s3", "dev"),
    "test": ("cpu", "s3", "dev", "convert"),
}


def asked(extras: tuple[str, ...]) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for e in extras for line in project["optional-dependencies"][e])]
    return [Requirement(line) for line in lines]


def text_of(name: str) -> str:
    """A file of the lock with those that it includes."""
    text = (ROOT / "requirements" / f"requirements-{name}.txt").read_text()
    return re.sub(r"^-r requirements-(.*)\.txt$", lambda m: text_of(m[1]), text, flags=re.MULTILINE)


def locked(name: str) -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for line in re.findall(r"^([A-Za-z0-9].*?) \\$", text_of(name), re.MULTILINE):
        one = Requirement(line)
        found.setdefault(canonicalize_name(one.name), []).append(one)
    return found


@pytest.mark.parametrize("name", FILES)
def test_everything_that_is_asked_for_is_locked_within_its_bounds(name: str) -> None:
    there = locked(name)
    for wanted in asked(FILES[name]):
        pinned = there[canonicalize_name(wanted.name)]
        versions = [str(s.version) for one in pinned for s in one.specifier]
        assert versions, wanted
        assert all(wanted.specifier.contains(v) for v in versions), (wanted, versions)


@pytest.mark.parametrize("name", [*FILES, "build"])
def test_every_package_has_one_version_and_its_hashes(name: str) -> None:
    blocks = re.findall(r"^[A-Za-z0-9].*(?:\n[ \t]+.*)*", text_of(name), re.MULTILINE)
    assert blocks
    for block in blocks:
        assert re.match(r"[a-z0-9-]+==[^ ]+( ; .*)? \\\n", block), block
        assert re.search(r"--hash=sha256:[0-9a-f]{64}$", block), block


@pytest.mark.parametrize("name", [*FILES, "build"])
def test_the_lock_names_no_index_and_leaves_pytorch_out(name: str) -> None:
    text = text_of(name)
    assert "://" not in text
    assert not re.search(r"^-(?!r requirements-)", text, re.MULTILINE)
    assert not re.search(r"^(torch|triton|nvidia-(?!ml-py=)|cuda-)", text, re.MULTILINE)


def checked(root: Path) -> tuple[int, str]:
    done = subprocess.run([sys.executable, str(root / "scripts/lock.py"), "--check"], capture_output=True, text=True)
    return done.returncode, done.stderr


def test_the_check_sees_another_pyproject(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/lock.py", tmp_path / "scripts")
    text = (ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(text)
    assert checked(tmp_path) == (0, "")
    (tmp_path / "pyproject.toml").write_text(text.replace('version = "', 'version = "9.', 1))
    assert checked(tmp_path) == (0, "")  # that is not for the lock to know
    (tmp_path / "pyproject.toml").write_text(text.replace('"click>=', '"click>=8.2,>=', 1))
    code, said = checked(tmp_path)
    assert code == 1
    assert "make lock" in said
    assert "Traceback" not in said
    (tmp_path / "pyproject.toml").write_text(text)
    (tmp_path / "requirements/requirements-dev.txt").unlink()
    assert checked(tmp_path)[0] == 1


def sbom(path: Path) -> str:
    env = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([ROOT / "scripts/sbom.sh", path], env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return path.read_text()


def test_the_bill_of_materials_is_valid_complete_and_the_same_again(tmp_path: Path) -> None:
    text = sbom(tmp_path / "one" / "sbom.cdx.json")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    assert sbom(tmp_path / "two.json") == text
    made = json.loads(text)
    assert made["metadata"]["component"]["name"] == "headrace"
    assert not {"serialNumber", "timestamp"} & (made.keys() | made["metadata"].keys())
    there = {canonicalize_name(c["name"]): c for c in made["components"]}
    assert {canonicalize_name(r.name) for r in asked(FILES["scheduler-cpu"])} <= there.keys()
    assert set(locked("scheduler-cpu")) == there.keys()
    assert all(c["purl"] and c["externalReferences"][0]["hashes"] for c in there.values())
